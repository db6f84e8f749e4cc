"""The requests that wait for the device's own variant: run in batches, and judged where they run.

The queue is ``penstock.hosting.replica_queue``, which also decides what runs on the event loop. Does not know what
becomes of an uncertain row, nor who asked.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from edge_agent.policy.cascade import Decision
from penstock.errors import Unavailable
from penstock.hosting.loading import Loaded
from penstock.hosting.replica import Chunk, EngineReplica
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.hosting.rows import split
from penstock.wire.tensors import Array

ON_LOOP_BELOW_S = 0.0003
"""A batch quicker than this runs on the event loop: handing it to a thread and back costs about as much."""

Judge = Callable[[Mapping[str, Array], Mapping[str, Array], int], tuple[list[float], Decision]]
"""Inputs and outputs of a batch and its row count in; score and decision per row out. Called where the engine runs."""


@dataclass(slots=True)  # not frozen, like all that is made once a request: freezing costs a microsecond each time
class LocalAnswer:
    """The device's answer to one request: outputs with its rows, a score and a decision for each row."""

    outputs: Mapping[str, Array]
    scores: list[float]
    decision: Decision


class LocalQueue:
    """The queue of one variant. All methods are called from the event loop."""

    def __init__(
        self, loaded: Loaded, judge: Judge, *, max_queue_rows: int, thread: Executor | None = None, hidden: str = ""
    ) -> None:
        """
        Args:
            thread: runs what is too long for the event loop; None for one of its own.
            hidden: an output that is for ``judge`` alone, and part of no answer; "" for none.
        """

        def judged(inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> LocalAnswer:
            scores, decision = judge(inputs, outputs, rows)
            if hidden:
                outputs = {name: array for name, array in outputs.items() if name != hidden}
            return LocalAnswer(outputs, scores, decision)

        replica = EngineReplica(
            loaded, on_loop_below_s=ON_LOOP_BELOW_S, answer=judged, split=_split, in_pieces=True, thread=thread
        )
        self._queue: ReplicaQueue[LocalAnswer] = ReplicaQueue(replica, max_queue_rows=max_queue_rows)
        self._has_free_dims = any(-1 in spec.shape[1:] for spec in loaded.engine.inputs)

    def __repr__(self) -> str:
        return f"LocalQueue({self._queue!r})"

    def infer(
        self, inputs: Mapping[str, Array], rows: int, deadline: float | None = None, priority: int = 0
    ) -> Coroutine[Any, Any, LocalAnswer]:
        """Run one request of ``rows`` checked rows.

        Raises:
            DeadlineExceeded: not begun or not finished in time. InvalidInput, Internal: from the engine.
            QueueFull, Unavailable: not taken in.
        """
        key = tuple(array.shape[1:] for array in inputs.values()) if self._has_free_dims else None
        chunk = Chunk(inputs=inputs, rows=rows)
        return self._queue.infer(chunk, shape_key=key, deadline=deadline, priority=priority)

    async def close(self) -> None:
        """Refuse what is queued, wait for the batch that runs, release the engine; idempotent."""
        await self._queue.close(Unavailable("the model is being replaced; try again", retry_after_s=0.1))


def _split(answer: LocalAnswer, rows: Sequence[int]) -> list[LocalAnswer]:
    parts = []
    start = 0
    for outputs, count in zip(split(answer.outputs, rows), rows, strict=True):
        stop = start + count
        parts.append(LocalAnswer(outputs, answer.scores[start:stop], answer.decision.part(start, stop)))
        start = stop
    return parts
