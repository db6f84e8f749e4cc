"""Several levels of one promise, and a promise to each of several groups."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from compiler.certificate.binomial import samples_needed
from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import THRESHOLDS, certify, promise
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact.certificates import MAX_GROUPS
from penstock.errors import CalibrationError


def data(
    scores: NDArray[np.float64], harmful: NDArray[np.bool_], groups: NDArray[np.str_] | None = None
) -> CertifyData:
    zero = np.zeros(len(scores), dtype=np.int64)
    return CertifyData(
        scores=scores, edge_predictions=harmful.astype(np.int64), cloud_predictions=zero, labels=zero, groups=groups
    )


def draw(seed: int, n: int, slope: float = 0.3) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return scores, rng.random(n) < slope * (1 - scores)


def section(*levels: float, delta: float = 0.05) -> CertificateSection:
    return CertificateSection(max_harm=levels, delta=delta)


# --- levels


def test_every_level_is_certified_at_its_share_of_delta() -> None:
    examples = data(*draw(1, 3000))
    found = promise(examples, section(0.02, 0.05, 0.01))
    assert [level.max_harm for level in found.levels] == [0.02, 0.05, 0.01]
    assert found.default.max_harm == 0.02
    for level in found.levels:
        assert level == certify(examples, max_harm=level.max_harm, delta=0.05 / 3)
    by_harm = sorted(found.levels, key=lambda level: level.max_harm)
    assert [level.threshold for level in by_harm] == sorted((level.threshold for level in by_harm), reverse=True)


def test_one_level_has_all_of_delta() -> None:
    examples = data(*draw(1, 3000))
    assert promise(examples, section(0.02)).levels == (certify(examples, max_harm=0.02, delta=0.05),)


def test_a_level_that_is_refused_is_listed_with_what_it_needs() -> None:
    found = promise(data(*draw(2, 500)), section(0.05, 0.001))
    assert [level.max_harm for level in found.levels] == [0.05]
    (refused,) = found.refused
    assert (refused.max_harm, refused.delta) == (0.001, 0.025)
    assert refused.needed == samples_needed(0.001, 0.025) == 3688
    assert "500 certifying examples are too few" in refused.reason


def test_a_refused_default_is_a_refusal_that_names_the_levels_there_could_be() -> None:
    with pytest.raises(CalibrationError, match="agents use when not told another; certified could be 0.05: ") as caught:
        promise(data(*draw(2, 500)), section(0.001, 0.05))
    assert caught.value.needed == 3688


def test_a_promise_by_labels_without_labels_is_refused_and_disagreement_does_not_look_at_them() -> None:
    examples = data(*draw(3, 500))
    with pytest.raises(CalibrationError, match='set harm = "disagreement"'):
        promise(replace(examples, labels=None), section(0.05))
    by_disagreement = msgspec.structs.replace(section(0.05), harm="disagreement")
    assert promise(examples, by_disagreement) == promise(replace(examples, labels=None), by_disagreement)


def test_a_grid_of_its_own_is_kept() -> None:
    found = promise(data(*draw(4, 800)), section(0.05), thresholds=(0.5, 0.9, 0.7))
    assert found.thresholds == (0.9, 0.7, 0.5)
    assert found.default.threshold in found.thresholds
    assert promise(data(*draw(4, 800)), section(0.05)).thresholds == THRESHOLDS


def test_all_levels_hold_at_once_in_all_but_delta_of_the_calibrations() -> None:
    """The world of the simulation beside: harm of a kept answer of score s is 0.4 (1 - s)."""
    draws, delta, levels = 400, 0.2, (0.02, 0.04, 0.08)
    broken = 0
    for seed in range(draws):
        found = promise(data(*draw(seed, 400, 0.4)), section(*levels, delta=delta))
        broken += any(0.2 * (1 - level.threshold) ** 2 > level.max_harm for level in found.levels)
    assert broken / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


# --- groups


def two_groups(seed: int, n: int) -> tuple[CertifyData, NDArray[np.str_]]:
    """By night answers are four times as harmful."""
    rng = np.random.default_rng(seed)
    groups = np.where(rng.random(n) < 0.7, "day", "night")
    scores = rng.random(n)
    harmful = rng.random(n) < np.where(groups == "day", 0.1, 0.4) * (1 - scores)
    return data(scores, harmful, groups), groups


def reference(examples: CertifyData, max_harm: float, delta: float) -> float | None:
    """The plain way, with scipy's binomial: per group by fixed-sequence testing, then the strictest."""
    assert examples.groups is not None
    names = sorted(set(examples.groups.tolist()))
    strictest = 0.0
    for name in names:
        rows = examples.groups == name
        found = None
        for threshold in THRESHOLDS:
            harm = np.count_nonzero(examples.edge_predictions[rows & (examples.scores >= threshold)])
            if scipy.stats.binom.cdf(harm, np.count_nonzero(rows), max_harm) > delta:
                break
            found = threshold
        if found is None:
            return None
        strictest = max(strictest, found)
    return strictest


@pytest.mark.parametrize("seed", range(8))
def test_groups_agree_with_the_plain_way(seed: int) -> None:
    examples, _ = two_groups(seed, 900)
    assert certify(examples, max_harm=0.04, delta=0.1).threshold == reference(examples, 0.04, 0.1)


