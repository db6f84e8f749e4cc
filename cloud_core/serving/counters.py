"""What the data plane counts: plain numbers on the event loop's thread, a tenth of a microsecond each.

Owns no exposition: ``cloud_core.api.exposition.metrics`` turns these into Prometheus families when they are
scraped. The client library's own counters take a lock each time, which a server of this size would pay for five times a
request.
"""

from __future__ import annotations

from penstock.process.histogram import SECONDS, Histogram

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_MAX_ROUTES = 10_000
_NO_RUNS = (0, 0.0)
_MAX_SIZES = 1024  # of batches, that are told apart


class RouteMeasures:
    """Requests for one version of a model."""

    __slots__ = ("duration_s", "requests", "rows", "succeeded_s")

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.succeeded_s = 0.0
        self.rows = 0
        self.duration_s = Histogram(SECONDS)

    def finished(self, code: str, took_s: float) -> None:
        self.requests[code] = self.requests.get(code, 0) + 1
        self.duration_s.observe(took_s)
        if code == "ok":
            self.succeeded_s += took_s


class BatchMeasures:
    """Batches of one loaded variant, all replicas together.

    Attributes:
        requests: that batches had.
        requests_s: how long the batches of requests ran, each request's counted whole.
        by_rows: how many batches had so many rows, and how long they ran.
    """

    __slots__ = ("by_rows", "queue_s", "requests", "requests_s", "rows", "run_s")

    def __init__(self) -> None:
        self.rows = Histogram(ROWS)
        self.run_s = Histogram(SECONDS)
        self.queue_s = Histogram(SECONDS)
        self.requests, self.requests_s = 0, 0.0
        self.by_rows: dict[int, tuple[int, float]] = {}

    def waited(self, seconds: float) -> None:
        """Count a request that waited in the queue."""
        self.queue_s.observe(seconds)

    def ran(self, rows: int, seconds: float, requests: int) -> None:
        """Count a batch with the rows of so many requests."""
        self.rows.observe(rows)
        self.run_s.observe(seconds)
        self.requests += requests
        self.requests_s += seconds * requests
        runs, total_s = self.by_rows.get(rows, _NO_RUNS)
        if runs or len(self.by_rows) < _MAX_SIZES:
            self.by_rows[rows] = (runs + 1, total_s + seconds)


class CacheMeasures:
    """Requests of one loaded variant whose answers are cached.

    Attributes:
        hits: that were given a kept answer.
        misses: that were asked.
        shared: that were given the answer of one that was under way.
        ended: kept answers that went, to make room or because they were too old.
    """

    __slots__ = ("ended", "hits", "misses", "shared")

    def __init__(self) -> None:
        self.hits = self.misses = self.shared = self.ended = 0


class GenerationMeasures:
    """Generations of one loaded variant; what was counted in its process is asked of it."""

    __slots__ = ("between_tokens_s", "first_token_s", "queue_s")

    def __init__(self) -> None:
        self.queue_s = Histogram(SECONDS)
        self.first_token_s = Histogram(SECONDS)
        self.between_tokens_s = Histogram(SECONDS)

    def queued(self, seconds: float) -> None:
        """Count how long a generation waited for a slot."""
        self.queue_s.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Count how long it took from arrival to the first token."""
        self.first_token_s.observe(seconds)

    def between_tokens(self, seconds: float) -> None:
        """Count the time from one token to the next."""
        self.between_tokens_s.observe(seconds)


class Measures:
    """All of them. Names that no model has are never a label: a client must not be able to grow this."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], RouteMeasures] = {}
        self.batches: dict[tuple[str, str], BatchMeasures] = {}
        self.caches: dict[tuple[str, str], CacheMeasures] = {}
        self.generations: dict[tuple[str, str], GenerationMeasures] = {}
        self.refused: dict[str, int] = {}
        self.inflight = self.inflight_bytes = 0
        self.loop_lag_s = 0.0

    def route(self, model: str, version: str) -> RouteMeasures:
        """Return the counters of a version that exists. Those of versions that are gone stay, up to a bound."""
        if len(self.routes) >= _MAX_ROUTES and (model, version) not in self.routes:
            self.routes.pop(next(iter(self.routes)))
        return self.routes.setdefault((model, version), RouteMeasures())

    def batch(self, model: str, variant: str) -> BatchMeasures:
        """Return the counters of a loaded variant."""
        if len(self.batches) >= _MAX_ROUTES and (model, variant) not in self.batches:
            self.batches.pop(next(iter(self.batches)))
        return self.batches.setdefault((model, variant), BatchMeasures())

    def cache(self, model: str, variant: str) -> CacheMeasures:
        """Return the counters of a loaded variant whose answers are cached."""
        if len(self.caches) >= _MAX_ROUTES and (model, variant) not in self.caches:
            self.caches.pop(next(iter(self.caches)))
        return self.caches.setdefault((model, variant), CacheMeasures())

    def generation(self, model: str, variant: str) -> GenerationMeasures:
        """Return the counters of a loaded variant that generates."""
        if len(self.generations) >= _MAX_ROUTES and (model, variant) not in self.generations:
            self.generations.pop(next(iter(self.generations)))
        return self.generations.setdefault((model, variant), GenerationMeasures())

    def refuse(self, code: str) -> None:
        """Count a request that was refused before it was known which version it is for."""
        self.refused[code] = self.refused.get(code, 0) + 1
