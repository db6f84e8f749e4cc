"""How models that answer with arrays are run: each model's own settings, and limits of the processes of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from penstock.hosting.workers.settings import LifeSettings, Seconds
from penstock.policy.replica_places import Placement

Provider = Literal["cpu", "cuda", "tensorrt", "openvino", "qnn", "coreml", "xnnpack"]


class ReplicaWorkerSettings(LifeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processes in which models run. How long one batch may run is ``serving.stall_s``.

    Attributes:
        restart_wait_s: requests wait in the queue for a worker that should answer again within so long; where it takes
            longer they are refused, with the reason and when to come back.
    """

    restart_wait_s: Seconds = 5.0


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model is run, all of its versions alike. What is not given here is as in ``[serving]``.

    Attributes:
        placement: as ``serving.placement``, for this model.
        instances: as ``serving.replicas``, for this model; also a model that runs on the event loop gets so many if it
            is placed in processes.
        threads: as ``serving.threads``, for this model.
        max_batch_rows: most rows of a batch; the artifact's own limit where that is lower.
        max_delay_s: as ``serving.max_delay_s``, for this model.
        max_queue_rows: as ``serving.max_queue_rows``, for this model.
        providers: execution providers in place of the artifact's own, the first one with which the model loads and
            reproduces its golden answers.
        cache_bytes: of answers that are given again to requests which are the same in every byte; requests that are the
            same at the same time share one run. For each version of a model that answers with arrays; 0 for none.
        cache_ttl_s: such an answer is given again for so long; 0 for as long as there is room.
        device_index: of several devices of a kind, the one that runs it (providers cuda and tensorrt).
    """

    placement: Placement | None = None
    instances: Annotated[int, Meta(ge=0, le=64)] | None = None
    threads: Annotated[int, Meta(ge=0, le=1024)] | None = None
    max_batch_rows: Annotated[int, Meta(ge=1)] | None = None
    max_delay_s: Annotated[float, Meta(ge=0.0)] | None = None
    max_queue_rows: Annotated[int, Meta(ge=1)] | None = None
    providers: Annotated[tuple[Provider, ...], Meta(max_length=8)] = ()
    cache_bytes: Annotated[int, Meta(ge=0)] = 0
    cache_ttl_s: Annotated[float, Meta(ge=0.0)] = 0.0
    device_index: Annotated[int, Meta(ge=0, le=1023)] = 0
