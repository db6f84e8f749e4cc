"""The language model of the benchmark: made on first use, in the form that each engine takes, and kept.

A Llama of 110 million parameters with random weights: built in 4 bits for onnxruntime-genai and our slots, and
converted to 8 bits for ctranslate2, which has no fewer on a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmarks.environments import NotInstalled, last_line, packages
from benchmarks.generation.peers import CTRANSLATE2
from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.recipe.targets import GENAI_CPU, resolve
from examples.tiny_llama import data
from examples.tiny_llama.run import TRAIN
from penstock import toolchain
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Role, VariantSpec
from penstock.toolchain import locations
from penstock.toolchain.definitions import find
from penstock.wire.tensors import TensorSpec

NAME = "bench"
SEED = 0
TOOLCHAIN = "transformers5"
SHAPE = {"hidden": 576, "layers": 30, "kv_heads": 6, "vocabulary": 8192, "context": 2048}
_CONVERT_TIMEOUT_S = 600.0


def built(directory: Path) -> Path:
    """Return the model in 4 bits, with its tokenizer, below ``directory``."""
    out = directory / "int4"
    if (out / genai.CONFIG_FILE).is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    texts = data.write_training(directory / "training.jsonl", 1_000_000)
    job = {"texts": texts, "out": directory / "source", "tokenizer": None, "steps": 1, "batch": 1, "sequence": 16}
    toolchain.call(TOOLCHAIN, TRAIN, job | SHAPE | {"seed": SEED})
    options = {"precision": "int4", "toolchain": TOOLCHAIN}
    genai.run(PassJob(source=directory / "source", out=out, target=resolve(GENAI_CPU), options=options))
    return out


def converted(directory: Path) -> Path:
    """Return the same model as ctranslate2 has it; :func:`built` came before.

    Raises:
        NotInstalled: its converter or the toolchain is not there, or it failed.
    """
    out = directory / "ctranslate2"
    if (out / "model.bin").is_file():
        return out
    python = locations.look(find(TOOLCHAIN)).python
    if python is None or not (directory / "source").is_dir():
        raise NotInstalled(f"not converted: that needs the toolchain {TOOLCHAIN} and the model's source")
    pinned = [line for line in CTRANSLATE2.requirements if line.startswith("ctranslate2==")]
    path = packages(directory / "converter", pinned)
    command = [
        *(str(python), "-m", "ctranslate2.converters.transformers", "--model", str(directory / "source")),
        *("--output_dir", str(out), "--quantization", "int8"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_CONVERT_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise NotInstalled(f"not converted: {last_line(done.stderr)}")
    return out


def packed(model: Path, directory: Path) -> Layout:
    """Pack a built model as an artifact for a core, in a new directory; both its variants are the same files."""
    weights, files = model / genai.MODEL_FILE, genai.files(model)
    layout = Layout.create(directory)
    roles: tuple[Role, Role] = ("edge", "cloud")
    layout.pack([VariantDraft(spec=_spec(role), weights=weights, files=files) for role in roles], tag="v1")
    return layout


def vocabulary(model: Path) -> int:
    """Return how many tokens a built model has."""
    config = json.loads((model / genai.CONFIG_FILE).read_text(encoding="utf-8"))
    return int(config["model"]["vocab_size"])


def _spec(role: Role) -> VariantSpec:
    return VariantSpec(
        model=NAME,
        role=role,
        engine="genai",
        target="any" if role == "edge" else "cpu",
        provider="cpu",
        precision="int4",
        inputs=(TensorSpec(name="prompt_ids", datatype="INT64", shape=(-1, -1)),),
        outputs=(TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1)),),
        score_output="token_ids",
    )
