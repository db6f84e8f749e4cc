"""``python -m benchmarks.compiler.confidence``: what a learned confidence keeps at the same promise, a row a task.

Every task is a pair of real models and real rows with labels. The whole pipeline compiles it once, and says whether the
head ships, and what it costs. Then the shipped graph and the cloud's model answer all rows, which are dealt again and
again to tuning, certifying and testing: each deal fits, chooses and certifies as a compilation does, with the learned
score and without it. No row that is printed of was seen by what was fitted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.compiler.confidence_tasks import TASKS, Task
from benchmarks.report import machine
from compiler.artifact.evaluation import ProbeFigures
from compiler.cache.steps import StepCache
from compiler.certificate import learn_then_test, probe
from compiler.certificate.columns import CertifyData, harmful
from compiler.certificate.issue import AnsweredRows
from compiler.certificate.probe import Seen
from compiler.certificate.ranking import ranking
from compiler.certificate.score_choice import Choice
from compiler.graph import confidence_head, files
from compiler.graph.confidence_head import FEATURES_OUTPUT, PROBE_OUTPUT
from compiler.measure.quality import Judge
from compiler.pipeline import compilation, judging
from compiler.progress import Lines
from compiler.recipe import recipes
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import Layout
from penstock.errors import CalibrationError
from penstock.policy import confidence
from penstock.policy.confidence import PROBE
from penstock.runtime import EngineOptions, load_engine
from penstock.wire import tensors
from penstock.wire.tensors import Array

ROOT = Path(__file__).resolve().parents[2] / "out" / "bench" / "compiler"
_USES = ("tune", "certify", "test")
_LOGITS = "logits"
_SAID: dict[tuple[str, str], dict[str, Array]] = {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What the shipped graph and the cloud said of all rows."""

    seen: Seen
    cloud: Array
    labels: NDArray[np.int64]
    sizes: Sequence[int]
    judge: Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What one choice of a score keeps: certified coverage, and what the test rows say of that threshold."""

    score: str
    certified: float
    tested: float
    harm: float
    auroc: float


def main() -> int:
    options = _options()
    about = machine()
    what = f"promised harm {options.max_harm:.0%}, delta 5%, {options.deals} deals of the rows"
    print(f"{about['cpu']}, {about['cpus']} CPUs; {what}\n")
    print("| task | edge, cloud right | harmful | certified: best of four | with the probe | added, points (sd) |"
          " chosen | tested: kept | harm | AUROC | the compilation | cost of a call |")  # fmt: skip
    print("|---" * 12 + "|")
    for name in options.tasks:
        _progress(f"{name}: models and rows")
        print(_line(TASKS[name](options.dir), options), flush=True)
    return 0


class _Options(argparse.Namespace):
    tasks: Sequence[str]
    deals: int
    max_harm: float
    dir: Path


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiler.confidence", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all when left out")
    parser.add_argument("--deals", type=int, default=10, help="how often the rows are dealt")
    parser.add_argument("--max-harm", type=float, default=0.02, help="the promise")
    parser.add_argument("--dir", type=Path, default=ROOT, help="for models and data, which are kept")
    options = parser.parse_args(namespace=_Options())
    unknown = [name for name in options.tasks if name not in TASKS]
    if unknown:
        parser.error(f"no task {', '.join(unknown)}; there are {', '.join(TASKS)}")
    options.tasks, options.dir = options.tasks or tuple(TASKS), options.dir.resolve()
    return options


def _line(task: Task, options: _Options) -> str:
    _progress(f"{task.name}: compiled")
    out, found = _compiled(task, options)
    _progress(f"{task.name}: answers")
    answers = _answers(task, out)
    pairs = []
    for number, (tune, certify, test) in enumerate(dealt(answers.sizes, options.deals)):
        _progress(f"{task.name}: deal {number + 1}")
        pairs.append(_kept(answers, tune, certify, test, CertificateSection(max_harm=options.max_harm)))
    plain, probed = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    added = np.array([b.certified - a.certified for a, b in pairs])
    edge = confidence.predicted(answers.seen.outputs) == answers.labels
    cloud = confidence.predicted(answers.cloud) == answers.labels
    cost = (
        "not measured"
        if found.cost is None
        else f"{found.cost.value:+.1%} [{found.cost.low:+.1%}, {found.cost.high:+.1%}]"
    )
    cells = (
        task.what,
        f"{edge.mean():.1%}, {cloud.mean():.1%}",
        f"{np.mean(~edge & cloud):.1%}",
        f"{np.mean([one.certified for one in plain]):.1%} ({', '.join(sorted({one.score for one in plain}))})",
        f"{np.mean([one.certified for one in probed]):.1%}",
        f"{100 * added.mean():+.1f} ({100 * added.std(ddof=1):.1f})",
        f"{sum(one.score == PROBE for one in probed)} of {len(probed)}",
        f"{np.mean([one.tested for one in plain]):.1%}, {np.mean([one.tested for one in probed]):.1%}",
        f"{np.mean([one.harm for one in plain]):.2%}, {np.mean([one.harm for one in probed]):.2%}",
        f"{np.mean([one.auroc for one in plain]):.3f}, {np.mean([one.auroc for one in probed]):.3f}",
        "ships it" if found.ships else "leaves it out",
        cost,
    )
    return f"| {' | '.join(cells)} |"


def _compiled(task: Task, options: _Options) -> tuple[Path, ProbeFigures]:
    """Compile a task with "auto"; return the artifact, and what became of the head."""
    out = options.dir / "made" / "confidence" / task.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    text = f"""
