"""Which confidence score and temperature the promise is made with, and the thresholds worth testing.

Pure. Everything is chosen on the "tune" split alone, so whatever the choice, the certifying split has not been seen and
its test keeps its error rate: the promise survives the choice. Choosing the score that certifies best on the certifying
split itself would be one look more for each score tried.

Every score is given the temperature that fits the split, and is judged by the share of answers it would keep on the
device at the promised harm. The threshold it would get is predicted rather than certified: the lowest at which the
share of harm on this split is within what the certificate's test will let pass on as many examples as there are to
certify with. Certifying the tune split itself chooses as well where it is large; where it is small, it keeps nothing
by any score and cannot tell them apart.

A score that was learnt on this very split takes part with what heads that did not see a row say of it
(``compiler.certificate.probe``), and is chosen only where it is shown to keep more than the best of the others
(``compiler.certificate.gain``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from compiler.certificate import draft_cost, units
from compiler.certificate.binomial import allowed_harm
from compiler.certificate.columns import CertifyData, Graded, check, harm, harmful
from compiler.certificate.gain import Gain, Part, gain
from compiler.certificate.learn_then_test import THRESHOLDS
from compiler.certificate.ranking import Ranking, ranking
from compiler.recipe.certificate_section import AUTO, CertificateSection
from penstock import wording
from penstock.artifact.certificates import Harm
from penstock.errors import CalibrationError
from penstock.policy import confidence
from penstock.policy.confidence import PROBE, TOKEN_SCORES, Kind, token_score
from penstock.policy.decoding import Decoder
from penstock.wire.tensors import Array

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]

_QUANTILES = 256
_WORTH = 0.005
"""Coverage that makes up for a score that is less simple; differences below it are the grid's."""

