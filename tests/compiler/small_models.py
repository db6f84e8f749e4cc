"""Small models that are really trained, on data that ships with scikit-learn, and the ONNX graphs they become."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper
from sklearn import datasets
from sklearn.neural_network import MLPClassifier

from compiler.passes.job import PassJob
from compiler.recipe import targets
from compiler.recipe.targets import Target
from penstock.process import machine
from tests.factories import onnx_model

Floats = NDArray[np.float32]
_TRAINING: Mapping[str, Any] = {
    "max_iter": 60, "random_state": 0, "alpha": 1e-3, "learning_rate_init": 1e-2, "tol": 1e-3, "n_iter_no_change": 5
}  # fmt: skip

HERE = machine.edge_target()
"""What answers are compared on: an x86 processor without VNNI saturates sums of weights that use all eight bits."""

needs_vnni = pytest.mark.skipif(HERE == machine.X86, reason="this processor saturates sums of 8-bit weights: no VNNI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A float model, rows to find ranges from, and rows to be judged by. Inputs FP32 [N, ...], labels int64 [N]."""

    model: onnx.ModelProto
    fit: Floats
    test: Floats
    labels: NDArray[np.int64]

    def accuracy(self, path: Path) -> float:
        return float(np.mean(run(path, self.test).argmax(1) == self.labels))


def run(model: Path | onnx.ModelProto, x: NDArray[Any]) -> Floats:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    found: Floats = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def graph(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    *,
    x: Sequence[int | str],
    y: Sequence[int | str],
    opset: int = 17,
    output: str = "logits",
) -> onnx.ModelProto:
    """A model from x FP32 to logits FP32."""
    model = onnx_model(nodes, constants, inputs={"x": x}, outputs={output: y}, opset=opset)
    onnx.checker.check_model(model)
    return model


def batches(x: NDArray[Any], size: int = 64, name: str = "x") -> Callable[[], Iterator[dict[str, NDArray[Any]]]]:
    return lambda: ({name: x[start : start + size]} for start in range(0, len(x), size))


def job(
    directory: Path,
    model: onnx.ModelProto,
    *,
    calibration: NDArray[Any] | None = None,
    target: str | Target = "x86-64-vnni",
    keep_float: Sequence[str] = (),
    **options: Any,
) -> PassJob:
    """A job in a new folder of ``directory``."""
    out = directory / f"job{len(list(directory.glob('job*')))}"
    out.mkdir(parents=True)
    onnx.save(model, str(directory / "float.onnx"))
    return PassJob(
        source=directory / "float.onnx",
        out=out,
        target=targets.resolve(target, here="x86-64-vnni") if isinstance(target, str) else target,
        options=options,
        calibration=None if calibration is None else batches(calibration),
        keep_float=frozenset(keep_float),
    )


def mlp_graph(classifier: MLPClassifier, *, matmul: bool = False) -> onnx.ModelProto:
    """A scikit-learn MLP of ReLUs as fc0, relu0, fc1, ...: Gemms, or MatMuls with Adds."""
    nodes, constants, last = [], {}, "x"
    layers = list(zip(classifier.coefs_, classifier.intercepts_, strict=True))
    for index, (weight, bias) in enumerate(layers):
        constants[f"w{index}"], constants[f"b{index}"] = weight.astype(np.float32), bias.astype(np.float32)
        result = "logits" if index == len(layers) - 1 else f"z{index}"
        if matmul:
            nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"], name=f"fc{index}"))
            nodes.append(helper.make_node("Add", [f"m{index}", f"b{index}"], [result], name=f"bias{index}"))
        else:
            names = [last, f"w{index}", f"b{index}"]
            nodes.append(helper.make_node("Gemm", names, [result], name=f"fc{index}"))
        if result != "logits":
            nodes.append(helper.make_node("Relu", [result], [f"h{index}"], name=f"relu{index}"))
            last = f"h{index}"
    return graph(nodes, constants, x=["n", layers[0][0].shape[0]], y=["n", layers[-1][0].shape[1]])


@cache
def mlp(name: str, *, raw: bool = False) -> Trained:
    """An MLP for "digits", "wine" or "breast_cancer". ``raw``: it takes features as measured, standardised inside."""
    x, y, cut, classifier = _classifier(name)
    mean, std = _scale(x[:cut])
    classifier = copy.deepcopy(classifier)
    if raw:
        first = classifier.coefs_[0]
        classifier.intercepts_[0] = classifier.intercepts_[0] - (mean / std) @ first
        classifier.coefs_[0] = first / std[:, None]
    values = x if raw else ((x - mean) / std).astype(np.float32)
    return Trained(model=mlp_graph(classifier), fit=values[:cut], test=values[cut:], labels=y[cut:].astype(np.int64))


