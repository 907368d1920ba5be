"""Ceilings: the scheduler's (`[limits]`), and what one tenant may have (`[tenants.NAME]`)."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, model_validator

from agentsched.config_base import Count, Part, Span
from agentsched.model import Limits, TenantConfigured, TenantId, TenantLimits


class LimitsConfig(Part):
    """The ceilings of the scheduler; those that are not set keep their defaults."""

    programs_max: Count | None = Field(
        default=None,
        description="live programs; the idlest is forgotten, one that was never answered before any"
        " other; all busy: 429",
    )
    program_idle_max: Span | None = Field(
        default=None, description="a program that is idle for so long is closed"
    )
    conversations_per_program_max: Count | None = Field(
        default=None, description="the idlest conversation is forgotten"
    )
    ready_steps_max: Count | None = Field(default=None, description="held steps; else 429")
    slow_start: Span | None = Field(
        default=None,
        description="an engine that came back gets its part of the work little by little for so"
        " long",
    )
    silence: Span | None = Field(
        default=None,
        description="an engine with steps inside where nothing has moved for so long, beyond what"
        " their prompts may take, gets no new ones while another is well",
    )
    running_steps_per_engine_max: Count | None = Field(
        default=None, description="steps at one engine; further ones are held"
    )
    engine_wait_max: Span | None = Field(
        default=None, description="with no engine up a step is held so long, then 503"
    )
    max_wait: Span | None = Field(default=None, description="no held step waits longer")
    max_bypass: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="no held step is overtaken more often"
    )
    pins_per_engine_max: Count | None = Field(
        default=None, description="retained prefixes; the one of least value gives way"
    )
    pinned_tokens_per_engine_max: Count | None = Field(
        default=None, description="tokens of retained prefixes; likewise"
    )
    pin_ttl_max: Span | None = Field(default=None, description="no prefix is retained longer")
    retries_max: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="further engines that a step may be tried on"
    )

    def to_limits(self) -> Limits:
        """The scheduler's limits."""
        given = {
            LIMIT_NAMES.get(key, key): value
            for key in type(self).model_fields
            if (value := getattr(self, key)) is not None
        }
        return Limits(**given)


#: The scheduler's names of limits, where they differ from the operator's.
LIMIT_NAMES: Final = {
    "program_idle_max": "program_idle_ns_max",
    "slow_start": "slow_start_ns",
    "silence": "silence_ns",
    "engine_wait_max": "engine_wait_ns_max",
    "max_wait": "wait_ns_max",
    "max_bypass": "bypasses_max",
    "pin_ttl_max": "pin_ttl_ns_max",
}


class TenantConfig(Part):
    """One tenant, as `[tenants.NAME]`. NAME is what the tenant header says, or `key-` and the
    first twelve digits of the API key's SHA-256. What is left out is as for everybody."""

    weight: float = Field(
        default=1.0, gt=0, le=1e6, allow_inf_nan=False, description="its share, relative to others"
    )
    held_steps_max: Count | None = Field(
        default=None, description="of its steps that may be held; else 429"
    )
    programs_max: Count | None = Field(
        default=None,
        description="of its programs that may live, beside what each of them began"
        " (`x-agentsched-parent`); a further one: 429",
    )
    pins_max: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="retained prefixes"
    )
    pinned_tokens_max: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="tokens of those"
    )
    warm_max: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="conversations that are kept warm by requests"
    )
    priority_min: int = Field(
        default=0, ge=-(2**31), description="the soonest that its requests may ask for"
    )
    priority_max: int = Field(
        default=2**31 - 1, lt=2**31, description="the latest; what is beyond is the nearer one"
    )
    deadline: Span | None = Field(
        default=None, description="for programs that name no deadline of their own"
    )

    @model_validator(mode="after")
    def _priorities_are_a_range(self) -> TenantConfig:
        if self.priority_min > self.priority_max:
            raise ValueError("priority_min is at most priority_max")
        return self

    def configured(self, tenant: str) -> TenantConfigured:
        """The event that sets this."""
        given = self.model_dump(exclude={"weight", "deadline"})
        limits = TenantLimits(**given, deadline_ns=self.deadline)
        return TenantConfigured(tenant=TenantId(tenant), weight=self.weight, limits=limits)
