"""The plug points: what a policy decides, what it may see, and how it is found by name."""

from __future__ import annotations

from agentsched.model import Choice
from agentsched.policy.points import (
    Admission,
    AdmitPolicy,
    Admitted,
    Held,
    OrderPolicy,
    PinPolicy,
    PlacePolicy,
    Policy,
    PolicySet,
    PrefetchPolicy,
    Prices,
    Profile,
    Retention,
    SharePolicy,
    SortKey,
    TurnedAway,
)
from agentsched.policy.registry import available, available_profiles, load, load_profile
from agentsched.policy.views import (
    ConversationView,
    EngineView,
    GraphView,
    PauseView,
    ProgramView,
    ReturnView,
    StepView,
    TenantView,
    World,
)

__all__ = [
    "Admission",
    "AdmitPolicy",
    "Admitted",
    "Choice",
    "ConversationView",
    "EngineView",
    "GraphView",
    "Held",
    "OrderPolicy",
    "PauseView",
    "PinPolicy",
    "PlacePolicy",
    "Policy",
    "PolicySet",
    "PrefetchPolicy",
    "Prices",
    "Profile",
    "ProgramView",
    "Retention",
    "ReturnView",
    "SharePolicy",
    "SortKey",
    "StepView",
    "TenantView",
    "TurnedAway",
    "World",
    "available",
    "available_profiles",
    "load",
    "load_profile",
]
