"""Quantization-aware training: static INT8 whose float weights are fine-tuned with the rounding in the loop.

The graph is what ``int8_static`` makes, so that integers stay where onnxruntime's kernels have them: only its values
change. What is learned are the float model's own answers, without labels: they are what the gate compares with. Torch
trains in a toolchain (``compiler/runners/qat.py``). Refuses a result that onnxruntime answers otherwise than torch did.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.data.dataset import Split
from compiler.distill import rows as learning
from compiler.distill.cache import inputs_digest
from compiler.graph import fake_quantized, files
from compiler.graph.fake_quantized import Floats, Program
from compiler.graph.onnx_libraries import onnx, ort, session_options
from compiler.passes import int8_static
from compiler.passes.int8_static import Quantized
from compiler.passes.job import MODEL_FILE, PassJob, PassResult
from compiler.passes.options import decode
from compiler.progress import Progress
from compiler.recipe.targets import integer_types
from penstock import toolchain
from penstock.artifact.blobs import digest_of, digest_of_file, disk_errors
from penstock.artifact.manifests import canonical_json
from penstock.errors import CalibrationError, CompileError
from penstock.wire.tensors import Array

NAME = "int8-qat"
TOLERANCE = 0.02
"""Largest difference between onnxruntime's answers and torch's on the validation rows, root mean square, relative to
that of the answers around their mean. 1e-7 to 1e-5 were seen; a sum that lands on the other side of a half moves one
activation by one step. Biases that only onnxruntime rounded gave 0.007 to 0.05, a wrong zero point or axis 0.3 and
more."""
_RANGES, _TRAINED = 0.1, 0.97  # shares of the whole
_EXTRA_S = 1800.0  # for loading torch and for the checkpoint, beside the time for training
_BATCH = 64
_RUNNERS = Path(__file__).parents[1] / "runners"
_CODE = ("qat.py", "qat_program.py", "distill_training.py", "distill_losses.py", "distill_checkpoint.py")
_HIGHEST, _HIGHEST_REDUCED = 127, 64


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it is trained; a recipe sets it by its table [distill].

    Attributes:
        int8: options of the pass ``int8``, which makes what training begins with.
        output: the output that is learned.
        kind: what that output holds.
        toolchain: one that has torch.
        epochs: at most.
        lr: highest learning rate.
        patience: 0, since the best values come late: a high rate first undoes what was there, and falls to the end.
        validation: share of the rows that chooses the epoch.
    """

    int8: dict[str, Any] = {}
    output: str
    kind: Literal["logits", "probabilities"] = "logits"
    toolchain: str = "torch"
    epochs: int = 30
    batch_size: int = 64
    lr: float = 3e-3
    temperature: float = 2.0
    patience: int = 0
    validation: float = 0.15
    seed: int = 0
    threads: int = 1
    max_seconds: float = 86400.0
    checkpoint_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesson:
    """Rows to train on, and what the float model says of them."""

    inputs: Mapping[str, Array]
    teacher: Floats
    train: NDArray[np.intp]
    validation: NDArray[np.intp]


def run(job: PassJob) -> PassResult:
    """Write the job's model in static INT8, trained.

    Raises:
        As ``int8_static``; MissingToolchain; CompileError: an operator that cannot be trained through, or onnxruntime
            answers otherwise than torch.
    """
    options = decode(job.options, Options, name=NAME)
    if job.calibration is None:
        raise CalibrationError(f"{NAME}: training needs examples")
    if integer_types(job.target).symmetric:
        raise CompileError(f"{NAME}: a graph for {job.target.name} has its weights in float; nothing here trains those")
    toolchain.require(options.toolchain)
    made = int8_static.quantized(replace(job, options=options.int8, progress=_part(job, 0.0, _RANGES)))
    highest = _HIGHEST_REDUCED if made.types.reduce_range else _HIGHEST
    program = fake_quantized.program(made.model, made.exact, highest=highest)
    lesson = _lesson(job, options)
    with _work(job) as work:
        found = _trained(job, options, program, lesson, work)
        model = fake_quantized.with_values(made.model, program, found.values)
        files.write(model, job.out / MODEL_FILE)
        job.progress(_TRAINED, "comparing with torch")
        apart = difference(_answers(job, model, options, lesson), found.said)
    if not apart <= TOLERANCE:
        raise CompileError(
            f"{NAME}: onnxruntime answers the trained graph otherwise than torch does, by {apart:.2g} of its answers' "
            f"spread, {TOLERANCE:g} allowed: leave distill.quantization_aware out, and report this with the student"
        )
    job.progress(1.0, "written")
    return _result(job, made, found.account, apart)


def difference(ours: Array, theirs: Array) -> float:
    """Return how far answers [rows, classes] are apart, relative to how far they are from their mean; root mean
    square.
    """
    exact = theirs.astype(np.float64)
    spread = np.sqrt(np.mean((exact - exact.mean()) ** 2))
    return float(np.sqrt(np.mean((ours.astype(np.float64) - exact) ** 2)) / max(spread, np.finfo(np.float64).tiny))


