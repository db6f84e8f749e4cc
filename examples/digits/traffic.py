"""Requests of the demo: one held-out digit a request, through the SDK, in the three ways it can be answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock import Client
from penstock.errors import PenstockError

MODEL = "digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came back for each row: predictions int64 [N], latency seconds [N], and who answered why."""

    predictions: NDArray[np.int64]
    latency_s: NDArray[np.float64]
    served_by: tuple[str, ...]
    reasons: tuple[str, ...]

    def accuracy(self, labels: NDArray[np.int64]) -> float:
        return float(np.mean(self.predictions == labels))

    def kept(self) -> NDArray[np.bool_]:
        """Count the rows that the device answered because it was sure."""
        return np.array(
            [who == "edge" and why == "confident" for who, why in zip(self.served_by, self.reasons, strict=True)]
        )

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latency_s, percent) * 1e3)


def stream(target: str, x: NDArray[np.float32], *, parameters: Mapping[str, bool] | None = None) -> Answers:
    """Send rows one by one to an agent or a core. x: FP32 [N, 64]."""
    predictions, latency, who, why = [], [], [], []
    with Client(target, timeout=5.0) as client:
        client.infer(MODEL, x[:1], parameters=parameters)  # opens the connection
        for row in x:
            began = time.perf_counter()
            result = client.infer(MODEL, row[None], parameters=parameters)
            latency.append(time.perf_counter() - began)
            predictions.append(int(np.argmax(result.outputs["logits"][0])))
            who.append(result.served_by or "cloud")
            why.append(result.reason or "")
    return Answers(
        predictions=np.array(predictions),
        latency_s=np.array(latency),
        served_by=tuple(who),
        reasons=tuple(why),
    )


@dataclass
class Background:
    """Steady traffic to every agent while a rollout runs; bounded rate, stops when told to.

    Attributes:
        rows: answered rows by target.
        failures: errors that a caller saw, by target; an update must cause none.
    """

    targets: tuple[str, ...]
    x: NDArray[np.float32]
    seed: int
    rows_per_request: int = 8
    requests_per_s: float = 25.0
    rows: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Background:
        for number, target in enumerate(self.targets):
            self.rows.setdefault(target, 0)
            self.failures.setdefault(target, [])
            thread = threading.Thread(target=self._run, args=(target, self.seed + number), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def _run(self, target: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with Client(target, timeout=5.0) as client:
            while not self._stop.wait(1 / self.requests_per_s):
                batch = self.x[rng.integers(0, len(self.x), self.rows_per_request)]
                try:
                    client.infer(MODEL, batch)
                except PenstockError as error:
                    self.failures[target].append(f"{error.code}: {error.message}")
                else:
                    self.rows[target] += len(batch)
