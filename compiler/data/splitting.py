"""Which row goes to which split, when the source does not say: by a seeded hash of what must stay together. Also finds
what splits that were made elsewhere share. Pure.

A row's place depends on its content (or on the name of its cluster) and the seed alone, never on its position: sorting
or shuffling a file changes no split. Equal rows are those with equal inputs; their labels may differ. What stays
together is ``compiler.data.belonging``.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.wire import tensors
from penstock.wire.tensors import Array


def row_keys(inputs: Mapping[str, Array]) -> list[bytes]:
    """Return a digest for each row of some inputs; equal rows have equal digests."""
    arrays = [inputs[name] for name in sorted(inputs)]
    rows = len(arrays[0])
    keys = []
    for row in range(rows):
        hasher = hashlib.blake2b(digest_size=16)
        for array in arrays:
            data = tensors.to_bytes(array[row : row + 1])
            hasher.update(len(data).to_bytes(8, "little"))
            hasher.update(data)
        keys.append(hasher.digest())
    return keys


def deal(keys: Sequence[bytes], shares: Mapping[str, float], *, seed: int) -> dict[str, NDArray[np.intp]]:
    """Put every row into exactly one split, rows with equal keys into the same one; row numbers ascend.

    Keys are put in the order of their hashes with ``seed`` and cut where the shares end. The shares are of the keys,
    not of the rows: a split is then a simple random sample of what stays together, and a large cluster is as likely to
    certify as a small one. A cut by rows would take the large ones more often.

    Args:
        shares: by split, together 1.
    """
    members: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        members[key].append(row)
    salt = seed.to_bytes(8, "little")
    order = sorted(members, key=lambda key: (hashlib.blake2b(key, digest_size=16, salt=salt).digest(), key))
    names = list(shares)
    ends = np.cumsum([shares[name] for name in names]) * len(order)
    dealt: dict[str, list[int]] = {name: [] for name in names}
    for place, key in enumerate(order):
        split = min(int(np.searchsorted(ends, place + 0.5, side="left")), len(names) - 1)
        dealt[names[split]].extend(members[key])
    return {name: np.array(sorted(rows), dtype=np.intp) for name, rows in dealt.items()}


def own_keys(keys: Sequence[bytes]) -> list[bytes]:
    """Return the keys under which no two rows are equal: the n-th of some equal rows differs from the others by its
    n."""
    seen: defaultdict[bytes, int] = defaultdict(int)
    own = []
    for key in keys:
        own.append(key + seen[key].to_bytes(8, "little"))
        seen[key] += 1
    return own


def shared_rows(one: Sequence[bytes], other: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return the rows of ``one`` whose key is in ``other`` too, each with its first place there."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(other):
        first.setdefault(key, row)
    return [(row, first[key]) for row, key in enumerate(one) if key in first]
