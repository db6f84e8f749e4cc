"""Make the models of this example: two Llamas trained on Python's standard library, built for onnxruntime-genai.

Run ``python -m examples.codecomplete.make_models out/codecomplete``; ten minutes on one core, most of it training. What
is trained already is kept. Needs the toolchain ``transformers5`` (``penstock toolchain install transformers5``). The
result is what lies in ``models/`` beside this file: ``edge-fp32`` and ``edge-int4`` are one model, ``cloud-int4`` is a
larger one with the same tokenizer, and ``references.json`` has what others' engines answer with each of them, so that
tests need neither torch nor onnxruntime-genai.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.recipe.targets import GENAI_CPU, resolve
from examples.tiny_llama import data
from examples.tiny_llama.run import TRAIN
from penstock import toolchain

TOOLCHAIN = "transformers5"
MODELS = Path(__file__).parent / "models"
REFERENCES = Path(__file__).parent / "references.py"
SHAPES = {
    "cloud": {"hidden": 128, "layers": 3, "kv_heads": 2, "steps": 1200},
    "edge": {"hidden": 64, "layers": 2, "kv_heads": 1, "steps": 1200},
}
SHARED = {"vocabulary": 1024, "context": 512, "batch": 8, "sequence": 256, "seed": 0}
TRAINING_CHARS = 6_000_000
BUILT = {"edge-fp32": ("edge", "fp32"), "edge-int4": ("edge", "int4"), "cloud-int4": ("cloud", "int4")}
SERVED = ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json")
PROMPT_TOKENS = (1, 2, 3, 5, 8, 13, 21, 34, 40, 55, 63, 64, 65, 90, 100, 127, 128, 129, 180, 256, 300, 400)
"""Lengths of the prompts of references: short, long, and about the chunks in which engines compute prompts."""
NEW_TOKENS = 48


def make(out: Path) -> None:
    """Train, build, and write what others' engines answer; ``out / "models"`` is what the repository has."""
    trained = {name: _trained(out, name) for name in SHAPES}
    for name, (source, precision) in BUILT.items():
        built = out / "built" / name
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir(parents=True)
        options = {"precision": precision, "toolchain": TOOLCHAIN}
        genai.run(PassJob(source=trained[source], out=built, target=resolve(GENAI_CPU), options=options))
        kept = out / "models" / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for file in SERVED:
            if (built / file).is_file():
                shutil.copy(built / file, kept / file)
    answers = toolchain.call(
        TOOLCHAIN,
        REFERENCES,
        {
            "trained": trained,
            "built": {name: out / "models" / name for name in BUILT},
            "texts": list(_prompts()),
            "tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
        },
    )
    text = json.dumps(answers, separators=(",", ":"))
    (out / "models" / "references.json").write_text(text.replace('{"ids"', '\n{"ids"') + "\n", encoding="utf-8")


def _trained(out: Path, name: str) -> Path:
    directory = out / name
    if (directory / "config.json").is_file():
        return directory
    out.mkdir(parents=True, exist_ok=True)
    texts = data.write_training(out / "training.jsonl", TRAINING_CHARS)
    job = {"texts": texts, "out": out / f"{name}.part", "tokenizer": out / "cloud" if name == "edge" else None}
    said = toolchain.call(TOOLCHAIN, TRAIN, job | SHARED | SHAPES[name])
    click.echo(f"{name}: {said}", err=True)
    (out / f"{name}.part").rename(directory)
    return directory


def _prompts() -> Iterator[str]:
    """Return held-out texts, long enough for the longest prompt, each from another place."""
    texts = [text for text in data.texts(held_out=True) if len(text) > 12_000]
    for number in range(len(PROMPT_TOKENS)):
        text = texts[number % len(texts)]
        yield text[text.index("\n", 2_000 + 97 * number) + 1 :][:6_000]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Train and build into OUT."""
    make(out)


if __name__ == "__main__":
    main()
