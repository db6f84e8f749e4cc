"""What a recipe's ``model`` names: an ONNX file, a Hugging Face directory, a factory, a language model, ...

Looks at names and small text files only; runs and imports nothing of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from compiler.recipe.source_section import SourceSection
from penstock.errors import ConfigError, InvalidInput

Kind = Literal["onnx", "huggingface", "torch", "program", "sklearn", "llm"]

MAX_CONFIG_BYTES = 16 * 1024**2  # label names of thousands of classes fit
CONFIG_FILE, POOLING_LIST = "config.json", "modules.json"
_WEIGHTS = ("*.safetensors", "*.bin")
_FILES: Mapping[str, tuple[Kind, str]] = {
    ".onnx": ("onnx", "an ONNX file"),
    ".pt2": ("program", "an ExportedProgram of torch"),
    ".gguf": ("llm", "a language model (GGUF)"),
    **dict.fromkeys((".joblib", ".pkl", ".pickle"), ("sklearn", "a pickled scikit-learn estimator")),
}

_ELSEWHERE: Mapping[str, str] = {
    ".pt": "weights without the model; write a factory that makes the module and loads them: 'file.py:factory'",
    ".pth": "weights without the model; write a factory that makes the module and loads them: 'file.py:factory'",
    ".ckpt": "a checkpoint; write a factory that makes the module and loads it: 'file.py:factory'",
    ".bin": "weights without the model; name the directory that also has config.json",
    ".safetensors": "weights without the model; name the directory that also has config.json, or a factory",
    ".h5": "a Keras model; convert it with tf2onnx and name the ONNX file",
    ".keras": "a Keras model; convert it with tf2onnx and name the ONNX file",
    ".pb": "a TensorFlow graph; convert it with tf2onnx and name the ONNX file",
    ".tflite": "a TensorFlow Lite model; convert it with tf2onnx and name the ONNX file",
    ".py": "a Python file; say which function makes the model: model = 'file.py:factory'",
    ".ort": "onnxruntime's own format, which cannot be changed any more; name the ONNX file it was made from",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model as the recipe names it, found.

    Attributes:
        location: the file or directory; for a factory the file that defines it, or ``base`` where it is installed in
            the toolchain.
        module: of a factory named ``module:factory``; "" where it was named by its file.
        factory: the function's name in it.
        base: the recipe's directory, on the path of factories.
        what: in words, for people.
    """

    kind: Kind
    location: Path
    base: Path
    what: str
    module: str = ""
    factory: str = ""


def detect(model: str, base: Path, section: SourceSection | None = None) -> Source:
    """Find out what ``model`` names, relative to ``base``.

    Args:
        section: its table of the recipe; ``framework`` settles what cannot be seen.

    Raises:
        InvalidInput: nothing of that name. ConfigError: something that is no model, with what to do.
    """
    section = section or SourceSection()
    path = base / model
    if path.is_dir():
        source = _directory(path, base, section)
    elif path.exists():
        source = _file(path, base, section)
    else:
        source = _factory(model, base, section)
    _check_framework(source, section, model)
    return source


def read_json(path: Path, *, limit_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        InvalidInput: missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > limit_bytes:
            raise InvalidInput(f"{path}: more than {limit_bytes} bytes; that is no configuration", field="model")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", field="model") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not a JSON object: {error}", field="model") from error


