"""What is measured, and which of its figures are set against each other. Pure: names, shapes of load and goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Sample

Key = tuple[str, str, int]
"""(model, server, callers); for ``raw`` the rows of a batch stand where callers do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """``over`` as a share of ``under`` on one model; ``at_least`` is what we aim for, None where we only look."""

    model: str
    over: str
    under: str
    callers: tuple[int, ...]
    at_least: float | None
    raw_batch: int = 0  # where ``under`` is "raw": the batch it is compared at


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A goal at one number of callers: the median over rounds of the ratio within a round, and its range.

    ``cpu_ratio`` is the same ratio by CPU time of the servers for a row: what it would be on an undisturbed machine.
    """

    model: str
    over: str
    under: str
    callers: int
    ratio: float
    low: float
    high: float
    at_least: float | None
    cpu_ratio: float | None

    @property
    def verdict(self) -> str:
        if self.at_least is None:
            return ""
        return "reached" if self.ratio >= self.at_least else "missed"


SERVERS: Mapping[str, str] = {
    "raw": "onnxruntime alone, one thread; callers = rows of a batch",
    "echo-grpc": "bare grpc.aio echo of the same bytes",
    "echo-native": "bare echo by pygrpc-native's asyncio server",
    "yardstick-http": "one-file aiohttp + onnxruntime server, no checks",
    "yardstick-unix": "the same over a unix socket",
    "core-http": "core, OIP REST with raw tensors",
    "core-grpc": "core, OIP gRPC by the native server, one row a call",
    "core-grpcio": "core, OIP gRPC by grpcio's server, one row a call",
    "core-sdk": "core, gRPC through AsyncClient, rows coalesced",
    "agent-unix": "agent over its unix socket, OIP REST with raw tensors",
    "triton-http": "Triton by PyTriton, the core's request over HTTP",
    "triton-grpc": "Triton by PyTriton, the core's request over gRPC",
    "mlserver-grpc": "MLServer, the core's request over gRPC",
}

NAMES: Mapping[str, str] = {
    "yardstick-http": "one-file aiohttp server without checks",
    "yardstick-unix": "the one-file server on a unix socket",
    "echo-grpc": "bare grpc.aio echo",
    "echo-native": "bare native echo",
    "core-http": "core over HTTP",
    "core-grpc": "core over unary gRPC",
    "core-grpcio": "core over unary gRPC by grpcio",
    "agent-unix": "agent over its unix socket",
    "triton-http": "Triton over HTTP",
    "triton-grpc": "Triton over gRPC",
    "mlserver-grpc": "MLServer over gRPC",
    "digits": "digits MLP",
    "resnet18": "ResNet-18",
}
"""What README calls the servers that are set against each other, and the models."""

CALLERS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "digits": {
        "raw": (1, 64),
        "echo-grpc": (1, 16, 64),
        "echo-native": (1, 16, 64),
        "yardstick-http": (1, 16, 64),
        "core-http": (1, 16, 64),
        "yardstick-unix": (1, 16, 64),
        "agent-unix": (1, 16, 64),
        "triton-http": (1, 16, 64),
        "core-grpc": (1, 16, 64),
        "core-grpcio": (1, 16, 64),
        "triton-grpc": (1, 16, 64),
        "mlserver-grpc": (1, 16, 64),
        "core-sdk": (64, 512),
    },
    "resnet18": {
        "raw": (1, 64),
        "yardstick-http": (1, 16),
        "core-http": (1, 16),
        "yardstick-unix": (1, 16),
        "agent-unix": (1, 16),
        "triton-http": (1, 16),
        "core-grpc": (1, 16),
        "triton-grpc": (1, 16),
        "mlserver-grpc": (1, 16),
        "core-sdk": (16,),
    },
}

_ALL, _SOME = (1, 16, 64), (1, 16)
GOALS: Sequence[Goal] = (
    Goal(model="digits", over="core-http", under="triton-http", callers=_ALL, at_least=None),
    Goal(model="digits", over="core-grpc", under="triton-grpc", callers=_ALL, at_least=1.5),
    Goal(model="digits", over="core-grpc", under="core-grpcio", callers=_ALL, at_least=None),
    Goal(model="digits", over="core-grpc", under="mlserver-grpc", callers=_ALL, at_least=None),
    Goal(model="resnet18", over="core-http", under="triton-http", callers=_SOME, at_least=None),
    Goal(model="resnet18", over="core-grpc", under="triton-grpc", callers=_SOME, at_least=None),
    Goal(model="resnet18", over="core-grpc", under="mlserver-grpc", callers=_SOME, at_least=None),
    Goal(model="digits", over="core-http", under="yardstick-http", callers=_ALL, at_least=0.8),
    Goal(model="digits", over="agent-unix", under="yardstick-unix", callers=_ALL, at_least=0.8),
    Goal(model="digits", over="core-grpc", under="echo-native", callers=_ALL, at_least=0.6),
    Goal(model="digits", over="core-grpcio", under="echo-grpc", callers=_ALL, at_least=0.8),
    Goal(model="digits", over="core-http", under="raw", callers=(64,), at_least=None, raw_batch=64),
    Goal(model="digits", over="core-sdk", under="raw", callers=(512,), at_least=None, raw_batch=64),
    Goal(model="digits", over="agent-unix", under="raw", callers=(1,), at_least=None, raw_batch=1),
    Goal(model="digits", over="agent-unix", under="raw", callers=(64,), at_least=None, raw_batch=64),
    Goal(model="resnet18", over="core-http", under="yardstick-http", callers=_SOME, at_least=0.8),
    Goal(model="resnet18", over="agent-unix", under="yardstick-unix", callers=_SOME, at_least=0.8),
    Goal(model="resnet18", over="core-http", under="raw", callers=(16,), at_least=None, raw_batch=1),
    Goal(model="resnet18", over="core-grpc", under="raw", callers=(16,), at_least=None, raw_batch=1),
    Goal(model="resnet18", over="agent-unix", under="raw", callers=(16,), at_least=None, raw_batch=1),
)

SDK_ROWS_PER_S = 50_000
"""Aim of the SDK with coalescing, rows a second, on the digits student."""
IMPORT_RATIO = 1.3
HELP_S = 0.2


def ratios(samples: Mapping[Key, Sequence[Sample]]) -> list[Ratio]:
    """Compute every goal whose two sides were measured. Sides are compared within a round, where the machine was the
    same.
    """
    found = []
    for goal in GOALS:
        for callers in goal.callers:
            over = samples.get((goal.model, goal.over, callers), ())
            under = samples.get((goal.model, goal.under, goal.raw_batch or callers), ())
            pairs = list(zip(over, under, strict=False))
            shares = [a.rows_per_s / b.rows_per_s for a, b in pairs]
            cpu_shares = [b.cpu_us / a.cpu_us for a, b in pairs if a.cpu_us and b.cpu_us]
            if shares:
                found.append(
                    Ratio(
                        model=goal.model,
                        over=goal.over,
                        under=f"raw, batch {goal.raw_batch}" if goal.raw_batch else goal.under,
                        callers=callers,
                        ratio=median(shares),
                        low=min(shares),
                        high=max(shares),
                        at_least=goal.at_least,
                        cpu_ratio=median(cpu_shares) if cpu_shares else None,
                    )
                )
    return found


def typical(samples: Sequence[Sample]) -> Sample:
    """Return the medians over rounds, figure by figure."""
    return Sample(
        rows_per_s=median(s.rows_per_s for s in samples),
        p50_ms=median(s.p50_ms for s in samples),
        p99_ms=median(s.p99_ms for s in samples),
        requests=sum(s.requests for s in samples),
        answered_rows=sum(s.answered_rows for s in samples),
        cpu_us=median(s.cpu_us for s in samples),
    )