[model]
name = "{task.name}"
output = "{_LOGITS}"
[edge]
model = '{task.edge}'
precisions = {list(task.precisions)}
objective = "size"
[cloud]
model = '{task.cloud}'
[data]
source = '{task.data}'
labels = "y"
repeats = "natural"
[data.splits]
tune = "tune"
[quality]
max_accuracy_drop = 0.05
[certificate]
max_harm = {options.max_harm}
""".replace("'", '"')
    (out / "recipe.toml").write_text(text)
    done = compilation.compile_recipe(
        recipes.load(out / "recipe.toml"),
        out / "artifact",
        cache=StepCache(options.dir / "made" / "confidence" / "cache"),
        watcher=Lines(_progress),
        require_certificate=False,
    )
    cascade = done.evaluation.targets[0].cascade
    assert cascade is not None
    assert cascade.probe is not None
    _progress(f"{task.name}: {done.evaluation.targets[0].chosen}; {cascade.score}; {cascade.probe.reason}")
    return out / "artifact", cascade.probe


def _answers(task: Task, artifact: Path) -> Answers:
    """Ask the shipped graph, for its features too, and the cloud's model about every row that nothing was fitted on."""
    layout = Layout(artifact)
    edge, cloud = layout.artifact().variant("edge"), layout.artifact().variant("cloud")
    with np.load(task.data) as data:
        rows = {one.name: np.concatenate([data[f"{one.name}_{use}"] for use in _USES]) for one in edge.spec.inputs}
        labels = np.concatenate([data[f"y_{use}"] for use in _USES]).astype(np.int64)
        sizes = [len(data[f"y_{use}"]) for use in _USES]
    source = layout.blobs.path(edge.weights.digest)
    model = files.read(source, field="model")
    features = confidence_head.find(model, _LOGITS)
    opened = onnx.ModelProto.FromString(model.SerializeToString())
    confidence_head.open_at(opened, features)
    path = artifact.with_name("features.onnx")
    onnx.save(opened, str(path))
    two = {name: values[:2] for name, values in rows.items()}
    rank = load_engine("onnx", path, EngineOptions(threads=1)).run(two, [features.tensor])[features.tensor].ndim
    confidence_head.with_features(model, features, rank=rank)
    onnx.save(model, str(path))
    found = _asked(path, rows, [_LOGITS, FEATURES_OUTPUT], edge.spec.max_batch)
    asked = (cloud.weights.digest, digest_of(tensors.pack(rows)))
    if asked not in _SAID:  # tasks share a cloud
        _SAID[asked] = _asked(layout.blobs.path(cloud.weights.digest), rows, [_LOGITS], cloud.spec.max_batch)
    said = _SAID[asked]
    judge = judging.judge_of_variant(cloud.spec, "")
    seen = Seen(outputs=found[_LOGITS], features=found[FEATURES_OUTPUT], kind="logits")
    return Answers(seen=seen, cloud=said[_LOGITS], labels=labels, sizes=sizes, judge=judge)


