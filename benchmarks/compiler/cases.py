"""The cases: models that are really trained, on data that ships with what is installed, below ``out/bench``; and those
of ``real_cases`` and ``source_cases``.

Made once and reused while the code that makes them is the same: their directories are named by its digest.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from benchmarks.compiler import real_cases, source_cases
from benchmarks.compiler.case import Case, case_directory, dealt, write_data
from benchmarks.compiler.sentences import TOPICS, sentences
from compiler import sources
from compiler.sources import SourceSection
from examples.sentence_encoder.fetch import fetch
from penstock import toolchain
from penstock.runtime import EngineOptions, load_engine

MAX_TOKENS = 64
_HERE = Path(__file__).parent
_TRAINING: Mapping[str, Any] = {
    "max_iter": 100, "random_state": 0, "alpha": 1e-3, "learning_rate_init": 1e-2, "tol": 1e-3, "n_iter_no_change": 5
}  # fmt: skip
_MODEL, _DATA = "model.onnx", "data.npz"
_HEAD_C = 30.0
_GREY = 16  # the largest value of a pixel of scikit-learn's digits
_CNN_SIDE = 4  # a pixel becomes a square of so many: 32 x 32


def cnn(root: Path) -> Case:
    """Make the case of digits by a ResNet of 2.8 M parameters, trained here by torch."""
    pixels, y = datasets.load_digits(return_X_y=True)
    rows = dealt({"train": 700, "tune": 300, "certify": 200, "test": -1}, len(y), seed=0)
    images = np.kron((pixels.reshape(-1, 1, 8, 8) / _GREY).astype(np.float32), np.ones((1, 1, _CNN_SIDE, _CNN_SIDE)))
    images, y = images.astype(np.float32), y.astype(np.int64)
    job = {"seed": 0, "threads": 2, "widths": [32, 64, 128, 256], "epochs": 8}
    directory = case_directory(root, "cnn", [_HERE / "train_cnn.py", job])

    def make() -> None:
        np.savez(directory / "train.npz", x=images[rows["train"]], y=y[rows["train"]])
        job.update(data=str(directory / "train.npz"), model=str(directory / _MODEL))
        toolchain.call("torch", _HERE / "train_cnn.py", job)

    once(directory / _MODEL, make)
    uses = {"fit": rows["train"][:300], "tune": rows["tune"], "certify": rows["certify"], "test": rows["test"]}
    write_data(directory / _DATA, {"x": images}, y, uses)
    return _case(directory, "cnn", "ResNet, digits at 32x32", kind="cnn")


def digits(root: Path) -> Case:
    """Make the case of digits by an MLP."""
    x, y = datasets.load_digits(return_X_y=True)
    return _mlp(root, "digits-mlp", "MLP 64-128-64-10, digits", x / _GREY, y, (500, 300, 300), hidden=(128, 64))


def wine(root: Path) -> Case:
    """Make the case of wine by an MLP, features standardised outside."""
    x, y = datasets.load_wine(return_X_y=True)
    return _mlp(root, "wine-mlp", "MLP 13-32-16-3, wine", _standard(x), y, (60, 36, 20))


def breast_cancer(root: Path) -> Case:
    """Make the case of breast cancer by an MLP, features standardised outside."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return _mlp(root, "cancer-mlp", "MLP 30-32-16-2, breast cancer", _standard(x), y, (170, 100, 60))


def raw_features(root: Path) -> Case:
    """Make the case of breast cancer as measured: one feature is a hundred thousand times another, and the model
    standardises inside.
    """
    x, y = datasets.load_breast_cancer(return_X_y=True)
    what = "MLP 30-32-16-2, breast cancer, features as measured"
    return _mlp(root, "cancer-raw", what, x, y, (170, 100, 60), fold=True)


def spiky(root: Path) -> Case:
    """Make the case of digits with a flickering exposure meter as a further feature: mostly below 1, now and then
    thousands.
    """
    pixels, y = datasets.load_digits(return_X_y=True)
    source = np.random.default_rng(7)
    meter = np.where(source.random(len(y)) < 0.01, source.uniform(1e3, 4e3, len(y)), source.random(len(y)))
    x = np.column_stack([pixels / _GREY, meter])
    what = "MLP 65-128-64-10, digits and a feature with spikes"
    return _mlp(root, "digits-spiky", what, x, y, (500, 300, 300), hidden=(128, 64), quiet_column=-1)


