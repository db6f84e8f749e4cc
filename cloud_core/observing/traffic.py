"""Counts requests by model, version, tenant and arm of a split. Owns no exposition; see
``cloud_core.api.exposition.metrics``.
"""

from __future__ import annotations

from cloud_core.observing.finished import Finished
from penstock.process.histogram import SECONDS, Histogram

OTHER = "other"
_MAX_SERIES = 10_000


class Series:
    """What one tenant asked of one version by one arm."""

    __slots__ = ("duration_s", "request_bytes", "requests", "rows", "tokens")

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.rows = self.tokens = self.request_bytes = 0
        self.duration_s = Histogram(SECONDS)


class Traffic:
    """Everything that was asked.

    Attributes:
        series: by model, version, tenant and arm. Those of versions and tenants that are gone stay, up to a bound.
    """

    def __init__(self, max_tenants: int) -> None:
        self.series: dict[tuple[str, str, str, str], Series] = {}
        self._max_tenants = max_tenants
        self._tenants: set[str] = set()

    def finished(self, request: Finished) -> None:
        """Count a request; one that was refused before its version was known has none."""
        series = self._of(request.model, request.version, self._label(request.tenant), request.arm)
        series.requests[request.code] = series.requests.get(request.code, 0) + 1
        series.duration_s.observe(request.duration_s)
        series.tokens += request.prompt_tokens + request.answer_tokens
        series.request_bytes += request.request_bytes
        if request.code == "ok":
            series.rows += request.rows

    def _label(self, tenant: str) -> str:
        if tenant in self._tenants:
            return tenant
        if len(self._tenants) >= self._max_tenants:
            return OTHER
        self._tenants.add(tenant)
        return tenant

    def _of(self, *key: str) -> Series:
        model, version, tenant, arm = key
        found = self.series.get((model, version, tenant, arm))
        if found is None:
            if len(self.series) >= _MAX_SERIES:
                self.series.pop(next(iter(self.series)))
            found = self.series[model, version, tenant, arm] = Series()
        return found
