"""NNCF's accuracy-aware quantization of one case: a program for the environment that the benchmark makes for it.

``python nncf_quantize.py JOB`` with a JSON job; the model is written where the job says. Never imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime as ort

job = json.loads(sys.argv[1])
with np.load(job["data"]) as file:
    arrays = {name: file[name] for name in file.files}


def rows(use: str) -> list[dict[str, Any]]:
    """Yield one dict of inputs [1, ...] for each row, with its label as "y"."""
    columns = {name.removesuffix(f"_{use}"): values for name, values in arrays.items() if name.endswith(f"_{use}")}
    return [{name: values[row : row + 1] for name, values in columns.items()} for row in range(len(columns["y"]))]


def inputs(row: dict[str, Any]) -> dict[str, Any]:
    """Return a call of the model: what does not begin with a row in the graph has none here either."""
    shapes = job["shapes"]
    return {name: row[name] if shapes[name][:1] in ([-1], [1]) else np.asarray(row[name][0]) for name in shapes}


def answers(model: onnx.ModelProto, wanted: Iterable[dict[str, Any]]) -> tuple[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [(session.run([job["output"]], inputs(row))[0], row["y"]) for row in wanted]
    return np.concatenate([answer for answer, _ in found]), np.concatenate([label for _, label in found])


def accuracy(model: onnx.ModelProto, wanted: Iterable[dict[str, Any]]) -> tuple[float, list[float]]:
    """Return the metric, and its value for each row."""
    given, labels = answers(model, wanted)
    good = (given.argmax(1) == labels).astype(float)
    return float(good.mean()), list(good)


def neighbours_kept(model: onnx.ModelProto, wanted: Iterable[dict[str, Any]]) -> tuple[float, None]:
    """Compute the metric that penstock's gate has for embeddings: the nearest other row is still the nearest."""
    given, _ = answers(model, wanted)
    return float(np.mean(nearest(given) == reference)), None


def nearest(vectors: Any) -> Any:
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)


def tuning_rows(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the tuning rows; where they have no labels, the float model's answers are right."""
    found = rows("tune")
    if job["task"] == "classification" and not job["has_labels"]:
        given, _ = answers(model, found)
        return [{**row, "y": answer[None]} for row, answer in zip(found, given.argmax(1), strict=True)]
    return found


model = onnx.load(job["model"])
tuning = tuning_rows(model)
reference = nearest(answers(model, tuning)[0]) if job["task"] == "embedding" else None
kind = nncf.ModelType.TRANSFORMER if job["kind"] == "encoder" else None
calibration = nncf.Dataset(rows("fit"), inputs)
if job["task"]:
    quantized = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=calibration,
        validation_dataset=nncf.Dataset(tuning),
        validation_fn=neighbours_kept if job["task"] == "embedding" else accuracy,
        max_drop=job["max_drop"],
        model_type=kind,
    )
else:
    quantized = nncf.quantize(model, calibration_dataset=calibration, model_type=kind)
onnx.save(quantized, job["out"])
