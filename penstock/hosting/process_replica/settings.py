"""Limits of the worker processes that run models for a core's batches."""

from __future__ import annotations

from penstock.hosting.workers.settings import LifeSettings, Seconds


class ReplicaWorkerSettings(LifeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processes in which models run. How long a batch may run is ``serving.stall_s``.

    Attributes:
        restart_wait_s: requests wait in the queue for a worker that should answer again within so long; where it takes
            longer they are refused, with the reason and when to come back.
    """

    restart_wait_s: Seconds = 5.0
