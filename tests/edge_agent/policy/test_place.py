"""A copy is told from a restart, an upgrade and a repair."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_agent.policy.place import NOWHERE, Place, is_elsewhere, learned

HERE = Place(inode=7, changed_at_ns=1_000, serial="board-1")


@pytest.mark.parametrize(
    ("what", "now"),
    [
        ("a restart", HERE),
        ("another owner or mode, or a new name", replace(HERE, changed_at_ns=2_000)),
        ("other inodes with each mount", replace(HERE, inode=8)),
        ("another user, who may not read the serial number", replace(HERE, serial="")),
        ("a directory that takes no writes any more", replace(HERE, inode=0, changed_at_ns=0)),
        ("nothing to be seen", NOWHERE),
    ],
)
def test_it_is_where_it_was(what: str, now: Place) -> None:
    assert not is_elsewhere(HERE, now), what
    assert not is_elsewhere(now, HERE), what


@pytest.mark.parametrize(
    ("what", "now"),
    [
        ("files copied on the same machine", replace(HERE, inode=8, changed_at_ns=2_000)),
        ("files copied to another machine", Place(inode=8, changed_at_ns=2_000, serial="board-2")),
        ("an image of the whole card in another board", replace(HERE, serial="board-2")),
        ("files copied where no serial number is told", Place(inode=8, changed_at_ns=2_000)),
    ],
)
def test_it_is_a_copy(what: str, now: Place) -> None:
    assert is_elsewhere(HERE, now), what


def test_what_cannot_be_seen_today_is_not_forgotten() -> None:
    assert learned(HERE, NOWHERE) == HERE
    assert learned(HERE, replace(HERE, serial="", changed_at_ns=5)) == replace(HERE, changed_at_ns=5)
    assert learned(NOWHERE, HERE) == HERE
