"""Which rows are no independent draws of each other: equal rows, and rows that a column says belong together. Pure.

Two worlds hide in repeated rows, and only their owner knows which it is. Rows that repeat by nature (commands, log
lines, categories) are draws like any others, and service will repeat them too. Copies (augmentation, ``np.repeat``) say
one thing several times, and service will bring new ones: one of each is kept. Rows of one patient, camera or session
are clusters: they stay whole, and are certified as wholes. Where a recipe does not say, the careful reading is taken
and said. What is promised of clusters is ``compiler.certificate``.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compiler.data.dataset import Repeats, Split
from compiler.data.splitting import own_keys, row_keys
from compiler.recipe.data_section import DataSection
from penstock.errors import InvalidInput

_WHOSE = ("patient", "subject", "participant", "person", "speaker", "user", "device", "camera", "session")
"""What rows belong to, the one that holds the others first: a user has sessions."""

_ENDINGS = ("", "s", "id", "ids", "no", "nr", "num", "number", "name", "key", "uuid", "hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """A split as it is used from here on.

    Attributes:
        split: without copies, or with its clusters.
        rows: a digest of the inputs of each row that was read, copies included.
        together: a key of each row of ``split``; rows with one key have to stay together.
    """

    split: Split
    rows: Sequence[bytes]
    together: Sequence[bytes]


def column(section: DataSection, names: Sequence[str], taken: Sequence[str]) -> str:
    """Return the column that says what belongs together: the recipe's, or one with an obvious name; "" for none.

    Args:
        names: columns or arrays of the source.
        taken: those that are something else already: an input, the labels, the groups.
    """
    if section.cluster_by or section.repeats == "natural":
        return section.cluster_by
    free = {_plain(name): name for name in reversed(names) if name not in taken}
    forms = (f"{whose}{ending}" for whose in _WHOSE for ending in _ENDINGS)
    return next((free[form] for form in forms if form in free), "")


def told(error: InvalidInput, section: DataSection, name: str) -> InvalidInput:
    """Return an error about the column ``name``; where nobody asked for it, with why it was read at all."""
    if section.cluster_by or error.field is None or not error.field.endswith(name):
        return error
    return InvalidInput(
        f"{error.message.rstrip('.')}. It is read because its name says what rows belong to; "
        'data.repeats = "natural" leaves it alone',
        field=error.field,
    )


def arranged(
    splits: Sequence[Split], names: Sequence[NDArray[np.str_]] | None, section: DataSection, *, cluster_by: str
) -> tuple[list[Arranged], Repeats]:
    """Arrange the splits of a source (or the one part of one without) by what the recipe says of repeated rows.

    Args:
        names: what each row belongs to, by split; None where nothing says so.
        cluster_by: what the names are called.
    """
    keys = [row_keys(split.inputs) for split in splits]
    counts = Counter(key for some in keys for key in some)
    is_natural = section.repeats == "natural"
    if names is not None and not section.cluster_by and _says_nothing([name for some in names for name in some]):
        names = None
    clusters = 0
    if names is not None:
        found = _clustered(splits, names, keys, joins_equal=not is_natural)
        clusters = len({key for one in found for key in one.together})
    elif is_natural:
        found = [
            Arranged(split=split, rows=some, together=own_keys(some)) for split, some in zip(splits, keys, strict=True)
        ]
    else:
        found = [_without_copies(split, some) for split, some in zip(splits, keys, strict=True)]
    return found, Repeats(
        rows=counts.total(),
        distinct=len(counts),
        most=max(counts.values()),
        clusters=clusters,
        cluster_by=cluster_by if names is not None else "",
        taken_for="natural" if is_natural else "copies",
        is_guess=not (section.cluster_by if names is not None else section.repeats),
    )


def joined(names: Sequence[str], keys: Sequence[bytes]) -> list[str]:
    """Return a name for each row such that rows with one name before, or one key, have one name now: the smallest."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[bytes, str] = {}
    for name, key in zip(names, keys, strict=True):
        one, other = root(name), root(first.setdefault(key, name))
        parent[max(one, other)] = min(one, other)
    return [root(name) for name in names]


def _clustered(
    splits: Sequence[Split], names: Sequence[NDArray[np.str_]], keys: Sequence[Sequence[bytes]], *, joins_equal: bool
) -> list[Arranged]:
    """Number the clusters, alike in every split."""
    flat = [str(name) for some in names for name in some]
    if joins_equal:
        flat = joined(flat, [key for some in keys for key in some])
    numbers = np.unique(np.array(flat), return_inverse=True)[1].astype(np.int64)
    found, start = [], 0
    for split, some in zip(splits, keys, strict=True):
        end = start + split.rows
        together = [name.encode() for name in flat[start:end]]
        found.append(Arranged(split=replace(split, clusters=numbers[start:end]), rows=some, together=together))
        start = end
    return found


def _without_copies(split: Split, keys: Sequence[bytes]) -> Arranged:
    """Keep one of all equal rows, with the number that it stands for.

    Which one matters where their labels or groups differ. It is drawn by the row's own digest among them in the order
    of label and group: by chance, so that it stands for all, and the same one whatever the order of the file.
    """
    members: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        members[key].append(row)
    if len(members) == len(keys):
        return Arranged(split=split, rows=keys, together=keys)
    kept: dict[int, int] = {}
    for key, rows in members.items():
        ordered = sorted(rows, key=lambda row: _beside(split, row)) if len(rows) > 1 else rows
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"which copy").digest(), "little")
        kept[ordered[drawn % len(rows)]] = len(rows)
    at = sorted(kept)
    one = split.take(np.array(at, dtype=np.intp), name=split.name)
    copies = np.array([kept[row] for row in at], dtype=np.int64)
    return Arranged(split=replace(one, copies=copies), rows=keys, together=[keys[row] for row in at])


def _beside(split: Split, row: int) -> tuple[str, str, int]:
    """Return what equal rows can differ in, for an order among them; their place only where nothing else does."""
    label = "" if split.labels is None else repr(np.asarray(split.labels[row]).tolist())
    return label, "" if split.groups is None else str(split.groups[row]), row


def _says_nothing(names: Sequence[str]) -> bool:
    """Say whether a column with an obvious name has but one value, or another one in each row."""
    return len(set(names)) in (1, len(names))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
