"""The whole chain by hand: train two tiny Llamas, quantize the smaller, measure what that costs, certify the pair.

Run ``python -m examples.tiny_llama.run out/tiny_llama``; some minutes on two cores, most of it training. What is there
already is kept. Needs the toolchain ``optimum`` (``penstock toolchain install optimum``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import msgspec

from compiler.certificate import learn_then_test
from compiler.certificate.learn_then_test import Promised
from compiler.generation import built_model, compare, golden_answers
from compiler.generation.answers import answer_prompts
from compiler.generation.built_model import BuiltModel, Speed
from compiler.generation.compare import PerplexityChange
from compiler.generation.prompts import Prompt, PromptSet, split
from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.generation_section import Generate
from compiler.recipe.targets import GENAI_CPU, resolve
from penstock import toolchain
from penstock.artifact.golden import Golden

from . import data

TOOLCHAIN = "optimum"
TRAIN = Path(__file__).parent / "train.py"
ANSWERS = Generate(max_new_tokens=16, stop=("\n",))
PROMISE = CertificateSection(max_harm=0.05, delta=0.05, harm="disagreement", score="auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large one model is, and how long it learns."""

    hidden: int
    layers: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides what comes out."""

    cloud: Shape
    edge: Shape
    vocabulary: int = 2048
    context: int = 256
    batch: int = 8
    sequence: int = 128
    training_chars: int = 4_000_000
    examined_chars: int = 120_000
    prompts: int = 2400
    seed: int = 0


EXAMPLE = Plan(cloud=Shape(hidden=128, layers=4, steps=600), edge=Shape(hidden=64, layers=2, steps=600))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out; sizes are of whole directories."""

    change: PerplexityChange
    cloud_perplexity: float
    size_bytes: dict[str, int]
    speeds: dict[str, Speed]
    golden: Golden
    score: str
    promised: Promised
    kept_on_test: float
    harm_on_test: float


def train(out: Path, plan: Plan, progress: Callable[[float, str], None] | None = None) -> dict[str, Path]:
    """Train Hugging Face directories ``cloud`` and ``edge`` under ``out``, with one tokenizer; keep those that are
    there.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts = data.write_training(out / "training.jsonl", plan.training_chars)
    trained: dict[str, Path] = {}
    for name, shape in (("cloud", plan.cloud), ("edge", plan.edge)):
        trained[name] = out / name
        if (out / name / "config.json").is_file():
            continue
        shared = {key: getattr(plan, key) for key in ("vocabulary", "context", "batch", "sequence", "seed")}
        job = {"texts": texts, "out": out / f"{name}.part", "tokenizer": trained["cloud"] if name == "edge" else None}
        toolchain.call(TOOLCHAIN, TRAIN, job | shared | asdict(shape), progress=progress)
        (out / f"{name}.part").rename(out / name)
    return trained


def build(source: Path, out: Path, precision: str) -> BuiltModel:
    """Build a directory for onnxruntime-genai."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    genai.run(PassJob(source=source, out=out, target=resolve(GENAI_CPU), options={"precision": precision}))
    return BuiltModel(directory=out, toolchain=TOOLCHAIN)


def run(out: Path, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Train, build, measure, gate and certify."""
    say("training")
    trained = train(out, plan, lambda share, note: None)
    say("building")
    models = {
        "edge fp32": build(trained["edge"], out / "edge-fp32", "fp32"),
        "edge int4": build(trained["edge"], out / "edge-int4", "int4"),
        "cloud fp32": build(trained["cloud"], out / "cloud-fp32", "fp32"),
    }
    say("perplexity")
    texts = data.examination(plan.examined_chars)
    likelihoods = {name: built_model.likelihoods(model, texts) for name, model in models.items()}
    change = compare.change(likelihoods["edge fp32"], likelihoods["edge int4"], seed=plan.seed)
    say("speed")
    speeds = {name: built_model.speed(model) for name, model in models.items()}
    say("answers")
    rows = tuple(msgspec.convert(row, Prompt) for row in data.completions(plan.prompts, plan.seed))
    sets, _ = split(PromptSet(name="all", rows=rows), seed=plan.seed)
    edge, cloud = models["edge int4"], models["cloud fp32"]
    tune, certifying, test = (answer_prompts(edge, cloud, sets[use], ANSWERS) for use in ("tune", "certify", "test"))
    say("certificate")
    choice = tune.choose(PROMISE, rows_to_certify=len(certifying.edge))
    promised = learn_then_test.promise(
        certifying.certify_data(choice, harm=PROMISE.harm), PROMISE, thresholds=choice.thresholds
    )
    kept = test.scores[choice.score] >= promised.default.threshold
    return Outcome(
        change=change,
        cloud_perplexity=compare.perplexity(likelihoods["cloud fp32"]),
        size_bytes={name: genai.size_bytes(model.directory) for name, model in models.items()},
        speeds=speeds,
        golden=golden_answers.vectors(edge, sets["tune"].prompts),
        score=choice.score,
        promised=promised,
        kept_on_test=float(kept.mean()),
        harm_on_test=float((kept & (test.edge != test.cloud)).mean()),
    )


def table(outcome: Outcome) -> str:
    """Format the figures for people."""
    change, level = outcome.change, outcome.promised.default
    lines = [f"{'model':<11} {'size':>9} {'first token':>12} {'tokens/s':>9} {'memory':>9}"]
    for name, speed in outcome.speeds.items():
        lines.append(
            f"{name:<11} {outcome.size_bytes[name] / 1e6:6.2f} MB {speed.first_token_ms:9.2f} ms "
            f"{speed.tokens_per_s:9.0f} {speed.load_bytes / 1e6:6.1f} MB"
        )
    lines += [
        f"edge perplexity {change.before:.2f} -> {change.after:.2f} in int4: {change.increase.value:+.1%} "
        f"({change.increase.low:+.1%} to {change.increase.high:+.1%}), same token likeliest in "
        f"{change.agreement.value:.1%} of {change.tokens}; the cloud's is {outcome.cloud_perplexity:.2f}",
        f"{outcome.score} >= {level.threshold:.4g}: {level.coverage:.1%} answered on the device, {level.harm_count} of "
        f"{level.n} harmful; with {1 - level.delta:.0%} confidence at most {100 * level.max_harm:g} points of harm",
        f"on the test prompts: {outcome.kept_on_test:.1%} kept, {outcome.harm_on_test:.1%} harmful",
    ]
    return "\n".join(lines)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Train, build, measure and certify into OUT."""
    click.echo(table(run(out, EXAMPLE, lambda line: click.echo(f"{line} ...", err=True))))


if __name__ == "__main__":
    main()
