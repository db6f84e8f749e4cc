"""The workshop: applies passes and measures what they made, each step kept by content.

Owns what a step's result depends on. A key holds the digests of everything that went in, the options, the code of this
compiler and the versions of the libraries: nothing else may change a result, and a changed one of these makes it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compiler import data as datasets
from compiler import sources
from compiler.artifact.evaluation import Machine, Speed
from compiler.cache.steps import ENTRY_FILE, Step, StepCache
from compiler.data import Split
from compiler.graph import row_independence
from compiler.measure import side_by_side
from compiler.passes import table
from compiler.passes.job import PassJob, PassResult
from compiler.progress import Doing
from compiler.recipe.targets import Target
from penstock import toolchain
from penstock.artifact.blobs import digest_of
from penstock.errors import ArtifactError, CompileError
from penstock.process import machine
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire.tensors import Array

_LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxslim", "onnx-ir", "ml-dtypes", "skl2onnx", "penstock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model on disk. ``content`` is the digest that keys what is made of it; ``how`` says how it came to be.

    Attributes:
        files: further files that belong to it (external data, tokenizer), by name.
    """

    path: Path
    content: str
    how: str = ""
    files: tuple[Path, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of the model with the external data beside it."""
        return self.path.stat().st_size + sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a pass made of a model."""

    model: Model
    result: PassResult
    step: Step


class Workshop:
    """Passes and measurements over one cache. Remembers which steps it took, for the lock document."""

    def __init__(self, cache: StepCache) -> None:
        self._cache = cache
        self.taken: list[dict[str, Any]] = []

    def step(self, name: str, key: Mapping[str, Any], produce: Callable[[Path, Path], Any], doing: Doing) -> Step:
        """Any step, kept by content; ``key`` is completed with code and libraries."""
        step = self._cache.run(name, {**key, "made_by": made_by()}, produce)
        doing.note(step.note)
        doing.took(was_cached=step.was_cached)
        self.taken.append({"step": name, "id": step.id, "key": key})
        return step

    def apply(
        self,
        name: str,
        model: Model,
        doing: Doing,
        *,
        target: Target,
        options: Mapping[str, Any] | None = None,
        calibration: Split | None = None,
        max_batch: int = 64,
        keep_float: frozenset[str] = frozenset(),
        seed: int = 0,
    ) -> Made:
        """Apply one pass of the table.

        Raises:
            CompileError and its kin, from the pass; MissingToolchain.
        """
        info = table.find(name)
        options = dict(options or {})

        def produce(out: Path, work: Path) -> PassResult:
            batches = None if calibration is None else lambda: datasets.batches(calibration, max_batch)
            return info.load()(
                PassJob(
                    source=model.path,
                    out=out,
                    target=target,
                    options=options,
                    calibration=batches,
                    keep_float=keep_float,
                    seed=seed,
                    progress=doing.advance,
                    work=work,
                )
            )

        key = {
            "model": model.content,
            "target": _plain_target(target),
            "options": options,
            "calibration": "" if calibration is None else calibration.digest,
            "max_batch": max_batch,
            "keep_float": sorted(keep_float),
            "seed": seed,
            "toolchain": toolchain.describe(options.get("toolchain") or info.toolchain) if info.toolchain else {},
        }
        step = self.step(name, key, produce, doing)
        result = msgspec.convert(step.facts, PassResult)
        return Made(model=_model_in(step, result.model, how=result.summary), result=result, step=step)

    def answers(self, model: Model, split: Split, doing: Doing, *, output: str, max_batch: int, what: str) -> Array:
        """The scored output of an ONNX model for every row of a split; one by one where rows affect each other.

        Raises:
            CompileError: it cannot be loaded or run, or answers with NaN or infinities.
        """

        def produce(out: Path, work: Path) -> dict[str, Any]:
            del work
            size = 1 if row_independence.affect_each_other(model.path) else max_batch
            values = side_by_side.answers(engine(model.path), split.inputs, output=output, max_batch=size, what=what)
            np.save(out / "answers.npy", values)
            return {"rows": len(values)}

        key = {
            "model": model.content,
            "split": split.digest,
            "output": output,
            "max_batch": max_batch,
            "machine": fingerprint(),
        }
        step = self.step("answers", key, produce, doing)
        loaded: Array = np.load(step.directory / "answers.npy")
        return loaded

    def speeds(self, models: Mapping[str, Model], split: Split, doing: Doing) -> dict[str, Speed]:
        """Latency and memory of ONNX models by name, measured in turns in one session.

        Raises:
            CompileError: one cannot be loaded or run.
        """
        if not models:
            return {}

        def produce(out: Path, work: Path) -> dict[str, Speed]:
            del work
            memory = {}
            for done, (name, model) in enumerate(models.items()):
                doing.advance(done / (len(models) + 1), f"memory of {name}")
                memory[name] = side_by_side.memory_bytes(model.path, split.inputs, out)
            (out / "row.msgpack").unlink(missing_ok=True)
            doing.advance(len(models) / (len(models) + 1), "latencies")
            p50 = side_by_side.latencies_ms({name: engine(model.path) for name, model in models.items()}, split.inputs)
            return {name: side_by_side.speed(p50[name], memory[name]) for name in models}

        key = {
            "models": {name: model.content for name, model in models.items()},
            "split": split.digest,
            "machine": fingerprint(),
        }
        facts = self.step("measure", key, produce, doing).facts
        return {name: msgspec.convert(value, Speed) for name, value in facts.items()}


def engine(path: Path) -> Engine:
    """One model file under onnxruntime, one thread: what a device has, and the same on every run.

    Raises:
        CompileError: onnxruntime does not load it.
    """
    try:
        return load_engine("onnx", path, EngineOptions(threads=1))
    except ArtifactError as error:
        raise CompileError(error.message) from error


def model_of_source(source: sources.Source, *, how: str) -> Model:
    """A model that a pass reads where it lies, known by its content."""
    return Model(path=source.location, content=sources.fingerprint(source), how=how)


@cache
def made_by() -> dict[str, str]:
    """Versions of the libraries that make results, and the digest of this compiler's own code."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    here = Path(__file__).parents[1]
    code = sorted(path for path in here.rglob("*") if path.suffix in (".py", ".j2"))  # templates make reports
    versions["code"] = digest_of(b"".join(path.read_bytes() for path in code))
    return versions


@cache
def fingerprint() -> dict[str, Any]:
    """This machine, as far as it decides what is computed and how fast."""
    return msgspec.to_builtins(this_machine())  # type: ignore[no-any-return]


@cache
def this_machine() -> Machine:
    """As the evaluation names it."""
    return Machine(
        target=machine.edge_target(),
        processor=machine.processor_name(),
        cores=os.cpu_count() or 1,
        onnxruntime=version("onnxruntime"),
    )


def _model_in(step: Step, name: str, *, how: str) -> Model:
    path = step.directory / name
    ours = {path, step.directory / ENTRY_FILE}
    others = tuple(sorted(file for file in step.directory.rglob("*") if file.is_file() and file not in ours))
    return Model(path=path, content=step.content, how=how, files=others)


def _plain_target(target: Target) -> dict[str, Any]:
    plain = asdict(target)
    del plain["runs_here"], plain["precisions"]  # what is tried, and where it can run, do not change what a pass does
    return plain
