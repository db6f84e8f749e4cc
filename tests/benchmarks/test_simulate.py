"""``make simulate``: small runs of each subject, and what the command does with names."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.simulate import audit
from benchmarks.simulate.__main__ import SUBJECTS
from penstock.policy.change_detection import FRESH, updated


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
