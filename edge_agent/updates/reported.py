"""What a device reports of one model: to the fleet service, and in ``penstock agent status``."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.policy.model_state import Release, Slot
from edge_agent.policy.update import Phase
from edge_agent.serving.hosting import Hosted
from edge_agent.updates.fetch import Transferred


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedModel:
    """Holds what is true of one model now.

    Attributes:
        failed_digest: the desired artifact when it has failed here, until another one is desired; "" while it is still
            being tried.
        retry_in_s: seconds until what failed is tried again; None when nothing waits for that.
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
    retry_in_s: float | None = None
