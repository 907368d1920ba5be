"""`@agent_step` and its friends: they live inside users' agent processes, so they are light.

Standard library only; clients' libraries are imported when somebody asks for a client.
"""
