"""What commands show while artifacts are moved between here and a registry, and afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.cli.output import print_fields, progress, shown
from penstock.wording import size

if TYPE_CHECKING:
    from penstock.registry.transfer import Moved


@contextmanager
def moving(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many bytes are moved; where there is no terminal, in one line for each quarter."""
    last = -1

    def say(share: float, note: str) -> None:
        nonlocal last
        if int(4 * share) != last:
            last = int(4 * share)
            progress(f"{what}: {note}")

    def report(done: int, total: int) -> None:
        share = done / total if total else 1.0
        told(share, f"{size(done)} of {size(total)} ({int(100 * share)}%)")

    with shown(what, say) as told:
        yield report


def print_moved(verb: str, moved: Moved) -> None:
    """Print what became of it."""
    print_fields({
        verb: f"{moved.model}:{moved.tag}",
        "digest": moved.digest,
        "moved": size(moved.moved_bytes),
        "skipped": size(moved.skipped_bytes),
    })  # fmt: skip
