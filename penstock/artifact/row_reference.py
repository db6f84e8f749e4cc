"""How the rows of an evaluation were distributed, as an artifact carries it: what traffic is compared with later."""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.errors import ArtifactError
from penstock.policy.distributions import Column

MAX_BYTES = 4 * 1024**2
MAX_FEATURES = 32
"""Of each input; whoever compares has to pick the same ones."""


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns of inputs and of what was answered.

    Attributes:
        rows: that were looked at.
    """

    schema: Literal[1] = 1
    rows: int
    columns: tuple[Column, ...]


def encode(reference: Reference) -> bytes:
    """Write a reference; the same one, the same bytes."""
    return msgspec.json.encode(reference, order="deterministic")


def decode(data: bytes) -> Reference:
    """
    Raises:
        ArtifactError: no such document.
    """
    try:
        found = msgspec.json.decode(data, type=Reference)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ArtifactError(f"reference: not valid: {error}") from None
    for column in found.columns:
        if len(column.counts) != len(column.edges) + 2 or list(column.edges) != sorted(set(column.edges)):
            raise ArtifactError(f"reference: {column.name[:100]!r}: its bins make no sense")
    return found
