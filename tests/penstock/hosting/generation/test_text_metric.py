"""A function of somebody's that grades texts: what is refused when it is loaded, and what of its grades."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.errors import InvalidInput
from penstock.hosting.generation.text_metric import TextMetric

Load = Callable[..., TextMetric]
SOUND = "def half(prompt, answer, reference):\n    return 0.5 if answer == reference else 0\n"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(source: str, name: str = "half") -> TextMetric:
        (tmp_path / "score.py").write_text(source)
        return TextMetric.load(f"score.py:{name}", tmp_path, setting="model.metric")

    return loaded


def test_a_function_is_asked_and_known_by_the_digest_of_its_source(load: Load, tmp_path: Path) -> None:
    metric = load(SOUND)
    assert metric.grade("p", "a", "a", where="row 0") == 0.5
    assert metric.grade("p", "a", "b", where="row 0") == 0.0
    assert (metric.opinion.metric, metric.opinion.function) == ("score.py:half", "half")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "score.py", tmp_path / "elsewhere" / "other.py")
    again = TextMetric.load("other.py:half", tmp_path / "elsewhere", setting="cascade.metric_of")
    assert again.opinion.digest == metric.opinion.digest
    assert load(SOUND + "# another\n").opinion.digest != metric.opinion.digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "model.metric: score.py has no function 'half'"),
        (
            "def half(prompt, answer):\n    return 1\n",
            "cannot be called with three texts, prompt, answer and reference",
        ),
        ("def half(a, b, c, d):\n    return 1\n", "missing a required argument: 'd'"),
        ("def half(:\n", "score.py:1: SyntaxError"),
        ("raise RuntimeError('no weights')\n", "score.py:1 in <module>: RuntimeError: no weights"),
    ],
)
def test_what_is_no_metric_is_refused_when_it_is_loaded(load: Load, source: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load(source)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("float('nan')", "row 7: gave nan, expected 0 to 1"),
        ("-0.1", "row 7: gave -0.1, expected 0 to 1"),
        ("1.01", "row 7: gave 1.01, expected 0 to 1"),
        ("float('inf')", "row 7: gave inf, expected 0 to 1"),
        ("None", "row 7: gave NoneType, expected a number from 0 to 1"),
        ("'0.5'", "row 7: gave str, expected a number from 0 to 1"),
        ("[0.5]", "row 7: gave list, expected a number from 0 to 1"),
        ("1 / 0", "row 7: score.py:2 in half: ZeroDivisionError"),
        ("exit(3)", "row 7: score.py:2 in half: SystemExit: 3"),
    ],
)
def test_a_grade_that_is_none_is_refused_with_its_row(load: Load, given: str, message: str) -> None:
    metric = load(f"def half(prompt, answer, reference):\n    return {given}\n")
    with pytest.raises(InvalidInput, match=message):
        metric.grade("p", "a", "b", where="row 7")


@pytest.mark.parametrize("given", ["True", "1", "numpy.float32(1)", "numpy.bool_(1)", "1 + 1e-12"])
def test_numbers_of_any_kind_are_grades(load: Load, given: str) -> None:
    assert load(f"import numpy\ndef half(*texts):\n    return {given}\n").grade("p", "a", "b", where="row 0") == 1.0


@pytest.mark.parametrize("name", ["changing.py:half", "changing:half"])
def test_the_digest_is_that_of_what_runs_whatever_was_imported_before(tmp_path: Path, name: str) -> None:
    """A device runs for months: another source may lie there when the next certificate comes."""
    (tmp_path / "changing.py").write_text("import worth_of_it\ndef half(*texts):\n    return worth_of_it.WORTH\n")
    found = []
    for worth in ("0.5", "0.125"):
        (tmp_path / "worth_of_it.py").write_text(f"WORTH = {worth}\n")
        metric = TextMetric.load(name, tmp_path, setting="cascade.metric_of")
        found.append((metric.grade("p", "a", "b", where="row 0"), metric.opinion.digest))
    (first, one), (second, other) = found
    assert (first, second) == (0.5, 0.125)
    assert one != other
