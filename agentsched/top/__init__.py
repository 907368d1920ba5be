"""`agentsched top`: the dashboard for terminals."""
