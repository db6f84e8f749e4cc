"""A run: parts of the input through a model, in bounded numbers at a time, and all of them into the output.

A refused row is found by halving what was refused. What stops a run leaves the finished parts, which the next run with
the same input and version goes on from.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penstock.artifact.blobs import digest_of_file
from penstock.batch.answerers import Answerer
from penstock.batch.files import check_output, open_sink, open_source
from penstock.batch.inputs import ERROR, columns_of, inputs_of, output_columns, sizes_for, values_of
from penstock.batch.parts import Cells, Made, Parts, Run
from penstock.batch.tables import Chunk, Source
from penstock.errors import Conflict, Internal, InvalidInput, TooLarge
from penstock.wire.tensors import Array

_PARTS_AT_ONCE = 2
OnError = Literal["stop", "row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a batch is run.

    Attributes:
        keep: columns of the input that are copied to the output.
        on_error: what a refused row does: ``stop`` ends the run, ``row`` becomes an entry of the column ``error``.
        batch_rows: most rows of a request.
        in_flight: most requests under way.
        overwrite: an output that is there is replaced, and parts of another run are thrown away.
    """

    keep: tuple[str, ...] = ()
    on_error: OnError = "stop"
    batch_rows: int = 256
    in_flight: int = 4
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a run came to.

    Attributes:
        resumed_rows: rows that an earlier run had answered.
    """

    made: Made
    resumed_rows: int


def pinned(parts: Parts, input_digest: str, version: str, *, overwrite: bool) -> str:
    """Return the version to ask for: the one that is given, or the one of the run that is gone on with."""
    begun = parts.begun()
    if version or begun is None or (overwrite and begun.input_digest != input_digest):
        return version
    return begun.version


def decided(run: Run, begun: Run | None, made: Made | None, *, is_there: bool, overwrite: bool) -> Run | Made | None:
    """Decide what becomes of what is there: go on with the run that was begun, nothing is left to do, or begin (None).

    Raises:
        Conflict: the output is there, or parts of another run are.
    """
    if begun is not None and begun.is_same(run):
        return made if made is not None and made.run == begun else begun
    if overwrite:
        return None
    if begun is not None:
        raise Conflict(
            f"parts of another run are beside the output: it had {begun.difference(run)}. Give that again to go on "
            "with it, or --overwrite to throw it away"
        )
    if made is not None and made.run.is_same(run):
        return made
    if is_there:
        other = f", made with {made.run.difference(run)}" if made is not None else ""
        raise Conflict(f"the output is there already{other}; give --overwrite to replace it, or another --output")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done.

    Attributes:
        version: a tag or a digest; "" for the default, or the one that an earlier run of it began with.
    """

    source: Path
    output: Path
    version: str
    options: Options


Open = Callable[[str], AbstractAsyncContextManager[Answerer]]
"""Opens what answers, in a version; "" for the default."""


async def run_job(job: Job, opened: Open, say: Callable[[int, int], None]) -> Done:
    """Run a batch, or what is left of it.

    Args:
        say: hears how many rows are answered, and of how many.

    Raises:
        InvalidInput: a file, its columns, or a row. Conflict: the output or parts of another run are there, another
            process makes it, or the input was changed. PenstockError: as the model is opened and answers.
    """
    check_output(job.output)
    parts = Parts(_output_path(job))
    with parts.locked():
        seen = _stamp(job.source)
        source = await asyncio.to_thread(open_source, job.source)
        digest = await asyncio.to_thread(digest_of_file, job.source)
        version = pinned(parts, digest, job.version, overwrite=job.options.overwrite)
        async with opened(version) as answerer:
            batch = Batch(source, answerer, parts, job.options, lambda rows: say(rows, source.rows))
            return await batch.run(digest, lambda: _stamp(job.source) != seen)


