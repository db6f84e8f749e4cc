"""Trains a student on a teacher's answers and exports it as ONNX, for ``compiler.distill.student`` to compare.

Runs in toolchain ``torch``, or ``optimum`` for Hugging Face models. The batch (dimension 0) and every other free
dimension of the inputs stay free.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import distill_losses as losses
import numpy as np
import torch
from distill_models import (
    Scorer,
    Served,
    from_config,
    from_factory,
    load,
    source_digest,
    with_fewer_layers,
)
from distill_training import Examples, Limits, Phase, Training, answers, seed_everything
from protocol import InputError, progress, serve, short
from torch import nn

DEFER_EPOCHS = 1 / 3  # of the epochs, after them
DEFER_RATE = 1 / 3  # of the learning rate: this is tuning
LARGE = 1_000_000  # parameters; below, threads wait for each other longer than they work
OPSET = 17  # the newest of the exporter's that has LayerNormalization and that every pass accepts


def distill(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says; writes the ONNX file and the student's logits for the validation rows."""
    settings = job["settings"]
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would load torch's compiler for it
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operator that has no ONNX form
    seed_everything(settings["seed"])
    progress(0.0, "making the student")
    examples = _examples(job)
    model, notes = _student(job)
    scorer = Scorer(model, [given["name"] for given in job["inputs"]])
    _check(scorer, examples, job["classes"])
    size = sum(value.numel() for value in model.parameters())
    threads = settings["threads"] or (1 if size < LARGE else job["processors"])
    torch.set_num_threads(threads)
    key = f"{job['key']} {source_digest(scorer)} torch {torch.__version__}, {threads} threads"
    training = Training(
        scorer, _phases(settings), examples, _limits(settings), checkpoint=Path(job["checkpoint"]), key=key
    )
    note = training.resume()
    training.run()
    progress(1.0, "exporting the student")
    scorer.eval()
    np.save(job["said"], answers(scorer, examples))
    _export(scorer, examples, job)
    return {
        "parameters": size,
        "threads": threads,
        **training.account(),
        "notes": [text for text in (*notes, note, training.note) if text],
    }


def _examples(job: dict[str, Any]) -> Examples:
    def array(file: str) -> np.ndarray:
        return np.load(file, mmap_mode="r", allow_pickle=False)

    teacher = array(job["teacher"])
    classes = array(job["labels"]) if job["labels"] else np.asarray(teacher.argmax(axis=1))
    return Examples(
        inputs=[array(given["file"]) for given in job["inputs"]],
        teacher=teacher,
        classes=classes.astype(np.int64),
        train=array(job["train"]),
        validation=array(job["validation"]),
    )


def _student(job: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    student = job["student"]
    match student["kind"]:
        case "factory":
            return from_factory(student, job["base"]), []
        case "config":
            return from_config(Path(student["path"]), job["classes"]), []
        case _:
            teacher = load(job["teacher_model"], job["base"])
            model, note = with_fewer_layers(teacher, student["keep_every"])
            return model, [note]


def _check(scorer: Scorer, examples: Examples, classes: int) -> None:
    """Send two rows through the untrained student: what does not fit is found before the first epoch."""
    rows = np.resize(examples.train, 2)
    inputs, _, _ = examples.batch(rows)
    trainable = [value for value in scorer.parameters() if value.requires_grad]
    if not trainable:
        raise InputError("the student has no weights that can be trained (requires_grad)")
    scorer.eval()
    try:
        with torch.no_grad():
            said = scorer(*inputs)
    except InputError:
        raise
    except Exception as error:
        sizes = ", ".join(f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for value in inputs)
        raise InputError(f"the student cannot answer two rows of the data ({sizes}): {short(error)}") from error
    if tuple(said.shape) != (2, classes) or not said.dtype.is_floating_point:
        raise InputError(
            f"the student answers two rows with {str(said.dtype).removeprefix('torch.')} {list(said.shape)}, and the "
            f"teacher has {classes} classes: its forward must give floats [rows, {classes}]"
        )


def _phases(settings: dict[str, Any]) -> list[Phase]:
    first = Phase(
        name="distil",
        epochs=settings["epochs"],
        lr=settings["lr"],
        loss=losses.distilling(settings["temperature"], settings["alpha"]),
    )
    if settings["defer"] == "none":
        return [first]
    second = losses.labels_alone() if settings["defer"] == "labels" else losses.gatekeeper(settings["defer_weight"])
    epochs = max(1, math.ceil(DEFER_EPOCHS * settings["epochs"]))
    return [first, Phase(name="defer", epochs=epochs, lr=DEFER_RATE * settings["lr"], loss=second)]


def _limits(settings: dict[str, Any]) -> Limits:
    return Limits(
        **{name: settings[name] for name in ("batch_size", "patience", "seed", "max_seconds", "checkpoint_s")}
    )


def _export(scorer: nn.Module, examples: Examples, job: dict[str, Any]) -> None:
    model = Served(scorer, job["output_kind"], job["output_datatype"])
    inputs, _, _ = examples.batch(np.resize(examples.validation, 2))
    free = {given["name"]: {axis: _axis(given["name"], axis) for axis in given["free"]} for given in job["inputs"]}
    try:
        torch.onnx.export(
            model.eval(),
            tuple(inputs),
            job["onnx"],
            input_names=list(free),
            output_names=[job["output"]],
            dynamic_axes={**free, job["output"]: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,  # needs nothing that toolchain optimum lacks; what tracing misses, the comparison finds
        )
    except Exception as error:
        raise InputError(f"torch cannot export the student: {short(error)}") from error


def _axis(name: str, axis: int) -> str:
    return "batch" if axis == 0 else f"{name}_{axis}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(distill)
