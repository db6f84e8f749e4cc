"""Answers that an opinion grades: harm by how much, the test of its average, what is said of it, how often it fails."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.simulate import graded as simulated
from compiler.certificate import betting, columns, evidence, hollow, score_choice
from compiler.certificate.columns import CertifyData, Graded
from compiler.certificate.evidence import Sample
from compiler.certificate.issue import issue
from compiler.certificate.learn_then_test import THRESHOLDS, Certified, certify, promise, risk_coverage
from compiler.certificate.ranking import ranking
from compiler.certificate.score_choice import Choice
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact import certificates
from penstock.artifact.certificates import Opinion, Subject
from penstock.errors import ArtifactError, CalibrationError

Floats = NDArray[np.float64]
OPINION = Opinion(metric="score.py:overlap", digest="sha256:" + "5" * 64)
SUBJECT = Subject(
    model="m",
    edge_digest="sha256:" + "1" * 64,
    cloud_digest="sha256:" + "2" * 64,
    preprocessing_digest="sha256:" + "3" * 64,
)


def data_of(
    scores: Any, edge: Any, cloud: Any = None, *, alike: Any = None, is_known: bool = False, clusters: Any = None
) -> CertifyData:
    """Answers with these grades, the cloud's 1 where none are given."""
    edge = np.asarray(edge, dtype=np.float64)
    numbers = np.arange(len(edge))
    return CertifyData(
        scores=np.asarray(scores, dtype=np.float64),
        edge_predictions=numbers,
        cloud_predictions=numbers + 1,
        labels=numbers + 2 if is_known else None,
        clusters=None if clusters is None else np.asarray(clusters),
        graded=Graded(
            edge=edge,
            cloud=np.ones(len(edge)) if cloud is None else np.asarray(cloud, dtype=np.float64),
            alike=edge if alike is None else np.asarray(alike, dtype=np.float64),
        ),
    )


def outcome(data: CertifyData, max_harm: float = 0.2, delta: float = 0.2) -> Certified | None:
    """None for a refusal."""
    try:
        return certify(data, max_harm=max_harm, delta=delta)
    except CalibrationError:
        return None


def test_harm_is_by_how_much_the_clouds_answer_is_better() -> None:
    data = data_of([0.9] * 4, edge=[0.2, 0.9, 1.0, 0.5], cloud=[0.7, 0.4, 1.0, 0.5], is_known=True)
    assert columns.harm(data).tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0])
    assert columns.harmful(data).tolist() == [True, False, False, False]


def test_an_audit_sees_how_alike_answers_are() -> None:
    data = data_of([0.9] * 3, edge=[1.0, 1.0, 0.0], cloud=[0.0, 1.0, 0.0], alike=[0.25, 1.0, 0.5], is_known=True)
    assert columns.difference(data).tolist() == [0.75, 0.0, 0.5]
    assert columns.differ(data).tolist() == [True, False, True]


scores = st.one_of(st.floats(0, 1), st.sampled_from(THRESHOLDS), st.just(math.nan))
grades = st.one_of(st.just(1.0), st.just(1.0), st.just(1.0), st.floats(0, 1))


def reference(data: CertifyData, max_harm: float, delta: float) -> tuple[float, float] | None:
    """One bet against the average harm, one threshold after the other, written the plain way: (threshold, harm)."""
    assert data.graded is not None
    harm = np.maximum(data.graded.cloud - data.graded.edge, 0)
    clusters = np.arange(len(harm)) if data.clusters is None else data.clusters
    names, found = sorted(set(clusters.tolist())), None
    bet = betting.best_bet(len(names), max_harm, delta)
    for threshold in THRESHOLDS:
        kept = np.where(np.nan_to_num(data.scores, nan=-1) >= threshold, harm, 0.0)
        shares = [kept[clusters == name].mean() for name in names]
        wealth = math.prod(1 + bet * (max_harm - share) for share in shares)
        if wealth < 1 / delta * (1 - 1e-9):
            break
        found = (threshold, float(np.mean(shares)))
    return found


