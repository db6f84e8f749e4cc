"""What a head learns, what it must not learn, and when a learned score is taken."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from compiler.certificate import probe
from compiler.certificate.gain import Part, gain
from compiler.certificate.probe import Seen
from compiler.certificate.ranking import ranking
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError
from penstock.policy import confidence
from tests.compiler.certificate import classifiers

CLASSES = 4


def world(rows: int, seed: int, *, bad_class: int | None = None, width: int = 12) -> tuple[Seen, NDArray[np.bool_]]:
    """Return rows whose labels follow their softmax, and which answers are harmful.

    Args:
        bad_class: a class whose answers are wrong half of the time, whatever the logits say.
    """
    source = np.random.default_rng(seed)
    logits = (2.5 * source.normal(size=(rows, CLASSES))).astype(np.float32)
    odds = confidence.softmax(logits)
    labels = (odds.cumsum(axis=1) < source.random((rows, 1))).sum(axis=1).clip(0, CLASSES - 1)
    answered = logits.argmax(axis=1)
    harmful = answered != labels
    if bad_class is not None:
        harmful |= (answered == bad_class) & (source.random(rows) < 0.5)
    features = source.normal(size=(rows, width)).astype(np.float32)
    return Seen(outputs=logits, features=features, kind="logits"), harmful


def scores_of(seen: Seen) -> dict[str, NDArray[np.float64]]:
    return {name: confidence.score(seen.outputs, kind="logits", name=name) for name in confidence.SCORES}


def everything(rows: int, allowed: float) -> list[Part]:
    return [Part(rows=np.full(rows, True), allowed=allowed)]


def test_a_class_that_is_not_to_be_trusted_is_learnt_and_shown() -> None:
    seen, harmful = world(800, 1, bad_class=2)
    learned = probe.cross_fitted(seen, harmful, temperature=1.0, seed=0)
    found = gain(learned, scores_of(seen), harmful, everything(800, 0.05))
    assert found.low > 0.02
    assert found.low < found.value < found.high
    again, harmful_again = world(4000, 2, bad_class=2)
    head = probe.fit(seen, harmful, temperature=1.0, seed=0)
    kept = gain(head.confidences(again), scores_of(again), harmful_again, everything(4000, 0.05))
    assert kept.value > 0.05  # on rows that nothing was learnt from


def test_where_the_softmax_knows_all_there_is_nothing_is_shown() -> None:
    for seed in range(8):
        seen, harmful = world(400, seed)
        learned = probe.cross_fitted(seen, harmful, temperature=1.0, seed=0)
        assert gain(learned, scores_of(seen), harmful, everything(400, 0.05)).low <= 0


def test_features_that_tell_harm_are_used_and_many_that_do_not_are_held_back() -> None:
    seen, _ = world(600, 3, width=200)
    source = np.random.default_rng(4)
    told = source.random(600) < 1 / (1 + np.exp(2 - 2.5 * seen.features[:, 0]))
    features = seen.features * np.where(np.arange(200) == 0, 3.0, 1.0).astype(np.float32)
    knowing = Seen(outputs=seen.outputs, features=features, kind="logits")
    learned = probe.cross_fitted(knowing, told, temperature=1.0, seed=0)
    assert roc_auc_score(~told, learned) > 0.7
    chance = source.random(600) < 0.2
    learned = probe.cross_fitted(knowing, chance, temperature=1.0, seed=0)
    assert abs(roc_auc_score(~chance, learned) - 0.5) < 0.08


def test_copies_of_a_row_never_tell_its_head_about_it() -> None:
    seen, _ = world(100, 5, width=64)
    harmful = np.random.default_rng(6).random(100) < 0.3  # nothing can be learnt
    copies = np.repeat(np.arange(100), 8)
    learned = probe.cross_fitted(seen.rows(copies), harmful[copies], temperature=1.0, seed=0)
    assert roc_auc_score(~harmful[copies], learned) < 0.65


def test_rows_that_belong_together_are_left_out_together_and_drawn_together() -> None:
    seen, _ = world(100, 5, width=64)
    harmful = np.random.default_rng(6).random(100) < 0.3
    copies = np.repeat(np.arange(100), 8)
    noise = np.random.default_rng(7).normal(0, 1e-3, (800, CLASSES)).astype(np.float32)
    nearly = Seen(outputs=seen.outputs[copies] + noise, features=seen.features[copies], kind="logits")
    clusters = copies + 1000
    learned = probe.cross_fitted(nearly, harmful[copies], temperature=1.0, seed=0, clusters=clusters)
    assert roc_auc_score(~harmful[copies], learned) < 0.65
    told = probe.cross_fitted(nearly, harmful[copies], temperature=1.0, seed=0)
    assert roc_auc_score(~harmful[copies], told) > 0.75  # what copies would have told
    few = gain(learned, scores_of(nearly), harmful[copies], everything(800, 0.1), clusters=clusters)
    many = gain(learned, scores_of(nearly), harmful[copies], everything(800, 0.1))
    assert few.value == pytest.approx(many.value)
    assert few.high - few.low > 1.5 * (many.high - many.low)


def test_the_same_rows_give_the_same_head() -> None:
    seen, harmful = world(300, 7, bad_class=0)
    one, other = (probe.fit(seen, harmful, temperature=0.8, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.confidences(seen), other.confidences(seen))


@pytest.mark.parametrize(("harmful", "problem"), [(19, "19 of 60 tuning rows are"), (41, "19 of 60 are harmless")])
def test_too_few_rows_to_learn_from_are_refused(harmful: int, problem: str) -> None:
    seen, _ = world(60, 8)
    with pytest.raises(CalibrationError, match=f"{problem}.*a head needs 20"):
        probe.fit(seen, np.arange(60) < harmful, temperature=1.0, seed=0)


def test_numbers_that_are_not_finite_are_refused() -> None:
    seen, harmful = world(200, 9, bad_class=1)
    seen.features[3, 2] = np.nan
    with pytest.raises(CalibrationError, match="not finite"):
        probe.cross_fitted(seen, harmful, temperature=1.0, seed=0)


def test_a_learned_score_is_chosen_only_where_it_is_shown_to_keep_more() -> None:
    for bad_class, chosen in ((2, "probe"), (None, "m")):
        seen, harmful = world(800, 10, bad_class=bad_class)
        edge = confidence.predicted(seen.outputs)
        labels = np.where(harmful, (edge + 1) % CLASSES, edge)
        learned = probe.cross_fitted(seen, harmful, temperature=1.0, seed=0)
        choice = classifiers.choose(
            seen.outputs, edge, labels, labels, "logits", CertificateSection(max_harm=0.05), learned=learned
        )
        assert choice.score.startswith(chosen)
        assert choice.gain is not None
        assert ("not shown to be more" in choice.reason) == (choice.score != "probe")
        assert set(choice.rankings) == {*confidence.SCORES, "probe"}


def test_a_score_of_their_own_that_rows_do_not_have_cannot_be_named() -> None:
    seen, harmful = world(100, 11)
    edge = confidence.predicted(seen.outputs)
    labels = np.where(harmful, (edge + 1) % CLASSES, edge)
    with pytest.raises(CalibrationError, match="'probe' cannot be had of these outputs"):
        classifiers.choose(seen.outputs, edge, labels, labels, "logits", CertificateSection(score="probe"))


def test_a_gain_is_of_the_share_kept_within_what_every_part_allows() -> None:
    harmful = np.array([False, False, True, False, True, False, False, True])
    ours = np.array([0.9, 0.8, 0.1, 0.7, 0.1, 0.6, 0.5, 0.1])  # all five harmless rows come first
    theirs = {"one": np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]), "other": np.full(8, 0.5)}
    rows = np.arange(8) < 4
    assert gain(ours, theirs, harmful, everything(8, 0.0)).value == pytest.approx(5 / 8 - 2 / 8)
    parts = [Part(rows=rows, allowed=0.0), Part(rows=~rows, allowed=0.5)]
    assert gain(ours, theirs, harmful, parts).value == pytest.approx(5 / 8 - 2 / 8)
    lenient = [Part(rows=rows, allowed=0.25), Part(rows=~rows, allowed=0.5)]
    assert gain(ours, theirs, harmful, lenient).value == pytest.approx(0.0)  # of all, both keep everything
    assert gain(np.full(8, np.nan), theirs, harmful, everything(8, 0.0)).value == pytest.approx(-2 / 8)


def test_a_ranking_is_the_area_under_the_curve_and_risk_against_coverage() -> None:
    source = np.random.default_rng(12)
    harmful = source.random(300) < 0.2
    scores = np.round(source.random(300), 1)  # with ties
    found = ranking(scores, harmful)
    assert found.auroc == pytest.approx(roc_auc_score(~harmful, scores))
    assert found.curve[0] == (0.0, 0.0)
    assert found.curve[-1] == (1.0, pytest.approx(harmful.mean()))
    assert ranking(np.append(scores, np.nan), np.append(harmful, True)).curve[-1][0] == pytest.approx(300 / 301)
    assert ranking(scores, np.zeros(300, np.bool_)).auroc is None
