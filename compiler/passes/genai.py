"""A language model for onnxruntime-genai: a Hugging Face directory or GGUF file in, a directory that it can run out.

Decides the precision and what is refused before a toolchain is started; ``compiler/runners/genai_build.py`` converts,
in toolchain ``optimum`` (genai 0.15, transformers 4) or ``transformers5`` (genai 0.18). Weights in 4 or 8 bits have
activations in float that are rounded to 8 bits inside each product (accuracy level 4): without it int4 is slower than
float on many CPUs. Does not measure: that is ``compiler.generation``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from compiler.generation import gguf
from compiler.passes.job import PassJob, PassResult
from compiler.passes.options import decode
from compiler.recipe.targets import Target
from penstock import toolchain, wording
from penstock.artifact.blobs import disk_errors
from penstock.errors import ArtifactError, CompileError, ConfigError, InvalidInput
from penstock.generation import chat_template, golden_chats, tokenizer

RUNNER = Path(__file__).parents[1] / "runners" / "genai_build.py"
MODEL_FILE, CONFIG_FILE = "model.onnx", "genai_config.json"

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_MAX_CONFIG_BYTES = 16 * 1024**2
_INTEGERS = ("int4", "int8")
_TEXT_FILES = (*tokenizer.FILES, chat_template.FILE)

Toolchain = Literal["optimum", "transformers5"]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        precision: of the weights; ``fp16`` is for CUDA, ``fp32`` the reference that others are compared with.
        block_size: weights that share a scale (int4, int8).
        accuracy_level: 0 as the engine likes, 1 float32, 2 float16, 3 bfloat16, 4 int8 products. None is 4 on a CPU,
            0 elsewhere.
        symmetric: no zero points. Where embeddings are tied, the builder needs it.
        algorithm: ``default`` (round to nearest), ``rtn`` (the same by onnxruntime's newer code) or ``k_quant``.
        toolchain: by default ``optimum``, and ``transformers5`` for GGUF files: transformers 4 reads the byte-level
            tokenizers in them wrongly.
        timeout_s: for the whole conversion.
    """

    precision: Literal["int4", "int8", "fp16", "fp32"] = "int4"
    block_size: Literal[16, 32, 64, 128, 256] = 32
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    symmetric: bool = True
    algorithm: Literal["default", "rtn", "k_quant"] = "default"
    toolchain: Toolchain | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 7200.0


def run(job: PassJob) -> PassResult:
    """Convert ``job.source`` for ``job.target``; nodes in ``job.keep_float`` keep their float weights.

    Raises:
        ConfigError: options that are unknown, or do not suit the target. InvalidInput: no such model.
        CompileError: an architecture, quantization or directory that cannot be converted, or nothing was quantized.
        MissingToolchain: the toolchain is not installed.
    """
    options = decode(job.options, Options, name="genai")
    _check(job, options)
    check_source(job.source)
    with tempfile.TemporaryDirectory(prefix="penstock-genai-", dir=job.work) as work:
        facts = toolchain.call(
            options.toolchain or toolchain_for(job.source),
            RUNNER,
            {
                "source": job.source.absolute(),
                "out": job.out.absolute(),
                "work": work,
                "precision": options.precision,
                "provider": job.target.provider,
                "options": _builder_options(options, job.target),
                "keep_float": sorted(job.keep_float),
                "chats": msgspec.to_builtins(golden_chats.CONVERSATIONS),
                "chats_at": golden_chats.AT.isoformat(),
            },
            progress=job.progress,
            timeout_s=options.timeout_s,
        )
    _check_result(job.out, facts, options)
    _write_chats(job.out, facts)
    return PassResult(model=MODEL_FILE, summary=_summary(options, facts), facts=facts)


def toolchain_for(source: Path) -> Toolchain:
    """Choose the toolchain where a recipe names none: transformers 4 reads the byte-level tokenizers of GGUF files
    wrongly.
    """
    return "transformers5" if source.is_file() else "optimum"


