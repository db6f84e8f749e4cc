"""Settings of who observes requests: ``[observing]``. Each part is off until asked for, and costs nothing then."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from penstock.process.trace_settings import TraceSettings


class ObservingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is counted, logged and kept of requests beside what ``/metrics`` always has.

    Attributes:
        traffic: count requests by tenant and by arm of a split, too (``penstock_traffic_*`` in ``/metrics``).
        max_tenants: tenants that have a label of their own in metrics; those that come later are counted as ``other``.
        triton_names: show the counts of models under Triton's ``nv_inference_*`` names, too.
        access_log: write a JSON line for each request to the log: of ``all``, or of those that were ``refused`` or
            failed.
        traces: spans of requests.
    """

    traffic: bool = False
    max_tenants: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    triton_names: bool = False
    access_log: Literal["off", "refused", "all"] = "off"
    traces: TraceSettings = TraceSettings()