def _scale(x: Floats) -> tuple[Floats, Floats]:
    return x.mean(0), x.std(0) + 1e-6


@cache
def _classifier(name: str) -> tuple[Floats, NDArray[np.int64], int, MLPClassifier]:
    """Shuffled features and labels, how many rows it was trained on, and the MLP, which takes standardised features."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(5).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    cut = len(x) // 2
    mean, std = _scale(x[:cut])
    labels = np.eye(y.max() + 1, dtype=int)[y] if y.max() == 1 else y  # two columns of logits for two classes as well
    return x, y, cut, MLPClassifier((32, 16), **_TRAINING).fit((x[:cut] - mean) / std, labels[:cut])


@cache
def spiky() -> Trained:
    """Digits with one more feature, a flickering exposure meter: mostly about 1, now and then thousands.

    The MLP is trained on it as it comes, and learns to do without.
    """
    pixels, y = datasets.load_digits(return_X_y=True)
    source = np.random.default_rng(7)
    order = source.permutation(len(pixels))
    meter = np.where(
        source.random(len(pixels)) < 0.01, source.uniform(1e3, 4e3, len(pixels)), source.random(len(pixels))
    )
    x = np.column_stack([pixels / 16, meter])[order].astype(np.float32)
    y = y[order]
    clipped = np.minimum(x, 2.0)  # trained on rows without spikes
    classifier = MLPClassifier((32, 16), **_TRAINING).fit(clipped[:900], y[:900])
    classifier.coefs_[0][-1] *= 1e-3  # what it learned of the meter's noise
    test = x[900:]
    quiet = test[:, -1] < 2
    return Trained(model=mlp_graph(classifier), fit=x[:900], test=test[quiet], labels=y[900:][quiet].astype(np.int64))


@cache
def cnn() -> Trained:
    """Digits by two convolutions whose filters are principal components of patches, and ridge regression."""
    pixels, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(pixels))
    x = (pixels[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    y = y[order]
    first = _filters(x[:900], 16)
    middle = np.maximum(_convolved(x[:900], first), 0)
    constants = {
        "f0": first,
        "c0": np.zeros(16, np.float32),
        "f1": _filters(middle, 32),
        "c1": np.zeros(32, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "f0", "c0"], ["a0"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "f1", "c1"], ["a1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
    ]
    trunk = graph(nodes, constants, x=["n", 1, 8, 8], y=["n", 512], output="f")
    features = run(trunk, x)
    centred = features[:900] - features[:900].mean(0)
    weight = np.linalg.solve(centred.T @ centred + 10 * np.eye(512), centred.T @ (np.eye(10)[y[:900]] - 0.1))
    constants |= {"w": weight.astype(np.float32), "b": (0.1 - features[:900].mean(0) @ weight).astype(np.float32)}
    nodes.append(helper.make_node("Gemm", ["f", "w", "b"], ["logits"], name="head"))
    model = graph(nodes, constants, x=["n", 1, 8, 8], y=["n", 10])
    return Trained(model=model, fit=x[:900], test=x[900:], labels=y[900:].astype(np.int64))


def _patches(x: Floats) -> Floats:
    """[N, H, W, C * 9] of 3x3 patches with zeros around."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    flat: Floats = view.transpose(0, 2, 3, 1, 4, 5).reshape(*x.shape[:1], *x.shape[2:], -1)
    return flat


def _filters(x: Floats, count: int) -> Floats:
    """[count, C, 3, 3]: principal components, each with both signs so that a ReLU keeps either half."""
    flat = _patches(x).reshape(-1, x.shape[1] * 9)
    flat = flat[:: max(1, len(flat) // 5000)]
    _, _, components = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    both = np.concatenate([components[: count // 2], -components[: count // 2]])
    found: Floats = both.reshape(count, x.shape[1], 3, 3).astype(np.float32)
    return found


def _convolved(x: Floats, filters: Floats) -> Floats:
    found: Floats = (_patches(x) @ filters.reshape(len(filters), -1).T).transpose(0, 3, 1, 2)
    return found