class Batch:
    """One run. ``say`` hears how many rows are answered."""

    def __init__(
        self, source: Source, answerer: Answerer, parts: Parts, options: Options, say: Callable[[int], None]
    ) -> None:
        self._source, self._answerer, self._parts = source, answerer, parts
        self._options, self._say = options, say
        self._columns = columns_of(answerer.metadata, source.names)
        wanted = {name for columns in self._columns.values() for name in columns}
        self._taken = tuple(name for name in source.names if name in wanted or name not in options.keep)
        self._room = asyncio.Semaphore(options.in_flight)
        self._part_room = asyncio.Semaphore(_PARTS_AT_ONCE)
        self._answered = self._resumed = 0

    async def run(self, input_digest: str, is_changed: Callable[[], bool]) -> Done:
        """Answer what is not answered yet, and publish.

        Args:
            is_changed: says whether the input is another than when it was read for its digest.

        Raises:
            Conflict: see :func:`decided`. InvalidInput: columns are not the model's, or a row was refused and that
                stops the run. PenstockError: as the model answers.
        """
        metadata, options = self._answerer.metadata, self._options
        missing = [name for name in options.keep if name not in self._source.names]
        if missing:
            raise InvalidInput(f"--keep {missing[0]}: the input has no such column", field="keep")
        self._check_columns()
        written = output_columns(metadata, options.keep, has_errors=options.on_error == "row")
        self._batch_rows, part_rows = sizes_for(metadata.inputs, options.batch_rows)
        run = Run(
            input_digest=input_digest,
            rows=self._source.rows,
            model=metadata.name,
            version=self._answerer.version,
            keep=options.keep,
            part_rows=part_rows,
        )
        parts = self._parts
        found = decided(run, parts.begun(), parts.made(), is_there=parts.output.exists(), overwrite=options.overwrite)
        if isinstance(found, Made):
            if found.refused and options.on_error == "stop":
                raise Conflict(
                    f"the output is there already, and {found.refused} of its rows were refused; take it with "
                    "--on-error row, or give --overwrite"
                )
            parts.discard()
            return Done(made=found, resumed_rows=found.run.rows)
        if found is None:
            parts.begin(run)
        run = found or run
        await self._answer(run)
        if await asyncio.to_thread(is_changed):
            parts.discard()
            raise Conflict(
                "the input was changed while it was read, so that nothing is sure of these answers; start again"
            )
        with parts.publishing(run) as (path, counted), open_sink(path, written) as sink:
            for cells in self._all(run):
                counted["refused"] += sum(error is not None for error in cells[ERROR])
                await asyncio.to_thread(sink.write, cells)
        made = parts.made()
        if made is None:
            raise Internal(f"{parts.output} was changed while it was written")
        return Done(made=made, resumed_rows=self._resumed)

    def _check_columns(self) -> None:
        """Look at the names alone, before any row is asked for or refused."""
        none = {name: np.empty(0, object) for name in self._taken}
        inputs_of(none, self._answerer.metadata, self._columns, is_text=False)

    async def _answer(self, run: Run) -> None:
        chunks = enumerate(self._source.chunks(run.part_rows))
        try:
            async with asyncio.TaskGroup() as group:
                while (item := await asyncio.to_thread(next, chunks, None)) is not None:
                    await self._part_room.acquire()
                    group.create_task(self._part(*item))
        except ExceptionGroup as errors:  # the first is what happened; the others happened at the same time
            raise _first(errors) from None

    async def _part(self, index: int, chunk: Chunk) -> None:
        try:
            if (before := await asyncio.to_thread(self._parts.read, index)) is not None:
                self._check_none_refused(chunk, before)
                self._resumed += chunk.rows
            else:
                starts = range(0, chunk.rows, self._batch_rows)
                slices = (slice(start, min(start + self._batch_rows, chunk.rows)) for start in starts)
                answers = await _gathered([self._slice(chunk, rows) for rows in slices])
                kept = {name: _kept(chunk.columns[name], name) for name in self._options.keep}
                cells = {**kept, **_joined([one for answer in answers for one in answer])}
                await asyncio.to_thread(self._parts.write, index, cells)
            self._answered += chunk.rows
            self._say(self._answered)
        finally:
            self._part_room.release()

    def _check_none_refused(self, chunk: Chunk, cells: Cells) -> None:
        """Stop at a row that an earlier run, which was to go on, was refused."""
        for row, error in enumerate(cells[ERROR]):
            if error is not None and self._options.on_error == "stop":
                raise InvalidInput(f"row {chunk.start + row}: {error}", field="input")

    async def _slice(self, chunk: Chunk, rows: slice) -> list[Cells]:
        """Answer rows; where they are refused, each half for itself, down to the row that is to blame."""
        try:
            async with self._room:
                return [await self._infer(chunk, rows)]
        except (InvalidInput, TooLarge) as error:
            count = rows.stop - rows.start
            if count > 1:
                middle = rows.start + count // 2
                first = await self._slice(chunk, slice(rows.start, middle))
                return first + await self._slice(chunk, slice(middle, rows.stop))
            # it was alone, so that its number within the request says nothing
            message = re.sub(r"\brow 0 holds", "it holds", error.message)
            if self._options.on_error == "stop":
                raise InvalidInput(f"row {chunk.start + rows.start}: {message}", field="input") from None
            columns = output_columns(self._answerer.metadata, (), has_errors=False)
            return [{**{column.name: [None] for column in columns}, ERROR: [message]}]

    async def _infer(self, chunk: Chunk, rows: slice) -> Cells:
        metadata, count = self._answerer.metadata, rows.stop - rows.start
        table = {name: chunk.columns[name][rows] for name in self._taken}
        inputs = inputs_of(table, metadata, self._columns, is_text=self._source.is_text)
        outputs = await self._answerer.infer(inputs)
        for spec in metadata.outputs:
            if spec.name not in outputs or outputs[spec.name].shape[:1] != (count,):
                raise Internal(f"the model gave no output {spec.name!r} with one entry for each of {count} rows")
        return {**values_of(outputs, metadata), ERROR: [None] * count}

    def _all(self, run: Run) -> Iterator[Cells]:
        for index, start in enumerate(range(0, run.rows, run.part_rows)):
            cells, rows = self._parts.read(index), min(run.part_rows, run.rows - start)
            if cells is None or any(len(column) != rows for column in cells.values()):
                raise Internal(f"part {index} was damaged meanwhile; start the same command again")
            yield cells


async def _gathered(work: Sequence[Any]) -> list[list[Cells]]:
    """Wait for all; on the first error the others are given up."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _joined(answers: Sequence[Cells]) -> Mapping[str, list[Any]]:
    return {name: [cell for one in answers for cell in one[name]] for name in answers[0]}


def _kept(column: Array, name: str) -> list[Any]:
    if column.dtype.kind == "M":
        column = np.datetime_as_string(column.astype("datetime64[us]"))
    if column.dtype.kind not in "biufOSU":
        raise InvalidInput(f"--keep {name}: values of {column.dtype} cannot be kept", field="keep")
    return [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in column.tolist()]


def _output_path(job: Job) -> Path:
    """Return where the output goes; through a link, the file that it names is replaced."""
    found = job.output.resolve()
    if found.is_dir() or not found.parent.is_dir():
        why = "it is a directory" if found.is_dir() else f"there is no directory {found.parent}"
        raise InvalidInput(f"--output {job.output}: {why}", field="output")
    if found == job.source.resolve():
        raise InvalidInput(f"--output {job.output}: it is the input; name another file", field="output")
    return found


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return what differs where a file was written to or replaced."""
    try:
        found = path.stat()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", field="input") from error
    return found.st_ino, found.st_size, found.st_mtime_ns
