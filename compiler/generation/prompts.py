"""Prompts and texts that a recipe names: from .jsonl or .txt files, or a Python iterator; checked, and dealt to uses.

Owns what is refused: columns that are not known, empty prompts, answers for some rows only. Never drops or repairs a
row, but for copies of a prompt where they are copies. A row's split depends on its prompt (or on its cluster) and the
seed alone, so that nothing sits on both sides of a promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.data import belonging, iterator, splitting
from compiler.data.dataset import Repeats, Split
from compiler.data.parts import ALL
from compiler.recipe.data_section import DataSection, RepeatsAre
from penstock.artifact.blobs import digest_of
from penstock.artifact.manifests import canonical_json
from penstock.errors import InvalidInput
from penstock.process.config import nearest

MAX_FILE_BYTES = 256 * 1024**2
MAX_ROWS = 200_000
USES: Mapping[str, float] = {"tune": 0.3, "certify": 0.5, "test": 0.2}
"""What prompts are for, and the share that each use gets where a source does not say."""

_FIELD = "data.source"


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, with what is known of it.

    Attributes:
        answer: the right answer, to be matched exactly after normalisation; None where none is known.
        group: for certificates by group.
        cluster: what it belongs to, such as a conversation or a user: prompts of one cluster are no independent draws.
        split: one of :data:`USES`, where the source divides its rows itself.
        choices: the options of which one is the answer, where prompts have their own.
    """

    prompt: str
    answer: str | None = None
    group: str = ""
    cluster: str = ""
    split: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts of one use, in order.

    Attributes:
        copies: how many equal prompts each one stands for; () where each stands for itself alone.
    """

    name: str
    rows: tuple[Prompt, ...]
    copies: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(row.prompt for row in self.rows)

    @property
    def answers(self) -> tuple[str, ...] | None:
        """Return the right answers, or None; a loaded set has them for all rows or for none."""
        found = tuple(row.answer for row in self.rows if row.answer is not None)
        return found if len(found) == len(self.rows) else None

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """Return the options of each row, or () where rows have none; a loaded set has some for all rows or none."""
        return tuple(row.choices for row in self.rows) if any(row.choices for row in self.rows) else ()

    @property
    def groups(self) -> NDArray[np.str_] | None:
        """Return the group of each row, str [N], or None."""
        return (
            np.array([row.group for row in self.rows], dtype=np.str_) if any(row.group for row in self.rows) else None
        )

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """Return a number of each row's cluster [N], counted within this set, or None."""
        if not any(row.cluster for row in self.rows):
            return None
        return np.unique([row.cluster for row in self.rows], return_inverse=True)[1].astype(np.int64)

    @property
    def units(self) -> int:
        """Count what is independent: clusters where prompts belong together, else prompts."""
        return len(self) if self.clusters is None else len(np.unique(self.clusters))

    @property
    def stands_for(self) -> int:
        """Count the prompts that were read, copies included."""
        return sum(self.copies) or len(self)

    @property
    def digest(self) -> str:
        """Compute the digest of everything in the set, order included."""
        return digest_of(canonical_json([_written(row) for row in self.rows]))


def load(source: str, *, base: Path = Path()) -> PromptSet:
    """Load every prompt of a source.

    Args:
        source: a ``.jsonl`` file of objects with ``prompt`` and, where there are any, ``answer``, ``group``,
            ``cluster``, ``split`` and ``choices``; a ``.txt`` file of prompts with blank lines between them; or
            ``module:function`` or ``file.py:function``, which gives such objects. A path is relative to ``base``.

    Raises:
        InvalidInput: which row of which source is wrong, and what was expected.
    """
    rows = tuple(_prompt(item, f"{source}: row {number}") for number, item in enumerate(_items(source, base, "prompt")))
    without = sum(row.answer is None for row in rows)
    if 0 < without < len(rows):
        raise InvalidInput(
            f"{source}: {without} of {len(rows)} rows have no answer; give one for every row (harm is counted by "
            "labels), or for none (harm is disagreement with the cloud)",
            field=_FIELD,
        )
    for column in ("split", "group", "cluster", "choices"):
        if 0 < sum(not getattr(row, column) for row in rows) < len(rows):
            raise InvalidInput(
                f"{source}: some rows have a {column} and some do not; give every row one, or none", field=_FIELD
            )
    return PromptSet(name="all", rows=rows)


