"""The built-in profiles: ours, and the published systems as they were published.

A profile of a published system does what its authors' text or code does, as far as it can be done
without changing an engine; defects that are part of the method stay. What could not be kept is said
beside it. Systems that reorder the queue inside their engine have it here instead (`depth` with
`fits` lets in what the engine would run), and pins need an engine that can hold them.
"""

from __future__ import annotations

from typing import Final

from agentsched.policy import Choice, Profile

PASSTHROUGH: Final = Profile(
    name="passthrough",
    summary="Everything goes to the engines at once, in turn; nothing is decided.",
)

AGENTSCHED: Final = Profile(
    name="agentsched",
    summary="Programs are let in while their working set fits; least remaining work goes first.",
    source="docs/policies.md",
    order=Choice(name="remaining-work"),
    admit=Choice(name="working-set"),
    place=Choice(name="rendezvous"),
    share=Choice(name="weighted"),
)

FCFS: Final = Profile(
    name="fcfs",
    summary="The oldest program first, each conversation on the engine that has its KV.",
    source="program FCFS with session affinity",
    order=Choice(name="program-fcfs"),
    admit=Choice(name="depth"),
    place=Choice(name="session-affinity"),
)

_ENGINE_QUEUE: Final = Choice(name="depth", params={"fits": True})

AUTELLIX: Final = Profile(
    name="autellix",
    summary="Programs that were served least go first; long calls stay on their program's engine.",
    source="Autellix, arXiv 2502.13965 (PLAS); no quanta and no preemption inside the engine",
    order=Choice(name="autellix", params={"variant": "plas"}),
    admit=_ENGINE_QUEUE,
    place=Choice(name="autellix"),
)

AUTELLIX_ATLAS: Final = Profile(
    name="autellix-atlas",
    summary="Programs whose longest chain of calls was served least go first.",
    source="Autellix, arXiv 2502.13965 (ATLAS, for programs with parallel calls)",
    order=Choice(name="autellix", params={"variant": "atlas"}),
    admit=_ENGINE_QUEUE,
    place=Choice(name="autellix"),
)

CONTINUUM: Final = Profile(
    name="continuum",
    summary="KV is pinned for a time that pays by the tool's past pauses; oldest program first.",
    source="Continuum, arXiv 2511.02230; victims are unpinned by the engine's budget of pins",
    order=Choice(name="continuum"),
    admit=_ENGINE_QUEUE,
    place=Choice(name="session-affinity"),
    pin=Choice(name="continuum"),
)

CONTINUUM_STATIC: Final = Profile(
    name="continuum-static",
    summary="KV is pinned for 2 s unless the tool's pauses are longer on average.",
    source="the public code of Continuum (vllm-continuum), which is not the paper's method",
    order=Choice(name="continuum"),
    admit=_ENGINE_QUEUE,
    place=Choice(name="session-affinity"),
    pin=Choice(name="continuum-static"),
)

THUNDERAGENT: Final = Profile(
    name="thunderagent",
    summary="Programs are paused and resumed every 5 s so that the active ones' tokens fit.",
    source="ThunderAgent, arXiv 2602.13692; a wait ends at max_wait if that is below its 1800 s",
    order=Choice(name="thunderagent"),
    admit=Choice(name="thunderagent"),
    place=Choice(name="thunderagent"),
)

KVFLOW: Final = Profile(
    name="kvflow",
    summary="Pins are worth more the sooner the workflow comes back to them.",
    source="KVFlow, arXiv 2507.07400; the engine evicts the pins of least value first",
    order=Choice(name="kvflow"),
    admit=_ENGINE_QUEUE,
    place=Choice(name="session-affinity"),
    pin=Choice(name="kvflow"),
    prefetch=Choice(name="kvflow"),
)

SAGA: Final = Profile(
    name="saga",
    summary="Agent fair share between tenants, cached sessions first, affinity with stealing.",
    source="SAGA, arXiv 2605.00528; a stolen session's KV is computed again, not migrated",
    order=Choice(name="saga"),
    admit=_ENGINE_QUEUE,
    place=Choice(name="saga"),
    pin=Choice(name="saga"),
    prefetch=Choice(name="saga"),
    share=Choice(name="afs"),
)

HEXGEN: Final = Profile(
    name="hexgen",
    summary="Least slack to the stage's part of the deadline first; fast and idle engines first.",
    source="HexGen-Flow, arXiv 2505.05286; stages are expected steps, no templates",
    order=Choice(name="hexgen"),
    admit=_ENGINE_QUEUE,
    place=Choice(name="hexgen"),
)

DLPM: Final = Profile(
    name="dlpm",
    summary="Longest cached prefix first among tenants that have not used up their quantum.",
    source="DLPM and D2LPM, arXiv 2501.14312",
    order=Choice(name="dlpm"),
    admit=_ENGINE_QUEUE,
    place=Choice(name="dlpm"),
)

DUALMAP: Final = Profile(
    name="dualmap",
    summary="Two engines for each beginning of a prompt; the cached one unless it is too slow.",
    source="DualMap, arXiv 2602.06502",
    order=Choice(name="fcfs"),
    admit=_ENGINE_QUEUE,
    place=Choice(name="dualmap"),
)

CONCUR: Final = Profile(
    name="concur",
    summary="The number of active agents rises while the cache has room and halves when it fills.",
    source="CONCUR, arXiv 2601.22705; constants of increase and decrease are ours",
    order=Choice(name="fcfs"),
    admit=Choice(name="concur"),
    place=Choice(name="session-affinity"),
)
