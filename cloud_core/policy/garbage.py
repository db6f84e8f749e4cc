"""Decides which files of the registry are garbage: nothing refers to them, and no push can be about to. Pure.

A push sends its blobs first and the manifest that refers to them last, so what nothing refers to may belong to one that
is under way: it is kept for as long as a push may take. Finds and removes nothing; that is
``cloud_core.registry.garbage``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["blob", "upload", "temporary"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Describes something on the registry's disk.

    Attributes:
        kind: ``blob``; ``upload``, one that is not finished; ``temporary``, what was being written when a process was
            killed, or was unpacked for a version that is gone.
        name: digest, or name of a file.
        touched_at: when it was written, or looked for by a push, for the last time.
        is_needed: a manifest refers to it, or a request is writing to it.
    """

    kind: Kind
    name: str
    size_bytes: int
    touched_at: float
    is_needed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """Holds what to do.

    Attributes:
        garbage: to be removed.
        young: nothing refers to it, and it is kept for now.
    """

    garbage: tuple[Stored, ...]
    young: tuple[Stored, ...]


def sort_out(found: Iterable[Stored], keep_s: Mapping[Kind, float], now: float) -> Sorted:
    """Tell garbage from what is needed, and from what is too young to tell.

    Args:
        keep_s: how long what nothing refers to is kept after it was touched. A clock that was set back keeps it longer.
        now: on the clock of ``touched_at``.
    """
    unneeded = [one for one in found if not one.is_needed]
    old = [now - one.touched_at > keep_s[one.kind] for one in unneeded]
    return Sorted(
        garbage=tuple(one for one, is_old in zip(unneeded, old, strict=True) if is_old),
        young=tuple(one for one, is_old in zip(unneeded, old, strict=True) if not is_old),
    )
