"""The losses and the schedule, computed in torch and compared with numpy's own arithmetic."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from penstock import toolchain

RUNNERS = Path(__file__).parents[3] / "compiler" / "runners"
PROGRAM = f"""
import sys
sys.path.insert(0, {str(RUNNERS)!r})
import torch
import distill_losses as losses
from distill_training import rate_at
from protocol import serve

def check(job):
    student, teacher = (torch.tensor(job[name], requires_grad=True) for name in ("student", "teacher"))
    classes = torch.tensor(job["classes"])
    found = {{}}
    for name, loss in {{
        "soft": losses.distilling(3.0, 0.0), "both": losses.distilling(3.0, 0.25), "labels": losses.labels_alone(),
        "gatekeeper": losses.gatekeeper(0.7),
    }}.items():
        value = loss(student, teacher, classes)
        student.grad = None
        value.backward()
        found[name] = [value.item(), student.grad.tolist()]
    found["rates"] = [rate_at(step, 100, 2.0) for step in range(100)]
    return found

serve(check)
"""


@pytest.fixture(scope="module")
def logits() -> dict[str, Any]:
    source = np.random.default_rng(5)
    student, teacher = source.normal(size=(2, 12, 4)) * 3
    return {"student": student.tolist(), "teacher": teacher.tolist(), "classes": source.integers(0, 4, 12).tolist()}


@pytest.fixture(scope="module")
def found(torch: str, logits: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runner = tmp_path_factory.mktemp("losses") / "check.py"
    runner.write_text(PROGRAM)
    return toolchain.call(torch, runner, logits)


def soft(student: np.ndarray[Any, Any], teacher: np.ndarray[Any, Any]) -> float:
    return 9.0 * float(rel_entr(softmax(teacher / 3, axis=1), softmax(student / 3, axis=1)).sum(axis=1).mean())


def test_soft_targets(found: dict[str, Any], logits: dict[str, Any]) -> None:
    student, teacher, classes = (np.array(logits[name]) for name in ("student", "teacher", "classes"))
    entropy = -log_softmax(student, axis=1)[np.arange(12), classes].mean()
    assert found["soft"][0] == pytest.approx(soft(student, teacher))
    assert found["labels"][0] == pytest.approx(entropy)
    assert found["both"][0] == pytest.approx(0.25 * entropy + 0.75 * soft(student, teacher))


def test_gatekeeper_is_sure_where_right_and_unsure_where_wrong(found: dict[str, Any], logits: dict[str, Any]) -> None:
    student, classes = np.array(logits["student"]), np.array(logits["classes"])
    p = softmax(student, axis=1)
    right = student.argmax(axis=1) == classes
    assert 0 < right.sum() < 12
    to_uniform = rel_entr(p, np.full_like(p, 0.25)).sum(axis=1)
    expected = np.where(right, 0.7 * -np.log(p[np.arange(12), classes]), 0.3 * to_uniform).mean()
    value, gradient = found["gatekeeper"]
    assert value == pytest.approx(expected)
    # a step against the gradient lowers the largest probability where the student is wrong, and raises it where right
    after = softmax(student - np.array(gradient), axis=1).max(axis=1)
    assert (np.sign(after - p.max(axis=1)) == np.where(right, 1, -1)).all()


def test_the_rate_rises_and_falls(found: dict[str, Any]) -> None:
    rates = found["rates"]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert all(later <= earlier for earlier, later in pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0.02, abs=0.002)