def encoder(root: Path) -> Case:
    """Make the case of the real MiniLM as a sentence encoder."""
    directory, tokens, labels = _minilm(root)
    counts = {"fit": 100, "tune": 200, "certify": 50, "test": 400}
    write_data(directory / _DATA, tokens, labels, dealt(counts, len(labels), seed=1))
    return _case(
        directory,
        "minilm",
        "MiniLM, sentence embeddings",
        kind="encoder",
        task="embedding",
        output="",
        max_drop=0.1,
        shown_drop=0.15,
    )


def classifier(root: Path) -> Case:
    """Make the case of MiniLM with a linear head: which part of Python's library a sentence describes."""
    base, tokens, labels = _minilm(root)
    counts = {"train": 800, "tune": 300, "certify": 300, "test": 500}
    rows = dealt(counts, len(labels), seed=2)
    directory = case_directory(root, "minilm-head", [_HERE / "sentences.py", {"seed": 2, "C": _HEAD_C, **counts}])

    def make() -> None:
        session = load_engine("onnx", base / _MODEL, EngineOptions(threads=2))
        picked = {name: values[rows["train"]] for name, values in tokens.items()}
        parts = [
            session.run({name: values[start : start + 32] for name, values in picked.items()})
            for start in range(0, counts["train"], 32)
        ]
        name = session.outputs[0].name
        head = LogisticRegression(C=_HEAD_C, max_iter=2000).fit(
            np.concatenate([part[name] for part in parts]), labels[rows["train"]]
        )
        _with_head(base / _MODEL, name, head, directory / _MODEL)

    once(directory / _MODEL, make)
    uses = {"fit": rows["train"][:100], "tune": rows["tune"], "certify": rows["certify"], "test": rows["test"]}
    write_data(directory / _DATA, tokens, labels, uses)
    return _case(directory, "minilm-head", f"MiniLM with a head, {len(TOPICS)} topics", kind="encoder")


CASES: Mapping[str, Callable[[Path], Case]] = {
    "cnn": cnn,
    "digits-mlp": digits,
    "wine-mlp": wine,
    "cancer-mlp": breast_cancer,
    "cancer-raw": raw_features,
    "digits-spiky": spiky,
    "minilm-head": classifier,
    "minilm": encoder,
    **real_cases.CASES,
    **source_cases.CASES,
}


def _case(directory: Path, name: str, what: str, *, kind: str, output: str = "logits", **more: Any) -> Case:
    model = directory / _MODEL
    if not output:
        output = load_engine("onnx", model, EngineOptions(threads=1)).outputs[0].name
    more.setdefault("task", "classification")
    more.setdefault("is_transformer", kind == "encoder")
    return Case(name=name, what=what, kind=kind, model=model, data=directory / _DATA, output=output, **more)


def once(model: Path, make: Callable[[], None]) -> None:
    """Make a model unless it is there; an interrupted making leaves none."""
    if not model.exists():
        try:
            make()
        except BaseException:
            model.unlink(missing_ok=True)
            raise


