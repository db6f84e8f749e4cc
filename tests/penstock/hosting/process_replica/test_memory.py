"""Memory of both sides of a pipe, here both in one process: two slots over one descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from penstock.hosting.process_replica.memory import Slot, can_share

pytestmark = pytest.mark.skipif(not can_share(), reason="this system has no memory without a name")
MIB = 1024 * 1024


@pytest.fixture
def sides() -> Iterator[tuple[Slot, Slot]]:
    ours = Slot.create()
    theirs = Slot(os.dup(ours.descriptor))
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_one_side_writes_the_other_sees_also_after_it_has_grown(sides: tuple[Slot, Slot]) -> None:
    ours, theirs = sides
    for size in (10, 3 * MIB, 100):
        ours.grown(size)[size - 1] = 7
        assert theirs.seen(size)[size - 1] == 7
        theirs.grown(size + 2 * MIB)[size + MIB] = 8
        assert ours.seen(size + 2 * MIB)[size + MIB] == 8


def test_views_stay_valid_when_it_grows_or_is_closed(sides: tuple[Slot, Slot]) -> None:
    ours, _ = sides
    view = ours.grown(10)
    view[3] = 5
    ours.grown(5 * MIB)
    assert view[3] == 5
    ours.close()
    ours.close()
    assert view[3] == 5


def test_it_does_not_grow_with_every_batch(sides: tuple[Slot, Slot]) -> None:
    ours, _ = sides
    sizes = set()
    for size in range(1, 2 * MIB, MIB // 8):
        ours.grown(size)
        sizes.add(os.fstat(ours.descriptor).st_size)
    assert len(sizes) == 2


def test_what_is_not_there_is_no_bus_error(sides: tuple[Slot, Slot]) -> None:
    _, theirs = sides
    with pytest.raises((ValueError, OSError)):
        theirs.seen(MIB)


def test_memory_of_a_batch_that_was_much_larger_than_usual_is_given_back(sides: tuple[Slot, Slot]) -> None:
    ours, _ = sides
    size = 64 * MIB
    ours.grown(size)[: 40 * MIB] = b"x" * (40 * MIB)
    assert os.fstat(ours.descriptor).st_blocks * 512 >= 40 * MIB
    ours.used(size)
    assert os.fstat(ours.descriptor).st_blocks * 512 <= MIB
    ours.grown(10)[0] = 1
