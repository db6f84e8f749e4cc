"""What a student learns from: a local engine, a model of a running core, or a model that its own framework runs.

Owns what a teacher must be (floats [batch, classes] from something that is no student itself) and what names it for the
cache. Keeps nothing: ``compiler.distill.cache`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from compiler.distill.toolchain_models import ToolchainModel, as_job, content_of, toolchain_of
from compiler.progress import Progress
from penstock import toolchain
from penstock.artifact.blobs import digest_of
from penstock.artifact.manifests import canonical_json
from penstock.errors import CompileError, InvalidInput
from penstock.process.config import nearest
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.sdk.client import Client
from penstock.wire.tensors import Array, TensorSpec

LOCAL_ROWS, CORE_ROWS, TOOLCHAIN_ROWS = 1024, 256, 16384
"""Rows between two visits to the disk: what an interruption costs. Starting a toolchain takes seconds, hence more."""
_LOCAL_BATCH, _CORE_BATCH, _TOOLCHAIN_BATCH = 64, 32, 64
_CORE_TIMEOUT_S = 60.0
_TOOLCHAIN_TIMEOUT_S = 6 * 3600.0


class Teacher(Protocol):
    """A port: something that answers rows with [rows, classes].

    Attributes:
        fingerprint: digest of what it is, settings included; the same fingerprint answers the same.
        is_pinned: the fingerprint alone proves the same model; otherwise the cache asks a few rows again.
        chunk_rows: how many rows to ask for at a time.
    """

    fingerprint: str
    is_pinned: bool
    chunk_rows: int

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def output(self) -> TensorSpec:
        """Describe the output [-1, classes] that is learned; a size of -1 where it is known only from the answers."""
        ...

    def answer(self, inputs: Mapping[str, Array], report: Progress) -> Array:
        """Return the output for all rows.

        Raises:
            Unavailable, DeadlineExceeded: a core that went away. CompileError: it failed.
        """
        ...


class LocalTeacher:
    """An engine in this process."""

    chunk_rows = LOCAL_ROWS
    is_pinned = True

    def __init__(self, engine: Engine, *, content: str, output: str = "") -> None:
        """Open an ONNX file.

        Args:
            content: digest of the model, external data included.
            output: its name; may be left out when there is only one.

        Raises:
            CompileError: no such output, or it is not floats [batch, classes].
        """
        self._engine = engine
        self.inputs = engine.inputs
        self.output = _scored(engine.outputs, output, "the teacher")
        self.fingerprint = digest_of(canonical_json(["onnx", content, self.output.name]))

    def answer(self, inputs: Mapping[str, Array], report: Progress) -> Array:
        return _in_batches(inputs, _LOCAL_BATCH, self._ask, report, "asking the teacher")

    def _ask(self, batch: Mapping[str, Array]) -> Array:
        return self._engine.run(batch, [self.output.name])[self.output.name]


class CoreTeacher:
    """A model of a running core (or any other OIP server), asked in small batches with the client's own retries."""

    tries = 6  # further ones, of a request that the core refuses with a hint when to come back
    chunk_rows = CORE_ROWS
    is_pinned = False  # a version is a name, and names move

    def __init__(self, client: Client, model: str, *, version: str = "", output: str = "") -> None:
        """Ask a core for the model.

        Raises:
            NotFound: no such model. Unavailable: nobody answers. CompileError: as :class:`LocalTeacher`.
        """
        self._client, self._model, self._version = client, model, version
        self._answered_by = version
        metadata = client.metadata(model, version=version)
        self.inputs = metadata.inputs
        self.output = _scored(metadata.outputs, output, f"{model} on the core")
        specs = [metadata.inputs, self.output]
        self.fingerprint = digest_of(canonical_json(["core", model, version, specs]))

    def answer(self, inputs: Mapping[str, Array], report: Progress) -> Array:
        return _in_batches(inputs, _CORE_BATCH, self._ask, report, "asking the core")

    def _ask(self, batch: Mapping[str, Array]) -> Array:
        name = self.output.name
        result = self._client.infer(self._model, batch, version=self._version, outputs=[name], timeout=_CORE_TIMEOUT_S)
        if result.served_by not in ("", "cloud"):
            raise InvalidInput(
                f"distill.teacher: this is an agent, and its own device answered ({result.served_by}); name the core",
                field="distill.teacher",
            )
        if self._answered_by and result.version not in ("", self._answered_by):
            raise CompileError(
                f"the core answered as {self._model}:{self._answered_by} and then as {self._model}:{result.version}; a "
                f"student has one teacher: name a version, {self._model}:{result.version}"
            )
        self._answered_by = self._answered_by or result.version
        return np.array(result.outputs[name])  # a copy: rows of an answer may share a buffer that is used again


