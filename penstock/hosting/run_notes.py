"""What is noted of a request's way through a queue and a run, for who observes requests.

Nobody notes anything unless a note is given with the request's rows (``Chunk.note``): a server that is not observed
makes none. Times are by ``time.perf_counter``.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.policy.batch_closing import ClosedBy


@dataclass(slots=True, kw_only=True)  # not frozen: it ends after it began, and is made for each batch
class BatchNote:
    """One run, noted by everybody who was in it.

    Attributes:
        began_at: when the replica got it.
        took_s: until the replica had answered, or failed; 0 while it runs.
        rows: of all requests together.
        requests: that ran together.
        closed_by: why no others did.
        is_counted: whether somebody has counted it; it has several requests.
    """

    began_at: float
    took_s: float = 0.0
    rows: int
    requests: int
    closed_by: ClosedBy
    is_counted: bool = False


@dataclass(slots=True, kw_only=True)
class RunNote:
    """One chunk's way.

    Attributes:
        queued_at: when it was queued.
        rows: of the chunk.
        batch: its run: the last one, where a batch that failed ran again in parts; None where it did not run.
    """

    queued_at: float
    rows: int = 0
    batch: BatchNote | None = None

    @property
    def queued_s(self) -> float | None:
        """Return how long it waited to run; None where it did not."""
        return None if self.batch is None else max(0.0, self.batch.began_at - self.queued_at)