def load_texts(source: str, *, base: Path = Path()) -> tuple[str, ...]:
    """Load texts for perplexity: a ``.jsonl`` file of objects with ``text``, a ``.txt`` file as one text, or an
    iterator.

    Raises:
        InvalidInput: as :func:`load`.
    """
    if ":" not in source and source.endswith(".txt"):
        return (_content(base / source),)
    texts = []
    for number, item in enumerate(_items(source, base, "text")):
        _check_columns(item, ("text",), f"{source}: row {number}")
        if not isinstance(item.get("text"), str) or not item["text"].strip():
            raise InvalidInput(f"{source}: row {number}: text is empty or no text", field=_FIELD)
        texts.append(item["text"])
    return tuple(texts)


def split(
    everything: PromptSet, *, seed: int, repeats: RepeatsAre = "", shares: Mapping[str, float] = USES
) -> tuple[dict[str, PromptSet], Repeats]:
    """Divide prompts into a set for each use: as the rows say, or by a seeded hash of the prompt or its cluster.

    Args:
        repeats: what equal prompts are, as in ``data.repeats``.

    Raises:
        InvalidInput: a use without prompts, a split that is no use, or a prompt or cluster in two splits.
    """
    rows, names = everything.rows, [ALL]
    if rows[0].split:
        _check_splits(rows, shares, are_natural=repeats == "natural")
        names = list(shares)
    arranged, found = _arranged(rows, names, repeats)
    if names != [ALL]:
        return {use: one for use, (one, _) in zip(names, arranged, strict=True)}, found
    ((whole, together),) = arranged
    dealt = splitting.deal(together, shares, seed=seed)
    if empty := [use for use, some in dealt.items() if not len(some)]:
        told = f" ({found.words})" if found.words else ""
        raise InvalidInput(
            f"prompts: {len(together)} are too few to have some for {empty[0]!r}{told}; add prompts", field=_FIELD
        )
    return {use: _some(whole, use, some) for use, some in dealt.items()}, found


def _arranged(
    rows: Sequence[Prompt], names: Sequence[str], repeats: RepeatsAre
) -> tuple[list[tuple[PromptSet, Sequence[bytes]]], Repeats]:
    """Arrange the prompts of each split as rows of any kind are (``compiler.data.belonging``)."""
    order = sorted(range(len(rows)), key=lambda at: (_asked(rows[at]), rows[at].answer or "", rows[at].group))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))  # stands for a label: what equal prompts can differ in
    has_clusters = bool(rows[0].cluster)
    section = DataSection(source="", repeats=repeats, cluster_by="cluster" if has_clusters else "")
    places = [np.array([at for at, row in enumerate(rows) if name in (ALL, row.split)]) for name in names]
    asked = np.array([_asked(row) for row in rows], dtype=object)
    splits = [
        Split(name=name, inputs={"prompt": asked[some]}, labels=rank[some])
        for name, some in zip(names, places, strict=True)
    ]
    clusters = [np.array([rows[at].cluster for at in some]) for some in places] if has_clusters else None
    arranged, found = belonging.arranged(splits, clusters, section, cluster_by="cluster")
    sets = []
    for one in arranged:
        assert one.split.labels is not None, "given above"
        kept = [rows[order[at]] for at in one.split.labels.tolist()]
        if has_clusters:  # equal prompts may have joined some
            kept = [
                msgspec.structs.replace(row, cluster=key.decode()) for row, key in zip(kept, one.together, strict=True)
            ]
        copies = () if one.split.copies is None else tuple(one.split.copies.tolist())
        sets.append((PromptSet(name=one.split.name, rows=tuple(kept), copies=copies), one.together))
    return sets, found


def _asked(row: Prompt) -> str:
    """Return what makes two prompts the same: their text, and what there is to choose from in whatever order."""
    return "\0".join([row.prompt, *sorted(row.choices)])


def _written(row: Prompt) -> dict[str, Any]:
    """Return a row for its digest; without choices it is what it was before there were any."""
    written: dict[str, Any] = msgspec.to_builtins(row)
    return written if row.choices else {name: value for name, value in written.items() if name != "choices"}


def _some(whole: PromptSet, use: str, rows: NDArray[np.intp]) -> PromptSet:
    copies = tuple(whole.copies[row] for row in rows) if whole.copies else ()
    return PromptSet(name=use, rows=tuple(whole.rows[row] for row in rows), copies=copies)


