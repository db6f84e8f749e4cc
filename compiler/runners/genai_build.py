"""Toolchain program: a language model (Hugging Face directory or GGUF file) into a directory for onnxruntime-genai.

Wraps onnxruntime-genai's own model builder, which does the conversion; adds what it lacks: GGUF files read through
transformers, refusals in plain words, counts of what was quantized, and no trace of where or when it ran in the result.
Runs offline and executes no code of a model's repository.

Job: ``source``, ``out`` (an empty directory), ``work`` (scratch, emptied by the caller), ``precision``
(int4/int8/fp16/fp32), ``provider`` (cpu/cuda), ``options`` (the builder's extra options, name to text), ``keep_float``
(names of MatMul nodes).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from protocol import InputError, progress, serve

MODEL_FILE, CONFIG_FILE = "model.onnx", "genai_config.json"
_QUANTIZED_OPERATORS = ("MatMulNBits", "GatherBlockQuantized", "QMoE")
_ARCHITECTURE = re.compile(r'config\.architectures\[0\] == "(\w+)"')


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Convert; the result says what was made, from what, and with which versions."""
    source, out, work = Path(job["source"]), Path(job["out"]), Path(job["work"])
    facts: dict[str, Any] = {}
    if source.is_file():
        progress(0.0, "reading GGUF")
        source, facts["gguf"] = _from_gguf(source, work / "hf"), source.name
    progress(0.1, "loading the builder")
    facts["architecture"] = _check_architecture(source)
    _run_builder(job, source, out, work)
    progress(0.9, "counting")
    facts |= _counted(out / MODEL_FILE, job["keep_float"])
    facts["context_length"] = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))["model"]["context_length"]
    facts["versions"] = _versions()
    return facts


def _check_architecture(source: Path) -> str:
    """The model's architecture, if the builder knows it. Its own refusal names the directory instead."""
    from onnxruntime_genai.models import builder

    architecture = _config(source)["architectures"][0]
    known = set(_ARCHITECTURE.findall(Path(builder.__file__).read_text(encoding="utf-8")))
    if architecture not in known:
        names = ", ".join(sorted(known))
        raise InputError(
            f"architecture {architecture} is not one that onnxruntime-genai {_versions()['onnxruntime-genai']} can "
            f"build; it can: {names}"
        )
    return str(architecture)


def _run_builder(job: dict[str, Any], source: Path, out: Path, work: Path) -> None:
    from onnxruntime_genai.models import builder

    cache = work / "builder"
    options = dict(job["options"]) | {"hf_token": "false", "hf_remote": "false"}  # offline, and none of its code
    if job["keep_float"]:
        options["nodes_to_exclude"] = ",".join(job["keep_float"])
    place = (str(source), str(out), job["precision"], job["provider"], str(cache))
    parsed = builder.parse_extra_options(None, *place, [f"{name}={value}" for name, value in options.items()])
    progress(0.2, "converting and quantizing")
    builder.create_model(None, *place, **parsed)


def _from_gguf(source: Path, target: Path) -> Path:
    """The same model as a Hugging Face directory, weights dequantized to float32.

    transformers' reader knows how each architecture's tensors are permuted and how its tokenizer is stored, and every
    quantization of the format; the builder's own takes float files only, and no tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype="float32")
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise InputError(
            f"{source.name}: transformers {_versions()['transformers']} cannot read this GGUF file: {error}. "
            "Give the Hugging Face directory that it was made from"
        ) from error
    target.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _counted(path: Path, keep_float: list[str]) -> dict[str, Any]:
    """Bytes of quantized and of other weights, and how many nodes of each kind compute on which.

    Raises:
        InputError: a node that was to stay float does not exist, or was quantized all the same.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    quantized = {
        name
        for node in graph.node
        if node.op_type in _QUANTIZED_OPERATORS
        for name in node.input
        if name in weights and weights[name].data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    }
    left = {node.name for node in graph.node if node.op_type == "MatMul"}
    if missing := sorted(set(keep_float) - left):
        raise InputError(f"no MatMul node {missing[0]!r} to keep in float; there are {len(left)} float ones: {left}")
    kinds: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in (*_QUANTIZED_OPERATORS, "MatMul", "Gather", "GroupQueryAttention"):
            kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
    sizes = {name: _bytes_of(tensor) for name, tensor in weights.items()}
    return {
        "quantized_weight_bytes": sum(sizes[name] for name in quantized),
        "other_weight_bytes": sum(size for name, size in sizes.items() if name not in quantized),
        "nodes": dict(sorted(kinds.items())),
    }


def _bytes_of(tensor: Any) -> int:
    length = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), None)
    return len(tensor.raw_data) if length is None else length


def _config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("onnxruntime-genai", "transformers", "torch", "onnx")}


if __name__ == "__main__":
    serve(build)
