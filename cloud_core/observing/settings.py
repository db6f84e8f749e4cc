"""Settings of who observes requests: ``[observing]``. Each part is off until asked for, and costs nothing then."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from penstock.process.trace_settings import TraceSettings

_Share = Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]


class SloSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model promises its callers. What they do wrong themselves does not count.

    Attributes:
        answered: share of requests that are answered.
        latency_s: time from admission to answer that is fast enough.
        fast: share of answers that are.
    """

    answered: _Share = 0.999
    latency_s: Annotated[float, msgspec.Meta(gt=0.0)] = 0.5
    fast: _Share = 0.99


class DriftSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether inputs, scores and predictions are distributed as they were.

    Attributes:
        is_on: follow the rows of models that answer with arrays.
        reference_rows: the first rows of a version that are taken for how it should be, where its artifact does not
            say.
        window_rows: what is compared with that: rows of this window and of the one before it.
        min_rows: fewer say nothing.
        psi_limit: population stability index above which a column has shifted, where chance does not explain it.
        look_every_s: how often what was picked is counted.
        max_waiting_rows: that were picked and are not counted yet; more are skipped.
        max_versions: that are followed; the one that came first gives way.
    """

    is_on: bool = False
    reference_rows: Annotated[int, msgspec.Meta(ge=50, le=100_000)] = 1000
    window_rows: Annotated[int, msgspec.Meta(ge=50, le=10_000_000)] = 5000
    min_rows: Annotated[int, msgspec.Meta(ge=20)] = 200
    psi_limit: Annotated[float, msgspec.Meta(gt=0.0, le=10.0)] = 0.2
    look_every_s: Annotated[float, msgspec.Meta(ge=0.05, le=60.0)] = 1.0
    max_waiting_rows: Annotated[int, msgspec.Meta(ge=1000, le=1_000_000)] = 20_000
    max_versions: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50


class CaptureSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sample of requests with their answers, as Parquet (extra ``data``).

    Attributes:
        directory: of the files; "" keeps nothing.
        share: of requests that are kept.
        drop: tensors that are left out, as ``model/tensor`` with ``*`` and ``?``.
        hash: tensors of which only a hash of each row is kept, named in the same way.
        flush_s: how often what was kept is written.
        max_waiting_bytes: of requests that wait to be written; more are dropped and counted.
        max_bytes: of all files; the oldest ones go first.
        keep_s: a file that is older goes.
    """

    directory: str = ""
    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.01
    drop: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    flush_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600.0)] = 30.0
    max_waiting_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 32 * 1024 * 1024
    max_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 1024 * 1024 * 1024
    keep_s: Annotated[float, msgspec.Meta(gt=0.0)] = 7 * 86_400.0


class ObservingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is counted, logged and kept of requests beside what ``/metrics`` always has.

    Attributes:
        traffic: count requests by tenant and by arm of a split, too (``penstock_traffic_*`` in ``/metrics``).
        max_tenants: tenants that have a label of their own in metrics; those that come later are counted as ``other``.
        triton_names: show the counts of models under Triton's ``nv_inference_*`` names, too.
        access_log: write a JSON line for each request to the log: of ``all``, or of those that were ``refused`` or
            failed.
        traces: spans of requests.
        slo: what models promise, by name; ``*`` is for all that are not named.
        drift: whether rows are distributed as they were.
        capture: requests that are kept.
        last_refusals: how many of the last requests that were refused or failed are kept for ``penstock core explain``.
        batch_reasons: count why batches were closed, for ``penstock core explain``.
    """

    traffic: bool = False
    max_tenants: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    triton_names: bool = False
    access_log: Literal["off", "refused", "all"] = "off"
    traces: TraceSettings = TraceSettings()
    slo: dict[str, SloSettings] = msgspec.field(default_factory=dict)
    drift: DriftSettings = DriftSettings()
    capture: CaptureSettings = CaptureSettings()
    last_refusals: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 100
    batch_reasons: bool = False
