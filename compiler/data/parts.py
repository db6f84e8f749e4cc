"""What every source gives: parts of raw examples, each with the words by which messages call its arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.recipe.data_section import DataSection
from penstock.errors import InvalidInput
from penstock.wire.tensors import Array, TensorSpec

Progress = Callable[[str], None]
"""Told now and then how far reading has come."""


def silent(note: str) -> None:
    """Take progress that nothing watches; a :data:`Progress`."""


def bad_source(message: str) -> InvalidInput:
    """Make the error for a source that is not what it should be."""
    return InvalidInput(message, field="data.source")


def too_large(what: str, limit: str) -> InvalidInput:
    """Make the error for a source over one of ``data.limits``; ``what`` says how much there is, and may be."""
    return InvalidInput(f"{what} (data.limits.{limit}); a sample is enough", field="data.source")


ALL = ""
"""The split of a part that holds everything, for a source without splits of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be read, and for which model.

    Attributes:
        inputs: the model's; those of datatype BYTES take text as it is.
        wants_labels: whether ``section.labels`` is to be there.
    """

    section: DataSection
    base: Path
    inputs: Sequence[TensorSpec]
    wants_labels: bool
    progress: Progress

    @property
    def path(self) -> Path:
        """Return the source, where it is a file or a folder."""
        return self.base / self.section.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Examples of one split as the source has them, or all of them (split ``ALL``).

    Attributes:
        inputs: by model input name.
        labels: [N, ...] of any kind.
        groups: [N] of any kind.
        fields: what messages call each input, ``LABELS``, ``GROUPS`` and ``CLUSTERS``.
        clusters: what each row belongs to, [N] of any kind.
        cluster_by: what ``clusters`` is called in the source, "" without it.
        class_names: what the classes are called when the source itself says so, in the order of integer labels.
    """

    split: str
    inputs: Mapping[str, Array]
    labels: Array | None
    groups: Array | None
    fields: Mapping[str, str]
    clusters: Array | None = None
    cluster_by: str = ""
    class_names: tuple[str, ...] = ()


LABELS, GROUPS, CLUSTERS = "<labels>", "<groups>", "<clusters>"