def architecture(config: Mapping[str, Any]) -> str:
    """Return the model class a Hugging Face configuration names; "" if none."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _directory(path: Path, base: Path, section: SourceSection) -> Source:
    if (path / "genai_config.json").is_file():
        return Source(kind="llm", location=path, base=base, what="a language model built for onnxruntime-genai")
    if (path / CONFIG_FILE).is_file() and any(any(path.glob(pattern)) for pattern in _WEIGHTS):
        return _hugging_face(path, base, section)
    graphs = sorted(path.glob("*.onnx"))
    if len(graphs) == 1:
        return Source(kind="onnx", location=graphs[0], base=base, what=f"the ONNX file of {path.name}")
    if (path / CONFIG_FILE).is_file():
        raise InvalidInput(
            f"model: {path} has {CONFIG_FILE}, but no weights (*.safetensors or *.bin); was the download complete?",
            field="model",
        )
    graphs_found = f"; it has {len(graphs)} ONNX files, name one of them" if graphs else ""
    raise InvalidInput(f"model: {path} is no Hugging Face directory (no {CONFIG_FILE}){graphs_found}", field="model")


def _hugging_face(path: Path, base: Path, section: SourceSection) -> Source:
    name = architecture(read_json(path / CONFIG_FILE))
    if name.endswith("ForCausalLM") and section.framework != "huggingface":
        return Source(kind="llm", location=path, base=base, what=f"a language model ({name})")
    pooled = ", with its pooling" if (path / POOLING_LIST).is_file() else ""
    return Source(
        kind="huggingface",
        location=path,
        base=base,
        what=f"a Hugging Face directory ({name or 'no class named'}{pooled})",
    )


def _file(path: Path, base: Path, section: SourceSection) -> Source:
    suffix = ".onnx" if section.framework == "onnx" else path.suffix.lower()
    if suffix in _FILES:
        kind, what = _FILES[suffix]
        return Source(kind=kind, location=path, base=base, what=what)
    known = "expected .onnx, .pt2, .joblib, .gguf, a Hugging Face directory, or 'file.py:factory'"
    advice = f" is {_ELSEWHERE[suffix]}" if suffix in _ELSEWHERE else f": {known}"
    raise ConfigError(f"model: {path.name}{advice}")


def _factory(model: str, base: Path, section: SourceSection) -> Source:
    place, colon, factory = model.rpartition(":")
    if not (colon and place and factory.isidentifier()):
        raise InvalidInput(f"model: {base / model}: no such file or directory{_hub_advice(model)}", field="model")
    if "//" in place:
        raise InvalidInput(f"model: {model!r} is an address; download it and name the file or directory", field="model")
    is_file = place.endswith(".py")
    location = base / place if is_file else _module_file(place, base)
    if is_file and not location.is_file():
        raise InvalidInput(f"model: {location}: no such file", field="model")
    if not is_file and not all(part.isidentifier() for part in place.split(".")):
        raise InvalidInput(f"model: {place!r} is neither a .py file nor a module's name", field="model")
    is_estimator = section.framework == "sklearn"
    return Source(
        kind="sklearn" if is_estimator else "torch",
        location=location,
        base=base,
        module="" if is_file else place,
        factory=factory,
        what=f"a {'scikit-learn estimator' if is_estimator else 'torch module'} made by {model}",
    )


def _module_file(module: str, base: Path) -> Path:
    """Return the file of a module below ``base``; ``base`` itself where it is not there, but installed with the
    framework.
    """
    below = base.joinpath(*module.split("."))
    for path in (below.with_suffix(".py"), below / "__init__.py"):
        if path.is_file():
            return path
    return base


def _hub_advice(model: str) -> str:
    parts = model.split("/")
    if len(parts) == 2 and all(part and not part.startswith(".") for part in parts):
        return (
            ". If it is a model of the Hugging Face hub, download it first (nothing is fetched while compiling): "
            f"hf download {model} --local-dir {parts[1]}, and name that directory"
        )
    return ". Expected an ONNX file, a Hugging Face directory, a .pt2, .joblib or .gguf file, or 'file.py:factory'"


def _check_framework(source: Source, section: SourceSection, model: str) -> None:
    """Check that a framework that was named is the one that was found."""
    found = "torch" if source.kind == "program" else source.kind
    if section.framework not in ("auto", found):
        raise ConfigError(
            f'source.framework: {section.framework!r} given, but {model} is {source.what}; leave it at "auto"'
        )
