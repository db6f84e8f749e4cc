"""What can be seen of a model without running or exporting it, and what it is therefore probably for, with the reason.

Guesses only: everything here ends in a recipe that its author reads.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compiler.progress import unwatched
from compiler.recipe.choices import Task
from compiler.recipe.source_section import SourceSection
from compiler.sources import detection, huggingface
from compiler.sources.detection import Source
from penstock.errors import ArtifactError, CompileError, ConfigError, InvalidInput
from penstock.policy.boxes import Layout
from penstock.wire.tensors import TensorSpec

Feeds = Literal["arrays", "text", "images"]

_EMBEDDING_WORDS = ("embedding", "hidden_state", "pooler", "features")
_PREFERRED = ("logits", "probabilities", "scores", "output")
_CLASSES_OF = frozenset({"text-classification", "image-classification", "audio-classification"})
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
_SHAPELESS = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
_MANY = 4  # times more boxes than figures of each
MAX_SOURCE_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a model shows.

    Attributes:
        output: the scored one; "" where it cannot be known, or there is no choice.
        why_task: the reason for the guess of the task, in words.
        layout: of boxes, for a detector.
        labels: names of the classes, where the model has them.
        feeds: what its data are before they become tensors.
        images: settings of ``[data.images]``, where the model says them.
        columns: the columns of each input that is not one column of its own name, where the model knows them.
        problems: what will be refused later, and is better known now.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    task: Task = "classification"
    why_task: str = ""
    output: str = ""
    layout: str = ""
    labels: tuple[str, ...] = ()
    feeds: Feeds = "arrays"
    images: Mapping[str, Any] = field(default_factory=dict)
    framework: str = ""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def look(source: Source) -> Seen:
    """Look at a model and say what can be seen of it.

    Raises:
        InvalidInput, CompileError: an ONNX file or a configuration that cannot be read.
    """
    match source.kind:
        case "onnx":
            return _onnx(source.location)
        case "huggingface":
            return _hugging_face(source.location)
        case "llm":
            return Seen(task="generation", why_task=f"it is {source.what}")
        case "sklearn":
            return Seen()
        case _:
            return _code(source)


def look_inside(source: Source) -> Seen:
    """Load a pickled estimator, which runs its author's code, and say what it knows of its inputs and classes.

    Raises:
        CompileError: it cannot be loaded or exported. MissingExtra: scikit-learn is not installed.
    """
    from compiler.sources import estimators  # imports scikit-learn

    with tempfile.TemporaryDirectory(prefix="penstock-look-") as scratch:
        section = SourceSection(allow_pickle=True)
        exported = estimators.export(source, section, Path(scratch), progress=unwatched, seed=0)
        seen = _onnx(exported.model)
    columns = {name: tuple(names) for name, names in exported.facts.get("columns", {}).items() if names != [name]}
    return replace(seen, labels=tuple(exported.facts.get("labels", ())), columns=columns)


def look_at_export(source: Source, exported: Path) -> Seen:
    """Look at a model that has been exported: its own files say more where they say anything, its graph the rest.

    Raises:
        InvalidInput, CompileError: as :func:`look`.
    """
    own = look(source)
    return own if own.outputs or source.kind == "huggingface" else _onnx(exported)


def _onnx(path: Path) -> Seen:
    from compiler.graph import files, zip_map  # imports onnx

    model = files.read(path, field="model")
    files.check_runnable(path, field="model")
    labels = zip_map.cut(model)
    with tempfile.TemporaryDirectory(prefix="penstock-look-") as scratch:
        if labels is not None:
            path = Path(scratch) / path.name
            files.write(model, path)
        inputs, outputs = _interface(path)
    scored, task, why = _guess(outputs, _operators(model.graph))
    firsts = {spec.shape[0] if spec.shape else -1 for spec in inputs}
    problems = [
        f"inputs have a fixed first dimension of {rows}: unless it can be freed, export them with a free one"
        for rows in firsts
        if len(firsts) == 1 and rows > 1
    ]
    return Seen(
        inputs=inputs,
        outputs=outputs,
        task=task,
        why_task=why,
        output=scored.name if len(outputs) > 1 else "",
        layout=(layout_of(scored) or "") if task == "detection" else "",
        labels=labels or (),
        problems=tuple(problems),
    )


def _interface(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return what a model takes and gives.

    Raises:
        CompileError: onnxruntime does not load it, or it gives what cannot be served.
    """
    from penstock.runtime import EngineOptions, load_engine

    try:
        engine = load_engine("onnx", path, EngineOptions())
    except ArtifactError as error:
        raise CompileError(f"model: {error.message}") from error
    try:
        return engine.inputs, engine.outputs
    finally:
        engine.close()