@given(st.lists(st.tuples(scores, grades, st.integers(0, 12)), min_size=8, max_size=60), st.booleans())
def test_the_test_is_one_bet_against_the_average_harm(rows: list[tuple[float, float, int]], has_clusters: bool) -> None:
    columns_of = [list(column) for column in zip(*rows, strict=True)]
    data = data_of(columns_of[0], columns_of[1], clusters=columns_of[2] if has_clusters else None)
    found, plain = outcome(data), reference(data, 0.2, 0.2)
    if found is None:
        assert plain is None or not (data.scores >= plain[0]).any()
        return
    assert plain is not None
    assert found.threshold == pytest.approx(plain[0])
    assert found.harm_mean == pytest.approx(plain[1], abs=1e-9)


@given(st.lists(st.tuples(scores, st.booleans(), st.integers(0, 20)), min_size=8, max_size=60))
def test_grades_of_0_and_1_are_right_and_wrong_ones(rows: list[tuple[float, bool, int]]) -> None:
    some, wrong, clusters = (np.array(column) for column in zip(*rows, strict=True))
    as_grades = data_of(some, 1.0 - wrong, clusters=clusters)
    as_classes = CertifyData(
        scores=some, edge_predictions=wrong.astype(int), cloud_predictions=np.zeros(len(some), int), clusters=clusters
    )
    one, other = outcome(as_grades), outcome(as_classes)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.harm_mean is not None
        assert replace(one, harm_mean=None) == other


def test_many_answers_that_are_a_little_worse_cost_less_than_a_few_that_are_wholly() -> None:
    few = data_of([0.9] * 300, [0.0] * 9 + [1.0] * 291)
    many = data_of([0.9] * 300, [0.97] * 300)
    assert outcome(few, 0.05, 0.05) is None
    found = certify(many, max_harm=0.05, delta=0.05)
    assert (found.harm_count, found.harm_mean) == (300, pytest.approx(0.03))


def test_too_few_are_refused_with_the_number_that_is_enough_without_harm() -> None:
    with pytest.raises(CalibrationError, match="148 certifying examples are too few") as caught:
        certify(data_of([0.9] * 148, [1.0] * 148), max_harm=0.02, delta=0.05)
    assert caught.value.needed == 149
    assert certify(data_of([0.9] * 149, [1.0] * 149), max_harm=0.02, delta=0.05).harm_mean == 0.0