def _check_splits(rows: Sequence[Prompt], shares: Mapping[str, float], *, are_natural: bool) -> None:
    if unknown := sorted({row.split for row in rows} - set(shares)):
        raise InvalidInput(f"prompts: no split is called {unknown[0]!r}; {nearest(unknown[0], shares)}", field=_FIELD)
    if missing := [use for use in shares if all(row.split != use for row in rows)]:
        raise InvalidInput(f"prompts: no row has split {missing[0]!r}", field=_FIELD)
    seen: dict[tuple[str, str], str] = {}
    for number, row in enumerate(rows):
        if not are_natural and seen.setdefault(("prompt", row.prompt), row.split) != row.split:
            raise InvalidInput(
                f"prompts: row {number} is in split {row.split!r}, and the same prompt in "
                f"{seen['prompt', row.prompt]!r}; a promise certified on prompts that were used for something else "
                'would not hold (data.repeats = "natural" if prompts repeat by nature)',
                field=_FIELD,
            )
        if row.cluster and seen.setdefault(("cluster", row.cluster), row.split) != row.split:
            raise InvalidInput(
                f"prompts: row {number} of cluster {row.cluster!r} is in split {row.split!r}, and others of it in "
                f"{seen['cluster', row.cluster]!r}; leave each to one split",
                field=_FIELD,
            )


def _items(source: str, base: Path, column: str) -> Iterator[Any]:
    """Yield the items of a source.

    Raises:
        InvalidInput: nothing there, too much, or not of a known kind.
    """
    if ":" in source:
        items: Iterable[Any] = _from_function(source, base)
    elif source.endswith(".jsonl"):
        items = _from_lines(_content(base / source), source)
    elif source.endswith(".txt"):
        items = ({column: block} for block in _blocks(_content(base / source)))
    else:
        raise InvalidInput(f"{source}: expected a .jsonl or .txt file, or module:function", field=_FIELD)
    number = -1
    for number, item in enumerate(items):
        if number >= MAX_ROWS:
            raise InvalidInput(f"{source}: more than {MAX_ROWS} rows; a sample is enough", field=_FIELD)
        yield item
    if number < 0:
        raise InvalidInput(f"{source}: no rows in it", field=_FIELD)


def _from_function(source: str, base: Path) -> Iterator[dict[str, Any]]:
    section = DataSection(source=source)
    if iterator.splits_of(section, base) != (ALL,):
        raise InvalidInput(
            f"{source}: a function that gives prompts takes no parameter; name splits in the rows ('split')",
            field=_FIELD,
        )
    for row in iterator.rows(section, base, ALL, _silent):
        item: dict[str, Any] = {
            name: tuple(map(str, value)) if name == "choices" else str(value) for name, value in row.inputs.items()
        }
        yield item if row.label is None else {"answer": str(row.label), **item}


def _from_lines(content: str, source: str) -> Iterator[Any]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{source}: line {number} is not JSON: {error}", field=_FIELD) from error


def _blocks(content: str) -> Iterator[str]:
    block: list[str] = []
    for line in [*content.splitlines(), ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []


def _content(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInput(f"{path}: more than {MAX_FILE_BYTES} bytes; a sample is enough", field=_FIELD)
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file", field=_FIELD) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as UTF-8 text: {error}", field=_FIELD) from error
    if not content.strip():
        raise InvalidInput(f"{path}: the file is empty", field=_FIELD)
    return content


def _prompt(item: Any, where: str) -> Prompt:
    _check_columns(item, Prompt.__struct_fields__, where)
    try:
        row = msgspec.convert(item, Prompt)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{where}: {error}; expected texts, a list of them for choices", field=_FIELD) from error
    if not row.prompt.strip():
        raise InvalidInput(f"{where}: the prompt is empty", field=_FIELD)
    return row


def _check_columns(item: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(item, dict):
        raise InvalidInput(f"{where} is {type(item).__name__}; expected an object with {known[0]!r}", field=_FIELD)
    for name in item:
        if name not in known:
            raise InvalidInput(f"{where}: unknown column {name!r}; {nearest(str(name), known)}", field=_FIELD)


def _silent(note: str) -> None:
    """Take progress that nothing watches: prompts are few."""