def test_the_strictest_group_decides_and_every_group_has_its_evidence() -> None:
    examples, groups = two_groups(1, 2000)
    found = certify(examples, max_harm=0.04, delta=0.05)
    day, night = found.groups
    assert (day.name, night.name) == ("day", "night")
    assert found.threshold == night.threshold > day.threshold
    for group in (day, night):
        rows = groups == group.name
        kept = rows & (examples.scores >= found.threshold)
        assert group.n == np.count_nonzero(rows)
        assert group.kept_count == np.count_nonzero(kept)
        assert group.harm_count == np.count_nonzero(examples.edge_predictions[kept])
        assert group.coverage == group.kept_count / group.n
    assert (day.n + night.n, day.kept_count + night.kept_count) == (found.n, found.kept_count)
    assert day.harm_count + night.harm_count == found.harm_count


def test_without_groups_the_harm_of_one_may_be_above_the_promise() -> None:
    """Which is what a promise to groups is for."""
    examples, _ = two_groups(1, 2000)
    together = certify(replace(examples, groups=None), max_harm=0.04, delta=0.05)
    apart = certify(examples, max_harm=0.04, delta=0.05)
    assert together.threshold < apart.threshold
    assert 0.2 * (1 - together.threshold) ** 2 > 0.04 >= 0.2 * (1 - apart.threshold) ** 2  # true harm by night
    assert together.groups == ()


def test_one_group_is_the_promise_over_all() -> None:
    scores, harmful = draw(5, 700)
    alone = certify(data(scores, harmful), max_harm=0.04, delta=0.05)
    named = certify(data(scores, harmful, np.full(700, "all")), max_harm=0.04, delta=0.05)
    assert replace(named, groups=()) == alone


def test_groups_that_are_too_small_are_each_named_with_the_number_they_need() -> None:
    groups = np.array(["a"] * 1000 + ["b"] * 90 + ["c"] * 3)
    examples = data(np.full(1093, 0.9), np.zeros(1093, dtype=bool), groups)
    needed = samples_needed(0.02, 0.05)
    with pytest.raises(CalibrationError) as caught:
        certify(examples, max_harm=0.02, delta=0.05)
    assert caught.value.needed == needed == 149
    assert "'b' has 90, 'c' has 3, and each needs 149" in caught.value.message
    assert "'a'" not in caught.value.message


def test_sixty_four_groups_need_no_more_examples_each_than_one() -> None:
    """An intersection-union test divides no delta: with it divided, each of them would need 355."""
    rows = MAX_GROUPS * 149
    groups = np.array([f"g{row % MAX_GROUPS}" for row in range(rows)])
    examples = data(np.full(rows, 0.9), np.zeros(rows, dtype=bool), groups)
    assert certify(examples, max_harm=0.02, delta=0.05).coverage == 1
    with pytest.raises(CalibrationError) as caught:
        certify(examples, max_harm=0.02, delta=0.05, is_delta_divided=True)
    assert caught.value.needed == 355


@pytest.mark.parametrize("seed", range(4))
def test_dividing_delta_among_groups_is_only_stricter(seed: int) -> None:
    examples, _ = two_groups(seed, 900)
    whole, divided = (
        certify(examples, max_harm=0.04, delta=0.1, is_delta_divided=is_divided) for is_divided in (False, True)
    )
    assert whole.threshold <= divided.threshold
    assert divided.threshold == certify(examples, max_harm=0.04, delta=0.05).threshold
    assert divided.groups == certify(examples, max_harm=0.04, delta=0.05).groups


def test_a_group_that_harms_at_every_threshold_is_named_in_the_refusal() -> None:
    groups = np.array(["a"] * 400 + ["b"] * 400)
    harmful = np.array([False] * 400 + [True] * 6 + [False] * 394)
    with pytest.raises(CalibrationError, match=r"6 of 400 certifying examples of group 'b' are harmful") as caught:
        certify(data(np.full(800, 0.9), harmful, groups), max_harm=0.02, delta=0.05)
    assert caught.value.needed is not None
    assert caught.value.needed > 400


def test_a_group_that_keeps_nothing_does_not_stop_the_others() -> None:
    groups = np.array(["a"] * 400 + ["b"] * 400)
    scores = np.array([0.9] * 400 + [0.3] * 400)
    harmful = np.array([False] * 400 + [True] * 200 + [False] * 200)
    found = certify(data(scores, harmful, groups), max_harm=0.02, delta=0.05)
    assert 0.3 < found.threshold <= 0.9
    assert [group.kept_count for group in found.groups] == [400, 0]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (np.arange(400), "expected names"),
        (np.full(399, "a"), r"expected names \[400\]"),
        (np.array([f"g{k}" for k in range(400)]), f"400 different ones, at most {MAX_GROUPS}"),
        (np.array([""] * 400), "is no name"),
        (np.array(["x" * 201] * 400), "is no name"),
    ],
)
def test_groups_that_are_none_are_refused(groups: NDArray[np.str_], said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        certify(data(np.full(400, 0.9), np.zeros(400, dtype=bool), groups), max_harm=0.02, delta=0.05)


def test_every_group_keeps_the_promise_in_all_but_delta_of_the_calibrations() -> None:
    draws, delta, max_harm = 300, 0.2, 0.05
    broken = 0
    for seed in range(draws):
        found = certify(two_groups(seed, 500)[0], max_harm=max_harm, delta=delta)
        worst = max(0.05, 0.2) * (1 - found.threshold) ** 2  # by day and by night: slope / 2 (1 - t)^2
        broken += worst > max_harm
    assert broken / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