def test_the_number_that_is_said_to_be_enough_is_and_fewer_are_not() -> None:
    def some(n: int) -> CertifyData:
        return data_of([0.9] * n, ([0.9] * 3 + [1.0] * 7) * (n // 10))

    with pytest.raises(CalibrationError, match=r"90 of 300 .* are harmful \(by 0.0300 on average") as caught:
        certify(some(300), max_harm=0.035, delta=0.001)
    needed = caught.value.needed
    assert needed is not None
    assert certify(some(10 * math.ceil(needed / 10)), max_harm=0.035, delta=0.001)
    with pytest.raises(CalibrationError):
        certify(some(10 * (needed // 10) - 10), max_harm=0.035, delta=0.001)


def test_with_right_answers_an_audit_has_a_bound_of_its_own() -> None:
    """Answers that differ from the cloud's by 0.1 and are as good: no harm, and an audit sees it all the same."""
    data = data_of([0.9] * 400, [0.6] * 400, [0.6] * 400, alike=[0.9] * 400, is_known=True)
    found = certify(data, max_harm=0.02, delta=0.05)
    assert found.harm == "labels"
    assert 0.1 < found.audit_max_harm < 0.2
    assert certify(data_of([0.9] * 400, [1.0] * 400), max_harm=0.02, delta=0.05).audit_max_harm == 0.02


@pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01, math.inf])
def test_grades_that_are_none_are_refused(bad: float) -> None:
    data = data_of([0.9] * 200, [bad] + [1.0] * 199)
    with pytest.raises(CalibrationError, match="graded.edge: 1 of 200 are no numbers from 0 to 1"):
        certify(data, max_harm=0.05, delta=0.05)


# --- the document


def examples(*, is_known: bool = True, groups: bool = False, clusters: bool = False, n: int = 600) -> CertifyData:
    rng = np.random.default_rng(7)
    some = rng.random(n)
    cloud = rng.uniform(0.6, 1.0, n)
    edge = np.clip(cloud - rng.beta(1, 3, n) * 0.4 * (1 - some), 0, 1)
    data = data_of(
        some,
        edge,
        cloud if is_known else None,
        alike=1 - np.abs(cloud - edge) / 2 if is_known else None,
        is_known=is_known,
        clusters=rng.integers(0, 400, n) if clusters else None,
    )
    return replace(data, groups=np.where(rng.random(n) < 0.5, "a", "b") if groups else None)


CHOICE = Choice(score="token_min", temperature=1.0, coverage={}, thresholds=THRESHOLDS, reason="")


def issued(data: CertifyData, section: CertificateSection | None = None, **more: Any) -> Any:
    harm = "disagreement" if data.labels is None else "labels"
    section = section or CertificateSection(max_harm=(0.03, 0.06, 0.001), delta=0.1)
    sample = Sample(
        digest="sha256:" + "4" * 64,
        group_by="" if data.groups is None else "kind",
        cluster_by="" if data.clusters is None else "user",
        rows=len(data.scores),
    )
    section = msgspec.structs.replace(section, harm=harm)
    return issue(data, section, CHOICE, SUBJECT, sample, opinion=OPINION, **more)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("clusters", [False, True])
def test_every_figure_is_found_again(groups: bool, is_known: bool, clusters: bool) -> None:
    found = issued(examples(groups=groups, is_known=is_known, clusters=clusters))
    again = certificates.decode(certificates.encode(found.certificate))
    assert again == found.certificate
    assert (again.test, again.opinion) == ("betting-clusters" if clusters else "betting", OPINION)
    assert evidence.differences(again, evidence.decode(found.evidence)) == []


def test_a_certificate_says_whose_opinion_it_is_and_what_answers_were_compared_with() -> None:
    by_answers, by_cloud = (issued(examples(is_known=is_known)).certificate.promise() for is_known in (True, False))
    assert (
        "costs at most 3 points of quality, as score.py:overlap (sha256:555555555555) grades answers by the right "
        "answers, against always asking the cloud"
    ) in by_answers
    assert "grades answers by the cloud's answers, against" in by_cloud


def test_other_grades_than_were_certified_are_found() -> None:
    found = issued(examples())
    held = evidence.decode(found.evidence)
    assert held.data.graded is not None
    lower = replace(held.data.graded, edge=held.data.graded.edge * 0.99)
    said = evidence.differences(found.certificate, replace(held, data=replace(held.data, graded=lower)))
    assert any("harm_mean" in text for text in said)


def test_an_opinion_without_grades_and_grades_without_an_opinion_are_found() -> None:
    found = issued(examples())
    held = evidence.decode(found.evidence)
    none = msgspec.structs.replace(found.certificate, opinion=None)
    assert "opinion: None, the evidence has grades" in evidence.differences(none, held)
    plain = replace(held, data=replace(held.data, graded=None))
    assert "opinion: score.py:overlap, the evidence has no grades" in evidence.differences(found.certificate, plain)


def test_evidence_with_some_of_the_grades_is_refused() -> None:
    from penstock.wire import tensors

    named = tensors.unpack(issued(examples()).evidence)
    del named["alike_grades"]
    with pytest.raises(ArtifactError, match="edge_grades, cloud_grades, alike_grades come together; 2 are there"):
        evidence.decode(tensors.pack(named))


def test_a_release_that_knows_no_opinion_cannot_read_the_certificate() -> None:
    """It escalates everything then (``LoadPlan.certificate`` is None): never may it take the promise for another."""

    class Before(msgspec.Struct, forbid_unknown_fields=True):
        harm: str
        test: str = "binomial"

    written = msgspec.json.decode(certificates.encode(issued(examples()).certificate))
    assert written["test"] == "betting"  # no test that it knows, either
    with pytest.raises(msgspec.ValidationError, match="opinion"):
        msgspec.convert({name: written[name] for name in ("harm", "test", "opinion")}, Before)


# --- promises that say little


def test_answers_in_which_an_opinion_finds_nothing_are_no_measure() -> None:
    nothing = data_of([0.9] * 300, [0.0] * 300, [0.0] * 298 + [0.3] * 2, is_known=True)
    with pytest.raises(
        CalibrationError, match=r"not shown to find anything good in the cloud's answers to 300.*metric"
    ):
        issued(nothing)
    unchecked = CertificateSection(max_harm=0.03, delta=0.1, check_cloud=False)
    assert issued(nothing, unchecked).certificate.promise().startswith("the metric is not shown to find anything good")


def test_a_cloud_that_is_no_better_and_answers_that_are_alike_are_told() -> None:
    better = data_of([0.9] * 300, [0.8] * 300, [0.7] * 300, alike=[0.5] * 300, is_known=True)
    same = data_of([0.9] * 300, [1.0] * 300)
    kinds = [found and found.kind for found in (hollow.caveat(better), hollow.caveat(same), hollow.caveat(examples()))]
    assert kinds == ["cloud-no-better", "same-answers", None]
    found = issued(better)
    assert evidence.differences(found.certificate, evidence.decode(found.evidence)) == []


# --- what is chosen and shown


def test_an_answer_that_is_harmful_in_part_is_as_much_of_each_in_a_ranking() -> None:
    rng = np.random.default_rng(3)
    some, harm = rng.random(50), rng.random(50)
    pairs = [
        (harm[low] * (1 - harm[high]), (some[high] > some[low]) + 0.5 * (some[high] == some[low]))
        for low in range(50)
        for high in range(50)
    ]
    expected = sum(weight * ahead for weight, ahead in pairs) / (harm.sum() * (1 - harm).sum())
    assert ranking(some, harm).auroc == pytest.approx(expected)
    assert ranking(some, harm).curve[-1] == pytest.approx((1.0, harm.mean()))


def test_the_curve_is_of_average_harm() -> None:
    data = examples()
    curve = risk_coverage(data)
    assert curve[-1].harm == pytest.approx(float(columns.harm(data).mean()))
    assert [point.harm for point in curve] == sorted(point.harm for point in curve)


def test_a_score_is_chosen_by_what_grades_will_certify() -> None:
    rng = np.random.default_rng(9)
    probabilities = [rng.uniform(0.2, 1.0, 6) for _ in range(400)]
    grades = np.array([1 - 0.4 * (1 - row.min()) for row in probabilities])
    numbers = np.arange(400)
    found = score_choice.choose_token_score(
        probabilities,
        numbers,
        numbers + 1,
        None,
        CertificateSection(max_harm=0.2, harm="disagreement"),
        graded=Graded(edge=grades, cloud=np.ones(400), alike=grades),
        rows_to_certify=400,
    )
    assert found.coverage["token_min"] > 0.3
    assert found.score == "token_min"


# --- the promise itself


@pytest.mark.parametrize("world", list(simulated.WORLDS))
def test_the_promise_is_broken_in_at_most_delta_of_the_calibrations(world: str) -> None:
    """The table of ``make simulate ARGS=graded`` has 2,000 calibrations; here are 40 of each world."""
    found = simulated.outcomes(simulated.WORLDS[world], 40)
    delta = simulated.DELTA
    assert found.broken.mean() <= delta + 3 * math.sqrt(delta * (1 - delta) / 40)
    assert found.kept.mean() >= found.other_kept.mean() - 0.005  # never less than Hoeffding's and Bentkus's bounds keep
    assert found.kept.mean() >= 0.3  # a promise kept by keeping nothing would be worth nothing


def test_the_simulation_would_notice_a_threshold_chosen_by_the_harm_seen() -> None:
    broken = 0
    for seed in range(60):
        data = simulated.WORLDS["from 0 to 1 (Beta)"].draw(np.random.default_rng(seed))
        naive = min(point.threshold for point in risk_coverage(data) if point.harm <= simulated.MAX_HARM)
        broken += simulated._true_harm(naive) > simulated.MAX_HARM
    assert broken / 60 > 0.25


def test_a_promise_of_a_recipe_has_every_level() -> None:
    found = promise(examples(), CertificateSection(max_harm=(0.03, 0.06), delta=0.1))
    assert [level.max_harm for level in found.levels] == [0.03, 0.06]
    assert found.test == "betting"
