"""The program that runs one engine for the batches of a core: ``python -m penstock.hosting.process_replica.worker``.

Its parent (``penstock.hosting.process_replica.life``) says over a socket pair what to load, and gives it batches. It
loads, lets the model prove itself and warms up before it says a word. One thread: what comes while a batch runs lies in
the socket. Ends when its parent does, however that ends; what fails for one batch is said, and the next one is run.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from penstock.artifact.variant_files import VariantFiles
from penstock.errors import ArtifactError, ConfigError
from penstock.hosting import loading
from penstock.hosting.process_replica.memory import Slot
from penstock.hosting.process_replica.messages import (
    NO_SLOT,
    Answer,
    Begin,
    Loaded,
    Model,
    Ping,
    Pong,
    Run,
    ToWorker,
    frame,
    to_worker,
)
from penstock.hosting.process_replica.tensor_bytes import lay_out, read
from penstock.hosting.replica import run_in_pieces, runs_in_pieces
from penstock.hosting.rows import Tensors
from penstock.hosting.workers import child
from penstock.hosting.workers.child import Pipe
from penstock.hosting.workers.framing import failure_of
from penstock.process.telemetry import log

MAX_IN_FRAME_BYTES = 16 * 1024
"""Tensors of so many bytes go with the message. More are copied once less in memory that both sides have, and leave the
socket free for what is said while a batch runs."""

_log = logging.getLogger(__name__)


class Arrivals:
    """Says when batches arrived: one that lay in the socket while another ran has waited there.

    Nobody read the socket then. But the parent says how long after the one before it was sent, and when that one came
    is known, since somebody waited for it or because the same was said of it.
    """

    def __init__(self) -> None:
        self._last_at = 0.0

    def of(self, after_s: float, *, now: float, was_waited_for: bool) -> float:
        """Return when the next batch arrived.

        Args:
            after_s: for how long its parent had sent the one before when it sent this one.
            was_waited_for: the worker was reading when it came.
        """
        self._last_at = now if was_waited_for else min(now, self._last_at + after_s)
        return self._last_at


class Worker:
    """An engine and the batches that wait for it."""

    def __init__(self, pipe: Pipe, loaded: loading.Loaded, slots: Sequence[Slot]) -> None:
        self._pipe, self._loaded, self._slots = pipe, loaded, slots
        self._in_pieces = runs_in_pieces(loaded)
        self._arrivals = Arrivals()
        self._waiting: deque[tuple[Run, float]] = deque()

    def serve(self) -> None:
        """Run batch after batch until the parent is gone.

        Raises:
            ParentGone: the usual end.
        """
        while True:
            bodies = self._pipe.receive(0.0)
            was_waited_for = not bodies and not self._waiting
            if was_waited_for:
                bodies = self._pipe.receive(None)
            for body in bodies:
                self._take(to_worker.decode(body), was_waited_for=was_waited_for)
                was_waited_for = False
            if self._waiting:
                run, arrived_at = self._waiting.popleft()
                self._pipe.send(self._answered(run, arrived_at))

    def _take(self, message: ToWorker, *, was_waited_for: bool) -> None:
        match message:
            case Run():
                now = time.monotonic()
                arrived_at = self._arrivals.of(message.after_s, now=now, was_waited_for=was_waited_for)
                self._waiting.append((message, arrived_at))
            case Ping():
                self._pipe.send(frame(Pong()))
            case Begin():
                raise ConfigError("a worker was told twice what to load")

    def _answered(self, run: Run, arrived_at: float) -> bytes:
        """Run a batch; return the frame that says what came of it."""
        try:
            return frame(self._answer(run, arrived_at))
        except Exception as error:  # whatever a model does to its runtime, the next batch may pass
            return frame(failure_of(run.id, error))

    def _answer(self, run: Run, arrived_at: float) -> Answer:
        waited_s = time.monotonic() - arrived_at
        late = tuple([place for place, left_s in enumerate(run.left_s) if left_s <= waited_s])
        if len(late) == len(run.rows):
            return Answer(id=run.id, late=late)
        memory = self._slots[run.slot].seen(run.size_bytes) if run.size_bytes else run.data
        inputs: Tensors = read(run.parts, memory)
        rows = sum(run.rows)
        if late:
            inputs, rows = _without(inputs, run.rows, late)
        step = self._loaded.max_batch if self._in_pieces else rows
        outputs = run_in_pieces(self._loaded.engine, inputs, rows, step, run.outputs)
        laid = lay_out([outputs], begin_at=run.size_bytes)  # an engine may answer with views of its inputs
        size_bytes = laid.size_bytes - run.size_bytes
        if run.slot == NO_SLOT or size_bytes <= MAX_IN_FRAME_BYTES:
            if run.size_bytes:
                laid = lay_out([outputs])
            data = bytearray(laid.size_bytes)
            laid.write(data)
            return Answer(id=run.id, parts=laid.parts, late=late, data=bytes(data))
        laid.write(self._slots[run.slot].grown(laid.size_bytes))
        return Answer(id=run.id, parts=laid.parts, late=late, slot_bytes=laid.size_bytes)


def main(descriptor: int, parent: int) -> int:
    """Serve the parent that is at the other end of a socket until one of us ends; return the exit status."""
    return child.run(
        descriptor,
        parent,
        first=_begin,
        ready=_ready,
        engine=lambda begin: begin.model.spec.engine,
        failed=lambda error: frame(failure_of("", error)),
    )


def load(model: Model) -> loading.Loaded:
    """Load a model by the first of its providers with which it proves itself.

    Raises:
        PenstockError: as :func:`penstock.hosting.loading.load`, of the last provider.
    """
    files = VariantFiles(weights=Path(model.weights), golden=model.golden, is_golden_damaged=model.is_golden_damaged)
    *first, last = model.providers or (model.spec.provider,)
    for provider in first:
        try:
            return _loaded(model, files, provider)
        except ArtifactError as error:
            log(
                _log, logging.WARNING, "provider not used", model=model.spec.model, provider=provider, why=error.message
            )
    return _loaded(model, files, last)


def _loaded(model: Model, files: VariantFiles, provider: str) -> loading.Loaded:
    spec = msgspec.structs.replace(model.spec, provider=provider)
    return loading.load(
        spec,
        files,
        threads=model.threads,
        cpus=model.cpus,
        device_index=model.device_index,
        rows_mixed=model.rows_mixed,
    )


def _begin(body: bytes) -> Begin:
    message = to_worker.decode(body)
    if not isinstance(message, Begin):
        raise ConfigError(f"a worker has to be told first what to load, not {type(message).__name__}")
    return message


def _ready(pipe: Pipe, begin: Begin) -> Worker:
    loaded = load(begin.model)
    pipe.send(
        frame(
            Loaded(
                inputs=loaded.engine.inputs,
                outputs=loaded.engine.outputs,
                timing=loaded.timing,
                max_batch=loaded.max_batch,
                rows_mixed=loaded.rows_mixed,
                threads=loaded.threads,
            )
        )
    )
    gc.collect()
    gc.freeze()  # what loading built lives as long as the process
    return Worker(pipe, loaded, [Slot(descriptor) for descriptor in begin.slots])


def _without(inputs: Tensors, rows: Sequence[int], late: Sequence[int]) -> tuple[Tensors, int]:
    """Leave out the rows of chunks that are late."""
    gone = frozenset(late)
    wanted = np.repeat([place not in gone for place in range(len(rows))], rows)
    return {name: array[wanted] for name, array in inputs.items()}, int(wanted.sum())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
