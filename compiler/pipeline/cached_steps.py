"""The steps of one compilation: each is told to whoever watches, and its result is kept by content.

Owns what a step's result depends on. A key holds the digests of everything that went in, the options, the code of this
compiler and the versions of the libraries: nothing else may change a result, and a changed one of these makes it again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compiler import sources
from compiler.artifact.evaluation import Machine, Speed, Speedup
from compiler.cache.steps import ENTRY_FILE, Step, StepCache
from compiler.data import Split, buckets, calls
from compiler.graph import row_independence
from compiler.measure import cost, first_run, speedups
from compiler.measure.answers import answers
from compiler.measure.first_run import Limits
from compiler.passes import table
from compiler.passes.job import PassJob, PassResult
from compiler.progress import Doing, Watcher, step
from compiler.recipe.targets import Precision, Target
from penstock import toolchain
from penstock.artifact.blobs import digest_of
from penstock.errors import ArtifactError, CompileError
from penstock.policy.decoding import Decoder
from penstock.process import machine
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire import tensors
from penstock.wire.tensors import Array

_TWIN = "the parent again"
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxslim", "onnx-ir", "ml-dtypes", "skl2onnx", "penstock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model on disk: what a source was exported to, or what a pass made of another model.

    Attributes:
        path: its main file.
        content: the digest that keys what is made of it.
        how: how it came to be, in a line for people.
        files: further files that belong to it (external data, tokenizer).
        facts: figures that its exporter or pass gave, as plain JSON.
        precision: what it computes in, as it came; "none" for a model that is no neural network.
    """

    path: Path
    content: str
    how: str = ""
    files: tuple[Path, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"

    @property
    def size_bytes(self) -> int:
        """Count the bytes of the model and of the files beside it."""
        return self.path.stat().st_size + sum(path.stat().st_size for path in self.files)


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of several models in one session.

    Attributes:
        speeds: by name.
        speedups: against the parent, by name, of every other model; empty without a parent.
        clock_noise: how much faster than itself the parent seemed; None without a parent.
    """

    speeds: dict[str, Speed]
    speedups: dict[str, Speedup]
    clock_noise: float | None


class CachedSteps:
    """Takes steps over one cache, and remembers which, for the lock document.

    ``with steps("edge model") as doing`` announces a step to the watcher; ``keep``, ``apply``, ``answers`` and
    ``timed`` do its work, or find it done.
    """

    def __init__(self, cache: StepCache, watcher: Watcher, *, budget_s: float = math.inf) -> None:
        """``budget_s``: after that, what may be left out is (:attr:`is_time_up`)."""
        self._cache = cache
        self._watcher = watcher
        self.taken: list[dict[str, Any]] = []
        self.first_runs = first_run.shared()
        self._memos: dict[tuple[str, str, str], dict[Any, Any]] = {}
        self._ends_at = time.monotonic() + budget_s

    @property
    def is_time_up(self) -> bool:
        """Say whether the time budget is used up."""
        return time.monotonic() >= self._ends_at

    def __call__(self, name: str) -> AbstractContextManager[Doing]:
        """Announce a step, time it, and say how it went."""
        return step(self._watcher, name)

    def keep(self, name: str, key: Mapping[str, Any], produce: Callable[[Path, Path], Any], doing: Doing) -> Step:
        """Find the result of a step, or make and keep it; ``key`` is completed with code and libraries."""
        found = self._cache.run(
            name, {**key, "made_by": made_by()}, produce, waiting=lambda words: doing.advance(0.0, words)
        )
        doing.note(found.note)
        doing.took(was_cached=found.was_cached)
        self.taken.append({"step": name, "id": found.id, "key": key})
        return found

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
    ) -> Model:
        """Apply one pass of the table; the model says in ``how`` and ``facts`` what the pass has to say.

        Raises:
            CompileError and its kin, from the pass; MissingToolchain.
        """
        info = table.find(name)
        options = dict(options or {})

        def produce(out: Path, work: Path) -> PassResult:
            takes = cache(lambda: as_it_is(model.path).inputs)
            examples = None if calibration is None else lambda: calls.at_each_size(calibration, max_batch, takes())
            return info.load()(
                PassJob(
                    source=model.path,
                    out=out,
                    target=target,
                    options=options,
                    calibration=examples,
                    keep_float=keep_float,
                    seed=seed,
                    progress=doing.advance,
                    work=work,
                    memo=self._memos.setdefault((name, model.content, key["calibration"]), {}),
                )
            )

        key: dict[str, Any] = {
            "model": model.content,
            "target": _plain_target(target),
            "options": options,
            "calibration": "" if calibration is None else calibration.digest,
            "max_batch": max_batch,
            "keep_float": sorted(keep_float),
            "seed": seed,
            "toolchain": toolchain.describe(options.get("toolchain") or info.toolchain) if info.toolchain else {},
        }
        found = self.keep(name, key, produce, doing)
        return _model_in(found, msgspec.convert(found.facts, PassResult))

    def run_first(self, model: Model, examples: Split, doing: Doing, *, limits: Limits, what: str) -> None:
        """Let a model that has not run here yet answer its first row in a child, under limits.

        Raises:
            CompileError: it takes more time or memory.
        """
        row = {name: array[:1] for name, array in examples.inputs.items()}

        def produce(out: Path, work: Path) -> dict[str, Any]:
            del out, work
            self.first_runs.run(model.path, row, limits, what=what)
            return {}

        key = {
            "model": model.content,
            "row": digest_of(tensors.pack(row)),
            "limits": asdict(limits),
            "machine": machine_facts(),
        }
        self.keep("first run", key, produce, doing)

    def rows_mixed_by(self, model: Model, samples: Mapping[str, Array], doing: Doing, *, precision: str) -> str:
        """Say which operator of an ONNX model mixes rows; "" where rows are independent of each other.

        Raises:
            CompileError: it cannot be loaded.
        """

        def produce(out: Path, work: Path) -> str:
            del out, work
            return row_independence.rows_mixed_by(model.path, as_it_is(model.path), samples, precision=precision)

        key = {
            "model": model.content,
            "samples": digest_of(tensors.pack(samples)),
            "precision": precision,
            "machine": machine_facts(),
        }
        found: str = self.keep("rows", key, produce, doing).facts
        return found

    def answers(
        self, model: Model, split: Split, doing: Doing, *, decoder: Decoder, max_batch: int, what: str
    ) -> dict[str, Array]:
        """Ask an ONNX model every row, and return what the decoder reads of its outputs.

        Args:
            max_batch: as the variant is served: 1 where rows change each other's answers.

        Raises:
            CompileError: it cannot be loaded or run, or answers with NaN or infinities.
        """

        def produce(out: Path, work: Path) -> dict[str, Any]:
            del work
            found = answers(engine(model.path), split.inputs, decoder=decoder, max_batch=max_batch, what=what)
            for at, values in enumerate(found.values()):
                np.save(out / f"{at}.npy", values)
            return {"names": list(found)}

        key = {
            "model": model.content,
            "split": split.digest,
            "decoder": asdict(decoder),
            "max_batch": max_batch,
            "machine": machine_facts(),
        }
        found = self.keep("answers", key, produce, doing)
        return {name: np.load(found.directory / f"{at}.npy") for at, name in enumerate(found.facts["names"])}

    def timed(self, models: Mapping[str, Model], split: Split, doing: Doing, *, parent: str = "") -> Timed:
        """Measure latency and memory of ONNX models by name, in turns in one session.

        Args:
            parent: name of the one that the others are compared with; it is loaded and timed twice.

        Raises:
            CompileError: one cannot be loaded or run.
        """

        def produce(out: Path, work: Path) -> Timed:
            del work
            memory = {}
            for done, (name, model) in enumerate(models.items()):
                doing.advance(done / (len(models) + 1), f"memory of {name}")
                one = calls.first(split.inputs, as_it_is(model.path).inputs, rows=1)
                memory[name] = cost.memory_bytes(model.path, one, out)
            (out / "row.msgpack").unlink(missing_ok=True)
            doing.advance(len(models) / (len(models) + 1), "latencies")
            engines = {name: engine(model.path) for name, model in models.items()}
            if parent:
                engines[_TWIN] = engine(models[parent].path)
            seconds = cost.call_seconds(engines, split.inputs)
            found = {
                name: speedups.speedup(seconds[parent]["1"], calls["1"])
                for name, calls in seconds.items()
                if parent and name != parent
            }
            elsewhere = {
                label: cost.call_seconds(engines, other.inputs, batches=(1,))
                for label, other in buckets.others(split.take(slice(0, 1), name=split.name))
            }
            at_sizes = {
                name: {label: cost.medians_ms(found[name])["1"] for label, found in elsewhere.items()}
                for name in models
            }
            return Timed(
                speeds={
                    name: cost.speed(cost.medians_ms(seconds[name]), memory[name], at_sizes[name]) for name in models
                },
                speedups={name: one for name, one in found.items() if name != _TWIN},
                clock_noise=speedups.noise(found[_TWIN]) if parent else None,
            )

        key = {
            "models": {name: model.content for name, model in models.items()},
            "parent": parent,
            "split": split.digest,
            "machine": machine_facts(),
        }
        return msgspec.convert(self.keep("measure", key, produce, doing).facts, Timed)


def engine(path: Path) -> Engine:
    """Load one model file to be asked for rows, also where it takes one example a call (``compiler.data.calls``).

    Raises:
        CompileError: onnxruntime does not load it.
    """
    return calls.by_rows(as_it_is(path))


def as_it_is(path: Path) -> Engine:
    """Load one model file under onnxruntime with one thread: what a device has, and the same on every run.

    Raises:
        CompileError: onnxruntime does not load it.
    """
    try:
        return load_engine("onnx", path, EngineOptions(threads=1))
    except ArtifactError as error:
        raise CompileError(error.message) from error


def model_of_source(source: sources.Source, *, how: str) -> Model:
    """Return a source as a model that a pass reads where it lies, known by its content."""
    return Model(path=source.location, content=sources.fingerprint(source), how=how)


@cache
def made_by() -> dict[str, str]:
    """Return the versions of the libraries that make results, and the digest of this compiler's own code."""
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
def machine_facts() -> dict[str, Any]:
    """Return :func:`this_machine` as plain JSON, for keys: it decides what is computed and how fast."""
    return msgspec.to_builtins(this_machine())  # type: ignore[no-any-return]


@cache
def this_machine() -> Machine:
    """Describe the machine that computes and measures, as the evaluation document carries it."""
    return Machine(
        target=machine.edge_target(),
        processor=machine.processor_name(),
        cores=os.cpu_count() or 1,
        onnxruntime=version("onnxruntime"),
    )


def _model_in(step: Step, result: PassResult) -> Model:
    path = step.directory / result.model
    ours = {path, step.directory / ENTRY_FILE}
    others = tuple(sorted(file for file in step.directory.rglob("*") if file.is_file() and file not in ours))
    return Model(path=path, content=step.content, how=result.summary, files=others, facts=result.facts)


def _plain_target(target: Target) -> dict[str, Any]:
    plain = asdict(target)
    del plain["runs_here"], plain["precisions"]  # what is tried, and where it can run, do not change what a pass does
    return plain