def _asked(path: Path, rows: dict[str, Array], outputs: Sequence[str], most: int) -> dict[str, Array]:
    engine, count = load_engine("onnx", path, EngineOptions(threads=1)), len(next(iter(rows.values())))
    parts = [
        engine.run({name: values[at : at + most] for name, values in rows.items()}, outputs)
        for at in range(0, count, most)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def dealt(sizes: Sequence[int], deals: int) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield row numbers in parts of these sizes, again and again."""
    for seed in range(deals):
        order = np.random.default_rng(seed).permutation(sum(sizes))
        yield tuple(np.split(order, np.cumsum(sizes)[:-1]))


def _kept(
    answers: Answers,
    tune: NDArray[np.int64],
    certify: NDArray[np.int64],
    test: NDArray[np.int64],
    promise: CertificateSection,
) -> tuple[Kept, Kept]:
    """Choose and certify without the learned score, and with it."""
    parts = [_rows(answers, rows) for rows in (tune, certify, test)]
    without = parts[0].choose(promise, rows_to_certify=len(certify))
    plain = _certified(parts, without, promise)
    harm, tuned, temperature = parts[0].harmful(promise.harm), answers.seen.rows(tune), without.temperature
    try:
        learned = [probe.cross_fitted(tuned, harm, temperature=temperature, seed=0)]
        head = probe.fit(tuned, harm, temperature=temperature, seed=0)
    except CalibrationError:  # too few harmful rows: nothing is learnt, as in a compilation
        return plain, plain
    learned += [head.confidences(answers.seen.rows(rows)) for rows in (certify, test)]
    judge = answers.judge.with_probe(PROBE_OUTPUT)
    probed = [
        replace(part, outputs={**part.outputs, PROBE_OUTPUT: values}, judge=judge, is_learned=part is parts[0])
        for part, values in zip(parts, learned, strict=True)
    ]
    return plain, _certified(probed, probed[0].choose(promise, rows_to_certify=len(certify)), promise)


def _rows(answers: Answers, rows: NDArray[np.int64]) -> AnsweredRows:
    return AnsweredRows(
        outputs={_LOGITS: answers.seen.outputs[rows]},
        cloud={_LOGITS: answers.cloud[rows]},
        labels=answers.labels[rows],
        groups=None,
        judge=answers.judge,
    )


def _certified(parts: Sequence[AnsweredRows], choice: Choice, promise: CertificateSection) -> Kept:
    to_certify, to_test = (part.certify_data(choice, harm=promise.harm) for part in parts[1:])
    return certified(choice.score, choice.thresholds, to_certify, to_test, promise)


def certified(
    score: str, thresholds: Sequence[float], to_certify: CertifyData, to_test: CertifyData, promise: CertificateSection
) -> Kept:
    """Certify one score, and look at other rows."""
    harm = harmful(to_test)
    auroc = ranking(np.asarray(to_test.scores, np.float64), harm).auroc or float("nan")
    try:
        found = learn_then_test.promise(to_certify, promise, thresholds=thresholds).default
    except CalibrationError:  # refused: nothing stays on the device
        return Kept(score=score, certified=0.0, tested=0.0, harm=0.0, auroc=auroc)
    kept = to_test.scores >= found.threshold
    return Kept(
        score=score,
        certified=found.coverage,
        tested=float(np.mean(kept)),
        harm=float(np.mean(kept & harm)),
        auroc=auroc,
    )


_BEGAN = time.monotonic()


def _progress(message: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
