"""``make simulate``: small runs of each subject, and what the command does with names."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.simulate import audit, files, graded, groups
from benchmarks.simulate.__main__ import SUBJECTS
from compiler.certificate.binomial import allowed_harm
from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import THRESHOLDS, certify
from penstock.policy.change_detection import FRESH, updated, updated_by_share


def test_an_unknown_subject_is_refused_with_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.simulate", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert all(name in done.stderr for name in SUBJECTS)


def test_the_audit_is_simulated_with_the_numbers_of_a_device() -> None:
    state = np.zeros((1, len(FRESH)))
    evidence = FRESH
    for is_harm in (False, True, True, False):
        state = audit._after(state, np.array([is_harm]))
        evidence = updated(evidence, harm=int(is_harm), n=1, bound=audit.BOUND)
    assert state[0] == pytest.approx(evidence)


@pytest.mark.parametrize("divided", [False, True])
def test_groups_are_simulated_as_they_are_certified(divided: bool) -> None:
    """The simulation draws counts at the thresholds; rows with these counts get the same threshold from ``certify``."""
    counts = [groups._harm_counts(np.random.default_rng(seed), slope)[seed] for seed, slope in ((1, 0.1), (2, 0.4))]
    grid = np.array(THRESHOLDS)
    scores, harmful, names = [], [], []
    for number, upto in enumerate(counts):
        harms = np.repeat(grid, np.diff(upto, prepend=0))
        rest = groups._ROWS - len(harms)
        scores += [*harms, *np.ones(rest)]
        harmful += [1] * len(harms) + [0] * rest
        names += [f"g{number}"] * groups._ROWS
    zero = np.zeros(len(scores), dtype=np.int64)
    data = CertifyData(
        scores=np.array(scores),
        edge_predictions=np.array(harmful),
        cloud_predictions=zero,
        labels=zero,
        groups=np.array(names),
    )
    found = certify(data, max_harm=groups._MAX_HARM, delta=groups._DELTA, is_delta_divided=divided)
    allowed = allowed_harm(groups._ROWS, groups._MAX_HARM, groups._DELTA / 2 if divided else groups._DELTA)
    passed = min(int(groups._passed(upto[None], allowed)[0]) for upto in counts)
    assert found.threshold == grid[passed - 1]


@pytest.mark.parametrize("world", list(files.WORLDS))
def test_files_of_rows_that_repeat_or_belong_together_are_certified_by_what_is_said_of_them(world: str) -> None:
    """The table has 400 files of each world; here are eight, read, divided and certified by the compiler's own code."""
    broken, coverage = files.outcomes(*files.WORLDS[world], 8)
    if world == "Zipf by nature, nothing said":
        assert not len(broken)  # 119 distinct rows certify nothing, where 2,000 copies of them would have
        return
    assert len(broken) == 8
    assert broken.sum() <= 2
    assert coverage.mean() > 0.1


def test_audits_of_graded_answers_are_simulated_with_the_numbers_of_a_device() -> None:
    state = np.zeros((1, len(FRESH)))
    evidence = FRESH
    for share in (0.0, 0.3, 1.0, 0.05):
        state = graded.after(state, np.array([share]))
        evidence = updated_by_share(evidence, share=share, bound=graded.BOUND)
    assert state[0] == pytest.approx(evidence)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("harm", list(graded.HARMS))
def test_devices_at_the_bound_raise_no_more_false_alarms_than_promised(harm: str, rounds: bool) -> None:
    """The table has 40 million audits of each kind; here is a hundredth of them, with less than one alarm expected."""
    alarms, waits = graded.watched(graded.HARMS[harm], rounds=rounds, audits=2_000)
    assert alarms <= 3
    assert np.isfinite(waits).all()