_TEMPERATURES = (0.051, 19.8)  # beyond, the fit ran to the end of what ``fit_temperature`` looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        score: name of the confidence score.
        temperature: divides the logits first.
        coverage: predicted share kept at the promise's default level, by score; only the scores that were compared.
        thresholds: the grid to certify on, strictest first: the fixed one, and quantiles of the chosen score on the
            split that chose it. A score that crowds in a corner of [0, 1] is told apart there too.
        reason: one sentence for a report.
        gain: coverage that a score learnt on these examples adds to the best of the others; None where there is none,
            or no others.
        beside: predicted share by each score that could be had and was not compared, since another one is fixed.
        drafted: tokens a request that the device is expected to make for nothing, by score: those of answers that it
            then escalates (``compiler.certificate.draft_cost``). Empty where answers are not made token by token.
        rankings: how well each score of both ranks these examples, by name.
    """

    score: str
    temperature: float
    coverage: Mapping[str, float]
    thresholds: tuple[float, ...]
    reason: str
    gain: Gain | None = None
    beside: Mapping[str, float] = field(default_factory=dict)
    drafted: Mapping[str, float] = field(default_factory=dict)
    rankings: Mapping[str, Ranking] = field(default_factory=dict)


def choose(
    outputs: Mapping[str, Array],
    data: CertifyData,
    decoder: Decoder,
    promise: CertificateSection,
    *,
    classes: Integers | None = None,
    is_learned: bool = False,
    rows_to_certify: int | None = None,
) -> Choice:
    """Choose score, temperature and thresholds for a model that answers with arrays.

    Args:
        outputs: of the edge variant on the tune split, by name.
        data: the columns of that split; their scores are not looked at.
        decoder: reads the outputs, and knows which scores they can have.
        promise: ``promise.score`` other than "auto" fixes the score; temperature and thresholds are fitted anyway.
        classes: [N] that the temperature is fitted on, where answers are classes: labels, or the cloud's answers.
        is_learned: whether the score ``probe`` was learnt on this split.
        rows_to_certify: how many examples, or clusters, will certify (their number, never their content); as many as
            there are here by default.

    Raises:
        CalibrationError: no rows, outputs that are not finite, malformed columns, labels missing that harm needs, or a
            score fixed that these outputs cannot have.
    """
    temperature, note = (1.0, "") if classes is None else temperature_of(outputs[decoder.output], classes, decoder.kind)
    names = _usable(promise.score, decoder.scores)
    scores = {name: decoder.score(outputs, name=name, temperature=temperature) for name in decoder.scores}
    data = replace(data, scores=scores[names[0]])
    check(data)
    found = _best(
        {name: scores[name] for name in names},
        data,
        promise,
        rows_to_certify,
        temperature=temperature,
        note=note,
        is_learned=is_learned,
    )
    return _with_others(found, scores, data, promise, rows_to_certify)


def choose_token_score(
    probabilities: Sequence[Array],
    edge: Integers,
    cloud: Integers,
    labels: Integers | None,
    promise: CertificateSection,
    *,
    groups: NDArray[np.str_] | None = None,
    clusters: Integers | None = None,
    graded: Graded | None = None,
    rows_to_certify: int | None = None,
) -> Choice:
    """Choose a score for generated sequences, among those of their tokens' probabilities; the temperature is 1.

    The score of the prompt alone comes first: where it keeps as much as the others, it saves every draft that would be
    escalated, and what is kept can be shown from its first token on.

    Args:
        probabilities: of the chosen tokens, one array [tokens] a sequence.
        edge: answers [N] as integers, equal where the answers count as the same.
        cloud: the same.
        labels: the same, or None.
        graded: how good the answers are; None where they are right or wrong.

    Raises:
        CalibrationError: as :func:`choose`.
    """
    names = _usable(promise.score, tuple(TOKEN_SCORES))
    scores = {name: token_score(probabilities, name=name) for name in TOKEN_SCORES}
    check_labels(promise.harm, labels)
    data = CertifyData(
        scores=scores[names[0]],
        edge_predictions=edge,
        cloud_predictions=cloud,
        labels=labels if promise.harm == "labels" else None,
        groups=groups,
        clusters=clusters,
        graded=graded,
    )
    found = choose_among(scores, data, promise, rows_to_certify=rows_to_certify)
    drafted = {
        name: draft_cost.tokens_for_nothing(
            probabilities,
            values,
            name,
            _predicted(values, np.array(grid_for(values)), data, promise, rows_to_certify)[1],
        )
        for name, values in scores.items()
    }
    return replace(found, drafted=drafted, reason=f"{found.reason}{draft_cost.words(found.score, drafted)}")


def choose_among(
    scores: Mapping[str, Floats],
    data: CertifyData,
    promise: CertificateSection,
    *,
    rows_to_certify: int | None = None,
    temperature: float = 1.0,
    note: str = "",
) -> Choice:
    """Choose among scores that were computed, the simplest first.

    Args:
        scores: [N] by name.
        data: the columns of the split; their scores are not looked at.
        temperature: that the scores were made with, and ``note`` on how it was found.

    Raises:
        CalibrationError: as :func:`choose`.
    """
    names = _usable(promise.score, tuple(scores))
    data = replace(data, scores=scores[names[0]])
    check(data)
    compared = {name: scores[name] for name in names}
    found = _best(compared, data, promise, rows_to_certify, temperature=temperature, note=note)
    return _with_others(found, scores, data, promise, rows_to_certify)


def fit_temperature(outputs: Array, classes: NDArray[np.int64], *, kind: Kind) -> float:
    """Fit the temperature of an output on classes of a split that certifies nothing.

    Args:
        outputs: logits or probabilities [N, C].
        classes: [N], labels, or the cloud's answers where there are none.

    Raises:
        CalibrationError: outputs that are not finite, or no rows.
    """
    values = confidence.two_columns(outputs, kind=kind)
    if kind == "probabilities":
        values = np.log(np.maximum(values, np.finfo(np.float64).tiny))  # what confidence.score divides by it
    return confidence.fit_temperature(values, classes)


def check_labels(harm: Harm, labels: object) -> None:
    """Check that there are labels where harm is counted by them.

    Raises:
        CalibrationError: there are none.
    """
    if harm == "labels" and labels is None:
        raise CalibrationError('harm is counted by labels and there are none; set harm = "disagreement", or add labels')


def grid_for(scores: Floats) -> tuple[float, ...]:
    """List thresholds to certify on, strictest first: the fixed ones, and quantiles of the tune split's ``scores``."""
    known = scores[np.isfinite(scores)].astype(np.float64)
    if not len(known):
        return THRESHOLDS
    quantiles = np.quantile(known, np.linspace(0, 1, _QUANTILES + 1), method="lower")
    # relative to 1, since sure answers crowd there; more digits would be noise of the last bits, and of this machine
    rounded = {float(1 - float(f"{1 - value:.4g}")) for value in quantiles}
    return tuple(sorted(rounded | set(THRESHOLDS), reverse=True))


def temperature_of(outputs: Array, classes: Integers, kind: Kind) -> tuple[float, str]:
    """Fit the temperature; return 1 with a note where the split holds nothing to fit one on.

    Raises:
        CalibrationError: as :func:`fit_temperature`.
    """
    fitted = fit_temperature(outputs, classes.astype(np.int64), kind=kind)
    low, high = _TEMPERATURES
    if low < fitted < high:
        return float(f"{fitted:.4g}"), ""  # more digits would be noise of the last bits
    # without a single mistake the likelihood grows without end as T falls: every score is then 1, and none is a ranking
    return 1.0, f"no temperature fits {len(classes)} examples (too few mistakes, or nothing but mistakes): 1 is used"


def _usable(wanted: str, usable: tuple[str, ...]) -> tuple[str, ...]:
    if wanted == AUTO and usable:
        return usable
    if wanted not in usable:
        hint = "; energy needs logits" if wanted == "energy" else ""
        known = ", ".join(usable) or "none; model.probe_output may name an output that says it"
        raise CalibrationError(f"score: {wanted!r} cannot be had of these outputs{hint}; usable: {known}")
    return (wanted,)


