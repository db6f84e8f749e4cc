"""Figures for people are written in one way, wherever they stand."""

from __future__ import annotations

import pytest

from compiler.artifact.evaluation import Share, Speedup
from penstock import wording


def test_shares_are_written_in_one_way() -> None:
    share = Share(value=423 / 447, low=0.9211, high=0.9652, n=447)
    assert wording.counted(share) == "94.6% (423 of 447; 92.1% to 96.5%)"
    assert (wording.percent(1), wording.points(0.00671), wording.allowed(0.02)) == ("100.0%", "0.67", "2")
    assert (wording.bound(0.02348), wording.confidence(0.05), wording.change(-0.012)) == ("2.35%", "95%", "-1.2%")
    assert wording.times(Speedup(value=2.5, low=2.41, high=2.6)) == "2.50x (2.41x to 2.60x)"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_960, "100 kB"),
        (999_700, "1.0 MB"),
        (1_050_774, "1.1 MB"),
        (25e9, "25.0 GB"),
        (2e15, "2000 TB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert wording.size(count) == text


@pytest.mark.parametrize(("value", "text"), [(0.01149, "0.011"), (1.234, "1.23"), (123.4, "123.4")])
def test_milliseconds_for_people(value: float, text: str) -> None:
    assert wording.milliseconds(value) == text


def test_what_is_cut_shows_it() -> None:
    assert wording.brief("a lens is broken", 16) == "a lens is broken"
    assert wording.brief("a lens is broken.", 16) == "a lens is br ..."
    assert wording.brief("a lens of cam-1 is broken", 11) == "a lens ..."
