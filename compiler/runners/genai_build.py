"""Toolchain program: a language model (Hugging Face directory or GGUF file) into a directory for onnxruntime-genai.

Wraps onnxruntime-genai's own model builder, which does the conversion; adds what it lacks: GGUF files read through
transformers, refusals in plain words, counts of what was quantized, and no trace of where or when it ran in the result.
Runs offline and executes no code of a model's repository.

Job: ``source``, ``out`` (an empty directory), ``work`` (scratch, emptied by the caller), ``precision``
(int4/int8/fp16/fp32), ``provider`` (cpu/cuda), ``options`` (the builder's extra options, name to text), ``keep_float``
(names of MatMul nodes), ``chats`` and ``chats_at`` (see ``chat_prompts.py``).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from chat_prompts import prompts
from protocol import InputError, progress, serve

MODEL_FILE, CONFIG_FILE = "model.onnx", "genai_config.json"
_QUANTIZED_OPERATORS = ("MatMulNBits", "GatherBlockQuantized", "QMoE")
_FIRST_STEP = """
import json, sys, numpy, onnxruntime_genai
model = onnxruntime_genai.Model(sys.argv[1])
tokenizer = onnxruntime_genai.Tokenizer(model)
generator = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
generator.append_tokens(numpy.array([0], dtype=numpy.int32))
if not numpy.isfinite(generator.get_logits()).all():
    raise ValueError("its first logits are NaN or infinite")
print(json.dumps([[int(token) for token in tokenizer.encode(text)] for text in sys.argv[2:]]))
"""
_SAMPLES = (
    "def main(argv):\n    print('Hello, world!', 3.14159)\n",
    "na\u00efve caf\u00e9 \u2192 \u65e5\u672c\u8a9e \U0001f642",
)
_BITS = {"int4": 4, "int8": 8}
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
    facts |= _counted(out / MODEL_FILE, job)
    if job["provider"] == "cpu":
        facts |= _check_runs(out, job["options"])
    facts["chats"] = _chats(out, job)
    facts["context_length"] = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))["model"]["context_length"]
    facts["versions"] = _versions()
    return facts


def _check_architecture(source: Path) -> str:
    """Return the model's architecture, if the builder knows it. Its own refusal names the directory instead."""
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
    try:
        builder.create_model(None, *place, **parsed)
    except ValueError as error:
        if "cannot reshape array" not in str(error):
            raise
        raise InputError(
            f"algorithm {options['algo_config']} packs zero points in pairs, and rows of this model have an odd number "
            f"of blocks of {options['block_size']} weights; use a smaller block_size, or the algorithm default"
        ) from error


def _check_runs(out: Path, options: dict[str, str]) -> dict[str, Any]:
    """Run the tokenizer and one step of the built model, in a process of its own.

    Some that the builder writes without a word cannot be loaded (tied embeddings without symmetric blocks), or fail or
    crash at the first token (blocks longer than a row). And the engine, which has a tokenizer of its own, reads some
    tokenizer.json files differently, or as nonsense.
    """
    from transformers import AutoTokenizer

    child = subprocess.run(
        [sys.executable, "-s", "-c", _FIRST_STEP, str(out), *_SAMPLES], capture_output=True, text=True, check=False
    )
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"it died with status {child.returncode}"]
        raise InputError(
            f"the builder made a model that its own engine cannot run: {said[-1][:400]}. Of these options some do not "
            f"suit this model: {', '.join(f'{name} {value}' for name, value in sorted(options.items()))}; try smaller "
            "blocks, or symmetric = true"
        )
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    agrees = [
        tokenizer(text)["input_ids"] == found for text, found in zip(_SAMPLES, json.loads(child.stdout), strict=True)
    ]
    if not agrees[0]:
        raise InputError(
            "the engine's own tokenizer splits plain text into other tokens than transformers does, so every answer "
            f"would be wrong; onnxruntime-genai {_versions()['onnxruntime-genai']} does not support this tokenizer "
            f"({type(tokenizer).__name__})"
        )
    return {"tokenizer_agrees_beyond_ascii": agrees[1]}


def _chats(out: Path, job: dict[str, Any]) -> list[list[int] | None] | None:
    from transformers import AutoTokenizer

    return prompts(AutoTokenizer.from_pretrained(out, local_files_only=True), job["chats"], job["chats_at"])


def _from_gguf(source: Path, target: Path) -> Path:
    """Write the same model as a Hugging Face directory, weights dequantized to float32.

    transformers' reader knows how each architecture's tensors are permuted and how its tokenizer is stored, and every
    quantization of the format; the builder's own takes float files only, and no tokenizer. Its ``from_pretrained`` asks
    for accelerate, which the reading itself does not need.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "local_files_only": True}
    try:
        tokenizer = _gguf_tokenizer(source, place)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**place))
        weights = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model)["tensors"]
        missing = model.load_state_dict(weights, strict=False).missing_keys
    except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        raise InputError(
            f"{source.name}: transformers {_versions()['transformers']} cannot read this GGUF file: {error}. "
            "Give the Hugging Face directory that it was made from"
        ) from error
    if lost := sorted(set(missing) - {"lm_head.weight"}):
        raise InputError(f"{source.name}: {len(lost)} weights are not in the file, the first {lost[0]!r}; is it whole?")
    if "lm_head.weight" in missing:
        model.config.tie_word_embeddings = True
    model.tie_weights()
    target.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _gguf_tokenizer(source: Path, place: dict[str, Any]) -> Any:
    """Return the file's tokenizer: its own special tokens, and one for the beginning of a text exactly where it says
    so.

    transformers' readers ignore some of that, or put tokens of other models in. And it is of no named class: the engine
    takes a byte-level tokenizer for SentencePiece when it is called a Llama's.
    """
    from gguf import GGUFReader
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    reader = GGUFReader(str(source))

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(f"tokenizer.ggml.{name}")
        return default if found is None else found.contents()

    tokens = field("tokens")
    tokenizer = AutoTokenizer.from_pretrained(**place)
    wanted = bool(field("add_bos_token", field("model") == "llama"))  # as llama.cpp has it
    if _begins(tokenizer) is not wanted:
        tokenizer.add_bos_token = wanted
        if _begins(tokenizer) is not wanted:
            raise ValueError(f"its tokenizer cannot be told add_bos_token = {wanted}")
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["added_tokens"] = [added for added in whole["added_tokens"] if added["id"] < len(tokens)]
    ids = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named = {name: field(f"{key}_token_id") for name, key in ids.items()}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)),
        **{name: tokens[at] for name, at in named.items() if at is not None},
    )
    if tokenizer.chat_template:  # the engine refuses one that is null
        plain.chat_template = tokenizer.chat_template
    return plain


def _begins(tokenizer: Any) -> bool:
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _counted(path: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Count the bytes of quantized and of other weights, and the nodes of each kind that compute on them.

    Raises:
        InputError: a node that was to stay float does not exist, or was quantized all the same; or the builder
            quantized to other bits than asked, as some of its algorithms do without a word.
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
    if missing := sorted(set(job["keep_float"]) - left):
        raise InputError(f"no MatMul node {missing[0]!r} to keep in float; there are {len(left)} float ones: {left}")
    bits = {a.i for node in graph.node if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "bits"}
    if (asked := _BITS.get(job["precision"])) and bits - {asked}:
        gave = ", ".join(str(found) for found in sorted(bits))
        raise InputError(
            f"asked for {job['precision']}, the algorithm {job['options']['algo_config']} of onnxruntime-genai "
            f"{_versions()['onnxruntime-genai']} gave {gave} bits; use another"
        )
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