def check_source(source: Path) -> None:
    """Refuse what can be refused without starting a toolchain.

    Raises:
        InvalidInput, CompileError: what is missing or wrong, and what was expected.
    """
    if source.suffix == ".gguf":
        gguf.check(gguf.read_header(source), source.name)
        return
    if not source.is_dir():
        raise InvalidInput(
            f"{source}: no such directory; expected a Hugging Face directory or a .gguf file", field="source"
        )
    architectures = _config(source).get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CompileError(f"{source.name}: config.json names no architecture (architectures); which model is it?")
    if not any(path for pattern in _WEIGHTS for path in source.glob(pattern)):
        raise CompileError(
            f"{source.name}: no weights (*.safetensors or *.bin) in the directory; is it a partial download?"
        )
    if not any((source / name).is_file() for name in _TOKENIZERS):
        raise CompileError(
            f"{source.name}: no tokenizer in the directory; expected tokenizer.json (or one of "
            f"{', '.join(_TOKENIZERS[1:])}). Save it beside the model: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(directory)"
        )


def files(directory: Path) -> dict[str, Path]:
    """Return every file of a built model by its name, except the main one: what travels with it in an artifact."""
    return {path.name: path for path in sorted(directory.iterdir()) if path.is_file() and path.name != MODEL_FILE}


def size_bytes(directory: Path) -> int:
    """Return the size of everything that an engine needs."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def _check(job: PassJob, options: Options) -> None:
    if job.target.engine != "genai":
        raise ConfigError(f"genai: target {job.target.name} runs no language models; use genai-cpu or genai-cuda")
    if options.precision == "fp16" and job.target.provider == "cpu":
        raise ConfigError('genai: precision fp16 is for genai-cuda; on a CPU use "int4", "int8" or "fp32"')
    if job.keep_float and options.precision not in _INTEGERS:
        raise ConfigError(f"genai: nothing to keep in float, the whole model is {options.precision}")


def _builder_options(options: Options, target: Target) -> dict[str, str]:
    if options.precision not in _INTEGERS:
        return {}
    level = options.accuracy_level
    if level is None:
        level = 4 if target.provider == "cpu" else 0
    chosen = {
        "block_size": str(options.block_size),
        "accuracy_level": str(level),
        "is_symmetric": str(options.symmetric).lower(),
        "algo_config": options.algorithm,
    }
    if options.precision == "int8":  # 0.15 names shared 8-bit embeddings as if they had 4, and cannot load the result
        chosen["shared_embeddings"] = "false"
    return chosen


def _config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise CompileError(f"{source.name}: no config.json; expected a Hugging Face model directory")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CompileError(f"{source.name}: config.json is larger than {_MAX_CONFIG_BYTES} bytes; it is no model's")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CompileError(f"{source.name}: config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CompileError(f"{source.name}: config.json holds no object; expected a Hugging Face model directory")
    return config


def _check_result(out: Path, facts: dict[str, Any], options: Options) -> None:
    for name in (MODEL_FILE, CONFIG_FILE, "tokenizer.json"):
        if not (out / name).is_file():
            raise CompileError(
                f"genai: the builder wrote no {name}; a model without it cannot be run. Is its tokenizer one that "
                "transformers can save as tokenizer.json?"
            )
    with disk_errors(f"tidying {out}"):
        for extra in [path for path in out.iterdir() if path.is_dir()]:
            shutil.rmtree(extra)
    if options.precision in _INTEGERS and not facts["quantized_weight_bytes"]:
        raise CompileError(f'genai: {options.precision} quantized nothing; set precision = "fp32"')


def _write_chats(out: Path, facts: dict[str, Any]) -> None:
    """Keep the prompts that transformers made of some conversations, where the model has a template for them.

    Raises:
        CompileError: this Penstock makes other prompts of them, so that no server would load the model.
    """
    prompts = facts.pop("chats")
    if prompts is None:
        return
    made = {path.name: path.read_bytes() for path in out.iterdir() if path.name in _TEXT_FILES}
    content = golden_chats.golden_chats(made, prompts, made_by=f"transformers {facts['versions']['transformers']}")
    if find_spec("tokenizers"):  # else a server is the first to see a difference
        try:
            golden_chats.check_files({**made, golden_chats.FILE: content})
        except ArtifactError as error:
            raise CompileError(f"genai: {error.message}") from error
    with disk_errors(f"writing {out}"):
        (out / golden_chats.FILE).write_bytes(content)


def _summary(options: Options, facts: dict[str, Any]) -> str:
    quantized, other = facts["quantized_weight_bytes"], facts["other_weight_bytes"]
    if options.precision not in _INTEGERS:
        return f"{facts['architecture']} in {options.precision}, {wording.size(other)} of weights"
    share = quantized / max(quantized + other, 1)
    return (
        f"{facts['architecture']}: {options.precision} by blocks of {options.block_size} ({options.algorithm}), "
        f"{wording.size(quantized + other)} of weights, {share:.0%} of it quantized"
    )