class ToolchainTeacher:
    """A torch factory or a Hugging Face directory, run by its own framework in a toolchain."""

    chunk_rows = TOOLCHAIN_ROWS
    is_pinned = True

    def __init__(self, model: ToolchainModel, inputs: Sequence[TensorSpec], *, work: Path, base: Path) -> None:
        """Prepare a model that a toolchain runs.

        Args:
            inputs: as the examples have them; the framework says no more about a model.
            work: where rows and answers are handed over.
        """
        self._model, self._work, self._base = model, work, base
        self.inputs = tuple(inputs)
        self.output = TensorSpec(name="logits", datatype="FP32", shape=(-1, -1))
        name = toolchain_of(model)
        self.fingerprint = digest_of(canonical_json(["toolchain", name, content_of(model), toolchain.describe(name)]))

    def answer(self, inputs: Mapping[str, Array], report: Progress) -> Array:
        self._work.mkdir(parents=True, exist_ok=True)
        files = {}
        for index, (name, array) in enumerate(inputs.items()):
            files[name] = self._work / f"asked-{index}.npy"
            np.save(files[name], array)
        out = self._work / "answered.npy"
        job = {"model": as_job(self._model), "base": self._base, "inputs": files, "batch": _TOOLCHAIN_BATCH, "out": out}
        runner = Path(__file__).parents[1] / "runners" / "distill_teacher.py"
        toolchain.call(toolchain_of(self._model), runner, job, progress=report, timeout_s=_TOOLCHAIN_TIMEOUT_S)
        answered: Array = np.load(out, allow_pickle=False)
        for path in (*files.values(), out):
            path.unlink()
        return answered


def local_teacher(model: Path, *, content: str, output: str) -> LocalTeacher:
    """Open an ONNX file as a teacher.

    Raises:
        As :class:`LocalTeacher`; ArtifactError: the file cannot be loaded.
    """
    return LocalTeacher(load_engine("onnx", model, EngineOptions(threads=1)), content=content, output=output)


def _in_batches(
    inputs: Mapping[str, Array], size: int, ask: Callable[[Mapping[str, Array]], Array], report: Progress, note: str
) -> Array:
    rows, parts = len(next(iter(inputs.values()))), []
    for start in range(0, rows, size):
        parts.append(ask({name: array[start : start + size] for name, array in inputs.items()}))
        report(min(1.0, (start + size) / rows), note)
    return np.concatenate(parts)


def _scored(outputs: Sequence[TensorSpec], name: str, who: str) -> TensorSpec:
    """Return the output to learn: the one named, else the only one.

    Raises:
        CompileError: there is none, or it is no output of a classifier.
    """
    by_name = {spec.name: spec for spec in outputs}
    if name and name not in by_name:
        raise CompileError(f"{who} has no output {name!r}; {nearest(name, by_name)}")
    if not name and len(outputs) != 1:
        raise CompileError(
            f"{who} has several outputs ({', '.join(by_name)}); name one with model.output (--output-name)"
        )
    spec = by_name[name] if name else outputs[0]
    if len(spec.shape) != 2 or (spec.shape[1] < 2 and spec.shape[1] != -1) or not spec.datatype.startswith("FP"):
        raise CompileError(
            f"output {spec.name!r} of {who} is {spec.datatype}{list(spec.shape)}; a student learns floats of shape "
            "[batch, classes] with two classes or more"
        )
    return spec
