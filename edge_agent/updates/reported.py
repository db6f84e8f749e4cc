"""What an agent says of one model, to the fleet service and to ``penstock agent status``."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.policy.model_state import Release, Slot
from edge_agent.policy.update import Phase
from edge_agent.serving.hosting import Hosted
from edge_agent.updates.fetch import Transferred


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedModel:
    """What is true of one model now, for heartbeats and ``penstock agent status``.

    Attributes:
        failed_digest: the wanted artifact when it has failed here for good, which means until another one was asked
            for; "" while it is still being tried.
    """

    model: str
    active: Slot | None
    previous: Slot | None
    desired: Release | None
    phase: Phase
    error: str
    failed_digest: str
    transferred: Transferred
    hosted: Hosted | None