def _best(
    scores: Mapping[str, Floats],
    data: CertifyData,
    promise: CertificateSection,
    rows_to_certify: int | None,
    *,
    temperature: float,
    note: str,
    is_learned: bool = False,
) -> Choice:
    grids = {name: grid_for(values) for name, values in scores.items()}
    coverage = {
        name: _predicted_coverage(values, np.array(grids[name]), data, promise, rows_to_certify)
        for name, values in scores.items()
    }
    plain = {name: share for name, share in coverage.items() if not (is_learned and name == PROBE)} or coverage
    best = max(plain.values())
    chosen = next(name for name, share in plain.items() if share >= best - _WORTH)  # they come simplest first
    reason, added = _reason(chosen, plain, promise, len(data.scores)), None
    if len(plain) < len(coverage):
        others = {name: scores[name] for name in plain}
        added = gain(
            scores[PROBE], others, harmful(data), _parts(data, promise, rows_to_certify), clusters=data.clusters
        )
        is_shown = added.low > 0 and added.value >= _WORTH
        chosen = PROBE if is_shown else chosen
        reason = f"{_reason_of_gain(added, is_shown=is_shown)}; {reason}"
    return Choice(
        score=chosen,
        temperature=temperature,
        coverage=coverage,
        thresholds=grids[chosen],
        reason="; ".join(part for part in (reason, note) if part),
        gain=added,
        rankings={name: ranking(values, harm(data)) for name, values in scores.items()},
    )


def _with_others(
    found: Choice,
    scores: Mapping[str, Floats],
    data: CertifyData,
    promise: CertificateSection,
    rows_to_certify: int | None,
) -> Choice:
    """Add what is known of the scores that were not compared, so that who fixes one sees what the others would do."""
    others = {name: values for name, values in scores.items() if name not in found.coverage}
    beside = {
        name: _predicted_coverage(values, np.array(grid_for(values)), data, promise, rows_to_certify)
        for name, values in others.items()
    }
    rankings = {name: ranking(values, harm(data)) for name, values in others.items()}
    return replace(found, beside=beside, rankings={**found.rankings, **rankings})


def _predicted_coverage(
    scores: Floats, grid: Floats, data: CertifyData, promise: CertificateSection, rows_to_certify: int | None
) -> float:
    """Predict the share kept; 0 where no threshold is within the allowance."""
    return _predicted(scores, grid, data, promise, rows_to_certify)[0]


def _predicted(
    scores: Floats, grid: Floats, data: CertifyData, promise: CertificateSection, rows_to_certify: int | None
) -> tuple[float, float]:
    """Predict the share kept at the strictest of the groups' thresholds, and that threshold; 0 and infinity where none
    is within the allowance."""
    scored = replace(data, scores=scores)
    there = units.count(len(scores), data.groups, data.clusters)
    (total,) = units.count(len(scores), None, data.clusters).values()
    passed = len(grid)
    for name, count in there.items():
        rows = np.full(len(scores), True) if data.groups is None else np.asarray(data.groups == name)
        certifying = max(1, round((rows_to_certify or total) * count / total))
        passed = min(
            passed, units.predicted(scored, rows, grid, promise.levels[0], promise.level_delta, certifying=certifying)
        )
    return (float(units.coverage_at(scored, grid)[passed - 1]), float(grid[passed - 1])) if passed else (0.0, math.inf)


def _parts(data: CertifyData, promise: CertificateSection, rows_to_certify: int | None) -> list[Part]:
    """List the groups, or all rows as one, with the share of each that the test of independent examples lets pass."""
    there = units.count(len(data.scores), data.groups, data.clusters)
    (total,) = units.count(len(data.scores), None, data.clusters).values()
    found = []
    for name, count in there.items():
        rows = np.full(len(data.scores), True) if data.groups is None else np.asarray(data.groups == name)
        certifying = max(1, round((rows_to_certify or total) * count / total))
        allowed = max(0, allowed_harm(certifying, promise.levels[0], promise.level_delta)) / certifying
        found.append(Part(rows=rows, allowed=allowed))
    return found


def _reason_of_gain(added: Gain, *, is_shown: bool) -> str:
    """Say what the learned score adds to the others."""
    found = (
        f"the probe keeps {100 * added.value:+.1f} points ({100 * added.low:+.1f} to {100 * added.high:+.1f} at 90%)"
    )
    return f"{found} against the best of the others{'' if is_shown else ', which is not shown to be more'}"


def _reason(chosen: str, coverage: Mapping[str, float], promise: CertificateSection, n: int) -> str:
    harm = f"{wording.allowed(promise.levels[0])} points of harm"
    if promise.score != AUTO:
        return f"{chosen} is the score the recipe names"
    if not any(coverage.values()):
        return f"no score is expected to keep anything within {harm} on {n} tuning examples; {chosen} is the simplest"
    others = ", ".join(f"{name} {wording.percent(share)}" for name, share in coverage.items() if name != chosen)
    is_best = coverage[chosen] == max(coverage.values())
    why = "is expected to keep most" if is_best else "is the simplest of those expected to keep most"
    return f"{chosen} {why}, {wording.percent(coverage[chosen])} within {harm} on {n} tuning examples ({others})"
