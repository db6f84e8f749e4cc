"""``python -m benchmarks.compiler.language_confidence``: what a learned confidence would keep of a language model's
answers, a row a task.

Nothing is compiled, since no device serves such a head: the committed pair of language models answers once, and the
prompts are dealt again and again to tuning, certifying and testing, as in ``benchmarks.compiler.confidence``. The head
is that of classifiers, ``compiler.certificate.probe``, on the token of an answer that had the least probability: its
logits, and which token it was. The last hidden states over the answer are its features, and are left out in turn. It is
taken on the terms of a compilation: shown by the tuning prompts alone to keep more than the best token score.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiler.completions import Completions, completions
from benchmarks.compiler.confidence import ROOT, Kept, certified, dealt
from benchmarks.report import machine
from compiler.certificate import gain, probe, score_choice
from compiler.certificate.binomial import allowed_harm
from compiler.certificate.columns import CertifyData, harmful
from compiler.certificate.gain import Gain, Part
from compiler.certificate.probe import Seen
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact.certificates import Harm
from penstock.policy.confidence import PROBE, TOKEN_SCORES, token_score

SIZES = (2_000, 1_200, 1_200)
_WORTH = 0.005
"""Coverage that a head has to add to be taken, as in a compilation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Prompts with answers of at most so many tokens, and how harm is counted."""

    what: str
    most: int
    harm: Harm


TASKS = {
    "line": Task(what="rest of the line", most=16, harm="disagreement"),
    "two": Task(what="two tokens", most=2, harm="disagreement"),
    "one": Task(what="one token", most=1, harm="disagreement"),
    "one-right": Task(what="one token, against the file", most=1, harm="labels"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One deal without a head and with one, and what the tuning prompts said of it."""

    plain: Kept
    probed: Kept
    shown: Gain


def main() -> int:
    options = _options()
    about = machine()
    what = f"promised harm {options.max_harm:.0%}, delta 5%, {options.deals} deals of {sum(SIZES):,} prompts"
    print(f"{about['cpu']}, {about['cpus']} CPUs; {what}\n")
    print("| task | edge, cloud right | harmful | certified: best of four | the head sees | with the head |"
          " added, points (sd) | tuning: points [5%, 95%] | chosen | tested: kept | harm | AUROC |")  # fmt: skip
    print("|---" * 12 + "|")
    for name in options.tasks:
        found = completions(options.dir, TASKS[name].most)
        for line in _lines(TASKS[name], found, options):
            print(line, flush=True)
    return 0


class _Options(argparse.Namespace):
    tasks: list[str]
    deals: int
    max_harm: float
    dir: Path


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiler.language_confidence", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all when left out")
    parser.add_argument("--deals", type=int, default=10, help="how often the prompts are dealt")
    parser.add_argument("--max-harm", type=float, default=0.02, help="the promise")
    parser.add_argument("--dir", type=Path, default=ROOT, help="for answers, which are kept")
    options = parser.parse_args(namespace=_Options())
    if unknown := [name for name in options.tasks if name not in TASKS]:
        parser.error(f"no task {', '.join(unknown)}; there are {', '.join(TASKS)}")
    options.tasks, options.dir = options.tasks or list(TASKS), options.dir.resolve()
    return options


def _lines(task: Task, found: Completions, options: _Options) -> Iterator[str]:
    """Compare a head that sees hidden states, and one that does not."""
    promise = CertificateSection(max_harm=options.max_harm, harm=task.harm)
    edge, cloud = found.edge == found.labels, found.cloud == found.labels
    harm = harmful(_columns(found, np.arange(len(edge)), np.zeros(len(edge)), task.harm))
    nothing = np.zeros((len(edge), 1), np.float32)
    for sees, features in (("logits and hidden states", found.features), ("logits", nothing)):
        seen = Seen(outputs=found.logits, features=features, kind="logits")
        deals = [compare(found, seen, deal, promise) for deal in dealt(SIZES, options.deals)]
        added = 100 * np.array([one.probed.certified - one.plain.certified for one in deals])
        shown = 100 * np.array([(one.shown.value, one.shown.low, one.shown.high) for one in deals]).mean(axis=0)
        pairs = [(one.plain, one.probed) for one in deals]
        cells = (
            f"{task.what}, {len(edge):,} prompts",
            f"{edge.mean():.1%}, {cloud.mean():.1%}",
            f"{harm.mean():.1%}",
            f"{np.mean([a.certified for a, _ in pairs]):.1%} ({', '.join(sorted({a.score for a, _ in pairs}))})",
            sees,
            f"{np.mean([b.certified for _, b in pairs]):.1%}",
            f"{added.mean():+.1f} ({added.std(ddof=1):.1f})",
            f"{shown[0]:+.1f} [{shown[1]:+.1f}, {shown[2]:+.1f}]",
            f"{sum(b.score == PROBE for _, b in pairs)} of {len(pairs)}",
            f"{np.mean([a.tested for a, _ in pairs]):.1%}, {np.mean([b.tested for _, b in pairs]):.1%}",
            f"{np.mean([a.harm for a, _ in pairs]):.2%}, {np.mean([b.harm for _, b in pairs]):.2%}",
            f"{np.mean([a.auroc for a, _ in pairs]):.3f}, {np.mean([b.auroc for _, b in pairs]):.3f}",
        )
        yield f"| {' | '.join(cells)} |"


def compare(
    found: Completions, seen: Seen, deal: tuple[NDArray[np.int64], ...], promise: CertificateSection
) -> Compared:
    """Choose a token score and certify it; train a head, and certify that where the tuning prompts show its worth."""
    tune, certify, test = deal
    choice = score_choice.choose_token_score(
        [found.probabilities[row] for row in tune],
        found.edge[tune],
        found.cloud[tune],
        found.labels[tune],
        promise,
        rows_to_certify=len(certify),
    )
    scores = {name: token_score(found.probabilities, name=name) for name in TOKEN_SCORES}
    certifying, testing = (_columns(found, rows, scores[choice.score][rows], promise.harm) for rows in (certify, test))
    plain = certified(choice.score, choice.thresholds, certifying, testing, promise)
    harm = harmful(_columns(found, tune, scores[choice.score][tune], promise.harm))
    learned = probe.cross_fitted(seen.rows(tune), harm, temperature=1.0, seed=0)
    allowed = max(0, allowed_harm(len(certify), promise.levels[0], promise.level_delta)) / len(certify)
    others = {name: values[tune] for name, values in scores.items()}
    shown = gain.gain(learned, others, harm, [Part(rows=np.full(len(tune), True), allowed=allowed)])
    if shown.low <= 0 or shown.value < _WORTH:
        return Compared(plain=plain, probed=plain, shown=shown)
    head = probe.fit(seen.rows(tune), harm, temperature=1.0, seed=0)
    certifying, testing = (
        replace(columns, scores=head.confidences(seen.rows(rows)))
        for columns, rows in ((certifying, certify), (testing, test))
    )
    probed = certified(PROBE, score_choice.grid_for(learned), certifying, testing, promise)
    return Compared(plain=plain, probed=probed, shown=shown)


def _columns(found: Completions, rows: NDArray[np.int64], scores: NDArray[np.float64], harm: Harm) -> CertifyData:
    return CertifyData(
        scores=scores,
        edge_predictions=found.edge[rows],
        cloud_predictions=found.cloud[rows],
        labels=found.labels[rows] if harm == "labels" else None,
        groups=None,
        clusters=None,
    )


if __name__ == "__main__":
    sys.exit(main())