def _standard(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((x - x.mean(0)) / (x.std(0) + 1e-6))


def _mlp(
    root: Path,
    name: str,
    what: str,
    x: NDArray[Any],
    y: NDArray[Any],
    counts: tuple[int, int, int],
    *,
    hidden: tuple[int, ...] = (32, 16),
    fold: bool = False,
    quiet_column: int | None = None,
) -> Case:
    """Train an MLP by scikit-learn.

    Args:
        counts: rows to train on (and find ranges from), to tune on and to certify with; the rest are tested.
        fold: train on standardised features, and let the first layer take them as they are.
        quiet_column: a feature that is clipped while training, and whose weights are all but removed: the model learns
            to do without. The tested rows are those where it is quiet: what its spikes did to the ranges is the point.
    """
    fit, tune, certify = counts
    rows = dealt({"fit": fit, "tune": tune, "certify": certify, "test": -1}, len(y), seed=5)
    inputs, y = x.astype(np.float32), y.astype(np.int64)
    mean, std = (x[rows["fit"]].mean(0), x[rows["fit"]].std(0) + 1e-6) if fold else (0.0, 1.0)
    seen = np.minimum(inputs, 2.0) if quiet_column is not None else (inputs - mean) / std
    labels = np.eye(2, dtype=int)[y] if y.max() == 1 else y  # two columns of logits for two classes as well
    trained = MLPClassifier(hidden, **_TRAINING).fit(seen[rows["fit"]], labels[rows["fit"]])
    if fold:
        first = trained.coefs_[0]
        trained.intercepts_[0] = trained.intercepts_[0] - (mean / std) @ first
        trained.coefs_[0] = first / np.asarray(std)[:, None]
    if quiet_column is not None:
        trained.coefs_[0][quiet_column] *= 1e-3
        rows = {use: part if use == "fit" else part[inputs[part, quiet_column] < 2] for use, part in rows.items()}
    directory = case_directory(root, name, [Path(__file__)])
    onnx.save(_mlp_graph(trained), str(directory / _MODEL))
    write_data(directory / _DATA, {"x": inputs}, y, rows)
    return _case(directory, name, what, kind="small")


def mlp(inputs: NDArray[Any], labels: NDArray[Any], hidden: tuple[int, ...]) -> onnx.ModelProto:
    """Train an MLP by scikit-learn: x FP32 [N, features] -> logits FP32 [N, classes], three classes or more."""
    return _mlp_graph(MLPClassifier(hidden, **_TRAINING).fit(inputs, labels))


def _mlp_graph(trained: MLPClassifier) -> onnx.ModelProto:
    """Build x FP32 [N, features] -> logits FP32 [N, classes]: Gemm and Relu in turn."""
    nodes, constants, last = [], [], "x"
    layers = list(zip(trained.coefs_, trained.intercepts_, strict=True))
    for index, (weight, bias) in enumerate(layers):
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"b{index}"))
        is_last = index == len(layers) - 1
        result = "logits" if is_last else f"z{index}"
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [result], name=f"fc{index}"))
        if not is_last:
            nodes.append(helper.make_node("Relu", [result], [f"h{index}"], name=f"relu{index}"))
            last = f"h{index}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", layers[0][0].shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", layers[-1][0].shape[1]])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def minilm(root: Path) -> Path:
    """Return a directory with MiniLM as ``model.onnx`` and its ``tokenizer.json``."""
    directory = case_directory(root, "minilm", [_HERE / "sentences.py"])

    def make() -> None:
        source = sources.detect("minilm", fetch(root).parent, SourceSection())
        scratch = directory / "export"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        exported = sources.export(source, SourceSection(), scratch, progress=lambda share, note: None, seed=0)
        (scratch / "tokenizer.json").replace(directory / "tokenizer.json")
        exported.model.replace(directory / _MODEL)
        shutil.rmtree(scratch)

    once(directory / _MODEL, make)
    return directory


def _minilm(root: Path) -> tuple[Path, dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Return where MiniLM is as ONNX, tokens of all sentences by input, and their topics."""
    from tokenizers import Tokenizer  # type: ignore[import-untyped, unused-ignore]

    directory = minilm(root)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS)
    found = sentences()
    encoded = tokenizer.encode_batch([sentence for sentence, _ in found])
    tokens = {
        "input_ids": np.array([row.ids for row in encoded], np.int64),
        "attention_mask": np.array([row.attention_mask for row in encoded], np.int64),
        "token_type_ids": np.array([row.type_ids for row in encoded], np.int64),
    }
    return directory, tokens, np.array([topic for _, topic in found], np.int64)


def _with_head(model: Path, embedding: str, head: LogisticRegression, out: Path) -> None:
    """Return the encoder with ``embedding @ W + b`` as its only output."""
    loaded = onnx.load(str(model))
    graph = loaded.graph
    graph.initializer.append(numpy_helper.from_array(head.coef_.T.astype(np.float32), "head.weight"))
    graph.initializer.append(numpy_helper.from_array(head.intercept_.astype(np.float32), "head.bias"))
    graph.node.append(helper.make_node("Gemm", [embedding, "head.weight", "head.bias"], ["logits"], name="head"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(head.intercept_)]))
    onnx.save(loaded, str(out))