def _lesson(job: PassJob, options: Options) -> _Lesson:
    """Ask the float model every row, and set those apart that choose the epoch."""
    assert job.calibration is not None
    batches = list(job.calibration())
    inputs = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    chosen = learning.choose(
        Split(name="training", inputs=inputs, labels=None), (), validation=options.validation, seed=options.seed
    )
    session = ort.InferenceSession(
        str(job.source),
        session_options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        providers=["CPUExecutionProvider"],
    )
    teacher = _asked(session, options.output, inputs).astype(np.float32)
    if teacher.ndim != 2:
        raise CompileError(f"{NAME}: output {options.output!r} is no [rows, classes]; a classifier is trained here")
    if options.kind == "probabilities":
        teacher = np.log(np.maximum(teacher, np.finfo(np.float32).tiny))
    return _Lesson(inputs=inputs, teacher=teacher, train=chosen.train, validation=chosen.validation)


def _asked(session: ort.InferenceSession, output: str, inputs: Mapping[str, Array]) -> Array:
    """Return the answers to all rows, batch by batch."""
    rows = len(next(iter(inputs.values())))
    parts = [
        session.run([output], {name: array[at : at + _BATCH] for name, array in inputs.items()})[0]
        for at in range(0, rows, _BATCH)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What came back from torch: values, its answers to the validation rows, and how training went."""

    values: Mapping[str, Floats]
    said: Array
    account: Mapping[str, Any]


def _trained(job: PassJob, options: Options, program: Program, lesson: _Lesson, work: Path) -> _Found:
    described = {**program.as_job(), "output": options.output}
    settings = msgspec.to_builtins(options)
    deciding = {name: value for name, value in settings.items() if name not in ("max_seconds", "checkpoint_s")}
    key = {
        "settings": deciding,
        "program": described,
        "arrays": [inputs_digest(held) for held in (program.constants, program.values, lesson.inputs)],
        "teacher": inputs_digest({"teacher": lesson.teacher}),
        "code": [digest_of_file(_RUNNERS / name) for name in _CODE],
    }
    plan = {
        "key": digest_of(canonical_json(key)),
        "program": described,
        "constants": _saved(work / "constants.npz", program.constants),
        "values": _saved(work / "values.npz", program.values),
        "inputs": [_save(work / f"input-{at}.npy", lesson.inputs[name]) for at, name in enumerate(program.inputs)],
        "teacher": _save(work / "teacher.npy", lesson.teacher),
        "train": _save(work / "train.npy", lesson.train),
        "validation": _save(work / "validation.npy", lesson.validation),
        "is_softmax": options.kind == "probabilities",
        "settings": settings,
        "checkpoint": work / "checkpoint",
        "trained": work / "trained.npz",
        "said": work / "said.npy",
    }
    account = toolchain.call(
        options.toolchain,
        _RUNNERS / "qat.py",
        plan,
        progress=_part(job, _RANGES, _TRAINED),
        timeout_s=options.max_seconds + _EXTRA_S,
    )
    with np.load(work / "trained.npz", allow_pickle=False) as held:
        values = {name: np.asarray(held[str(at)], np.float32) for at, name in enumerate(account["names"])}
    return _Found(values=values, said=np.load(work / "said.npy", allow_pickle=False), account=account)


def _answers(job: PassJob, model: onnx.ModelProto, options: Options, lesson: _Lesson) -> Array:
    """Ask the trained graph the validation rows: with the target's kernels where they are this machine's, else with its
    pairs carried out one by one.
    """
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if job.target.runs_here else levels.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(level), providers=["CPUExecutionProvider"]
    )
    return _asked(session, options.output, {name: array[lesson.validation] for name, array in lesson.inputs.items()})


def _result(job: PassJob, made: Quantized, account: Mapping[str, Any], apart: float) -> PassResult:
    epochs, has_helped = len(account["curve"]), account["after"] < account["before"]
    how = f"quantization-aware: {epochs} epochs" if has_helped else f"{epochs} epochs of training did not help"
    return PassResult(
        model=MODEL_FILE,
        summary=f"{int8_static.summary(made)}; {how}, validation loss {account['before']:.3g} to "
        f"{account['after']:.3g}" + (f"; {account['note']}" if account["note"] else ""),
        facts={
            **int8_static.facts(job, made),
            "quantization_aware": {
                "epochs": epochs,
                "best_epoch": account["best_epoch"] if has_helped else 0,
                "stop": account["stop"],
                "loss_before": account["before"],
                "loss_after": account["after"],
                "difference_from_torch": float(f"{apart:.2g}"),
            },
        },
    )


def _saved(path: Path, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Write arrays under numbers: names of tensors are no names of files."""
    with disk_errors(f"writing {path}"):
        np.savez(path, **{str(at): array for at, array in enumerate(arrays.values())})  # type: ignore[arg-type]
    return {"file": path, "names": list(arrays)}


def _save(path: Path, array: Array) -> Path:
    with disk_errors(f"writing {path}"):
        np.save(path, array)
    return path


@contextmanager
def _work(job: PassJob) -> Iterator[Path]:
    """Return the directory that outlives an interruption, or one that does not where the job has none."""
    if job.work is not None:
        yield job.work
        return
    with tempfile.TemporaryDirectory(prefix="penstock-qat-") as directory:
        yield Path(directory)


def _part(job: PassJob, low: float, high: float) -> Progress:
    return lambda share, note: job.progress(low + (high - low) * share, note)