def _guess(outputs: Sequence[TensorSpec], made_by: Mapping[str, str]) -> tuple[TensorSpec, Task, str]:
    """Guess the scored output and the task, and say why: scores of classes before embeddings before single numbers.

    Args:
        made_by: the operator behind each output.
    """

    def words(spec: TensorSpec) -> str:
        return f"output {spec.name} is {spec.datatype}{list(spec.shape)}"

    floats = [spec for spec in outputs if spec.datatype.startswith("FP")]
    named = sorted(floats, key=lambda spec: _PREFERRED.index(spec.name) if spec.name in _PREFERRED else len(_PREFERRED))
    for spec in named:
        is_embedding = any(word in spec.name.lower() for word in _EMBEDDING_WORDS)
        if len(spec.shape) == 2 and (spec.shape[1] >= 2 or spec.shape[1] == -1) and not is_embedding:
            classes = f"each of {spec.shape[1]} classes" if spec.shape[1] > 0 else "each class"
            return spec, "classification", f"{words(spec)}: a score for {classes}"
        if spec.shape[1:] == (1,) and made_by.get(spec.name) == "Sigmoid":
            return spec, "classification", f"{words(spec)} of a Sigmoid: the second of two classes"
    for spec in named:
        if len(spec.shape) == 4:
            return spec, "segmentation", f"{words(spec)}: scores of classes for each pixel"
        if len(spec.shape) == 3 and made_by.get(spec.name) == "Softmax":
            return spec, "ocr", f"{words(spec)} of a Softmax: scores of characters for each step"
        if layout_of(spec):
            return spec, "detection", f"{words(spec)}, which looks like boxes"
    for spec in named:
        if len(spec.shape) == 3 or any(word in spec.name.lower() for word in _EMBEDDING_WORDS):
            return spec, "embedding", f"{words(spec)}, which looks like embeddings"
    for spec in named:
        if len(spec.shape) == 1 or spec.shape[1:] == (1,):
            return spec, "regression", f"{words(spec)}: one number a row"
    return outputs[0], "classification", f"{words(outputs[0])}; what it means cannot be seen"


def layout_of(spec: TensorSpec) -> Layout | None:
    """Guess how boxes are laid out in an output; None where it does not look like boxes."""
    if len(spec.shape) != 3 or spec.shape[0] not in (-1, 1):
        return None
    rows, columns = spec.shape[1:]
    if columns == 6:
        return "rows"
    if 4 < rows < columns / _MANY:
        return "yolo"
    return "yolo-objectness" if 5 < columns < rows / _MANY else None


def _operators(graph: Any) -> dict[str, str]:
    """Return the operator that makes each output, apart from what only changes its shape."""
    makes = {name: node for node in graph.node for name in node.output}
    found = {}
    for output in graph.output:
        node = makes.get(output.name)
        while node is not None and node.op_type in _SHAPELESS and node.input:
            node = makes.get(node.input[0])
        if node is not None:
            found[output.name] = node.op_type
    return found


def _hugging_face(path: Path) -> Seen:
    config = detection.read_json(path / detection.CONFIG_FILE)
    name = detection.architecture(config)
    feeds: Feeds = "text" if (path / "tokenizer.json").is_file() else "arrays"
    images: Mapping[str, Any] = {}
    shown = config.get("encoder") or config  # of a VisionEncoderDecoder
    if (path / "preprocessor_config.json").is_file() and "image_size" in shown:
        feeds, images = "images", _image_settings(detection.read_json(path / "preprocessor_config.json"))
    try:
        task = huggingface.task_of(config)
    except ConfigError as error:
        return Seen(feeds=feeds, images=images, problems=(error.message,))
    if huggingface.is_generating(config):
        takes: Feeds = "arrays" if task == "automatic-speech-recognition" else feeds
        why = f"{name} is for {task}, by greedy search"
        return Seen(task="seq2seq", why_task=why, feeds=takes, images=images)
    labels = huggingface.labels_of(config)
    is_one_number = config.get("problem_type") == "regression" or len(config.get("id2label") or "12") == 1
    ours: Task = "classification" if task in _CLASSES_OF and not is_one_number else "regression"
    problems: tuple[str, ...] = ()
    if task == huggingface.FEATURES:
        ours = "embedding"
    elif task not in _CLASSES_OF:
        problems = (f"task {task} is exported, but has no certificate: its outputs are no scores of classes of a row",)
    output = {"classification": "logits", "regression": "logits"}.get(ours, "")
    if ours == "embedding":
        output = "sentence_embedding" if (path / detection.POOLING_LIST).is_file() else "last_hidden_state"
    return Seen(
        task=ours,
        why_task=f"{name} is for {task}",
        output=output,
        labels=labels,
        feeds=feeds,
        images=images,
        problems=problems,
    )


def _image_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``[data.images]`` from a preprocessor_config.json, as transformers documents its fields; only what it
    says."""
    settings: dict[str, Any] = {}
    size, crop = config.get("size"), config.get("crop_size")
    if config.get("do_resize", True) and isinstance(size, Mapping):
        settings["resize"] = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    elif config.get("do_resize", True) and isinstance(size, int):
        settings["resize"] = size
    if config.get("resample") in _RESAMPLE:
        settings["resample"] = _RESAMPLE[config["resample"]]
    if config.get("do_center_crop") and isinstance(crop, Mapping):
        settings["center_crop"] = [crop.get("height"), crop.get("width")]
    mean, std = config.get("image_mean"), config.get("image_std")
    if config.get("do_normalize", True) and isinstance(mean, list) and isinstance(std, list):
        settings["normalize"] = {"mean": mean, "std": std}
    return {name: value for name, value in settings.items() if value != [None, None]}


def _code(source: Source) -> Seen:
    """Tell the framework of Python code by its imports; the code is not run."""
    imported = _imports(source.location) if source.location.suffix == ".py" else set()
    if "sklearn" in imported and "torch" not in imported:
        return Seen(
            framework="sklearn",
            why_task=f"{source.location.name} imports sklearn",
        )
    return Seen(why_task="Python code is not run to look at it")


def _imports(path: Path) -> set[str]:
    try:
        if path.stat().st_size > MAX_SOURCE_BYTES:
            raise InvalidInput(f"model: {path} is larger than any Python file should be", field="model")
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise InvalidInput(f"model: {path} cannot be read as Python: {error}", field="model") from error
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names
