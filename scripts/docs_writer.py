"""Write Markdown tables from typed settings: their names, types, bounds, defaults, and the words of their docstrings.

Knows msgspec Structs and docstrings, and no page: which pages there are is ``generate_docs``.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import msgspec.inspect as types


@dataclass(frozen=True, slots=True)
class Page:
    """A page's text, and what the code leaves unexplained."""

    text: str
    undocumented: list[str]


@dataclass(slots=True)
class Writer:
    """Lines of a page, and what was missing while writing them."""

    lines: list[str] = field(default_factory=list)
    undocumented: list[str] = field(default_factory=list)

    def say(self, *paragraphs: str) -> None:
        """Add paragraphs, with an empty line after each."""
        for paragraph in paragraphs:
            self.lines += [paragraph, ""]

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; a ``|`` in a cell is escaped."""
        self.lines.append(f"| {' | '.join(columns)} |")
        self.lines.append("|" + "---|" * len(columns))
        self.lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        self.lines.append("")
        if "meaning" in columns:
            meanings = columns.index("meaning")
            self.undocumented += faults({row[0]: row[meanings] for row in rows})

    def page(self) -> Page:
        """Return the finished page."""
        return Page("\n".join(self.lines).rstrip() + "\n", self.undocumented)


_LEANS = re.compile(r"of (these|them|those)\b|the same\b|likewise\b|as above\b|ditto\b", re.IGNORECASE)
_CUT = re.compile(r"[,;:(\[-]$|\b(a|an|the|of|and|or|to|than|which)$", re.IGNORECASE)


def faults(meanings: Mapping[str, str]) -> Iterator[str]:
    """Say which words of a table do not stand alone: none, cut off, equal to another's, or leaning on a neighbour that
    the page, in an order of its own, does not have before them.
    """
    count = Counter(meanings.values())
    for name, words in meanings.items():
        plain = re.sub(r"`[^`]*`", "word", words)
        if len(words.split()) < 3 and not words.startswith("[default"):
            yield f"{name}: {words!r} says too little; a description has at least three words"
        elif _CUT.search(plain) or plain.count("(") != plain.count(")") or words.count("`") % 2:
            yield f"{name}: {words!r} is cut off"
        elif _LEANS.match(words):
            yield f"{name}: {words!r} leans on another description; say of what"
        elif count[words] > 1:
            yield f"{name}: {words!r} is said of something else as well; say what is different"


@dataclass(frozen=True, slots=True)
class _Nested:
    """A table inside a table: ``[path]``, ``[[path]]`` where it repeats."""

    kind: type[msgspec.Struct]
    path: str
    is_list: bool


def section(
    write: Writer,
    kind: type[msgspec.Struct],
    path: str,
    *,
    level: int = 3,
    is_list: bool = False,
    heading: str = "",
    has_summary: bool = True,
    apart: Sequence[type[msgspec.Struct]] = (),
) -> None:
    """Write one table of settings, and then every table inside it.

    Args:
        path: the table's name in TOML; "" for the top of a file, which gets no heading.
        level: of the heading.
        heading: instead of ``[path]``.
        has_summary: whether the docstring's summary stands above the table.
        apart: kinds of inner tables that have a section of their own elsewhere.
    """
    summary, words = attributes_of(kind)
    if path:
        write.say(f"{'#' * level} {heading or (f'`[[{path}]]`' if is_list else f'`[{path}]`')}")
    if has_summary:
        write.say(summary)
    rows: list[list[str]] = []
    nested: list[_Nested] = []
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    for item in info.fields:
        name = item.encode_name
        inner = _nested(item, f"{path}.{name}" if path else name)
        if inner is not None and inner.kind not in apart:
            nested.append(inner)
        if inner is not None and (name not in words or inner.kind in apart):
            continue  # its own section says what it is
        if name not in words:
            write.undocumented.append(f"setting {kind.__module__}.{kind.__name__}.{name}")
        rows.append([f"`{name}`", _type_words(item.type), _default(item), words.get(name, "")])
    if rows:
        write.table(["setting", "type", "default", "meaning"], rows)
    for inner in nested:
        section(write, inner.kind, inner.path, level=level, is_list=inner.is_list, apart=apart)


def attributes_of(kind: type) -> tuple[str, dict[str, str]]:
    """Read a docstring's summary, and the words of its ``Attributes:`` section by name, those of base classes included.

    Two forms are understood: ``a, b: text``, and further names inside a text, after its sentence: ``a: text.
    ``b``: text``, or ``; ``b`` text``.
    """
    names = getattr(kind, "__struct_fields__", ())
    words: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, section_text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:")
        words |= _words_of(section_text, names)
    summary, _, _ = (inspect.getdoc(kind) or "").partition("Attributes:")
    return " ".join(summary.split()).replace("``", "`"), words


def _words_of(section_text: str, known: Sequence[str]) -> dict[str, str]:
    entries: list[str] = []
    for line in section_text.splitlines():
        if re.match(r"    \w[\w, ]*: ", line):
            entries.append(line.strip())
        elif entries and line.strip():
            entries[-1] += f" {line.strip()}"
    words: dict[str, str] = {}
    for entry in entries:
        # a name in the middle of a sentence is a reference; one after a full stop or semicolon starts an entry
        first, *more = re.split(rf"(?<=[.;,]) (?:and )?(?=``(?:{'|'.join(known)})``[: ])", entry)
        names, _, text = first.partition(": ")
        for name in names.split(","):
            words[name.strip()] = _sentence(text)
        for part in more:
            name, _, text = part.removeprefix("``").partition("``")
            words.setdefault(name, _sentence(text.lstrip(": ")))
    return words


def _sentence(text: str) -> str:
    text = text.strip().replace("``", "`")
    return text if text.endswith("...") else text.rstrip(".;,")


def _nested(item: types.Field, path: str) -> _Nested | None:
    """Return the table that a setting is, if it is one: itself, each of a list, each of a table by
    name, or optional."""
    match item.type:
        case types.StructType(cls=kind):
            return _Nested(kind, path, is_list=False)
        case (
            types.VarTupleType(item_type=types.StructType(cls=kind))
            | types.ListType(item_type=types.StructType(cls=kind))
        ):
            return _Nested(kind, path, is_list=True)
        case types.DictType(value_type=types.StructType(cls=kind)):
            return _Nested(kind, f"{path}.NAME", is_list=False)
        case types.UnionType(types=several):
            structs = [one.cls for one in several if isinstance(one, types.StructType)]
            return _Nested(structs[0], path, is_list=False) if structs else None
    return None


def _type_words(kind: types.Type) -> str:
    """Say a type in a user's words, with its bounds."""
    match kind:
        case types.LiteralType(values=values):
            return " or ".join(f"`{value}`" if value != "" else '`""`' for value in values)
        case types.BoolType():
            return "true or false"
        case types.IntType() | types.FloatType():
            return ("integer" if isinstance(kind, types.IntType) else "number") + _bounds(kind)
        case types.StrType():
            return "text"
        case types.DictType() | types.StructType():
            return "table"
        case types.TupleType(item_types=items):
            words = [_type_words(one) for one in items]
            return f"list of {len(items)}: " + (f"each {words[0]}" if len(set(words)) == 1 else ", ".join(words))
        case types.VarTupleType(item_type=item) | types.ListType(item_type=item):
            return "tables" if isinstance(item, types.StructType) else f"list of {_type_words(item)}"
        case types.UnionType(types=several):
            return " or ".join(_type_words(one) for one in several if not isinstance(one, types.NoneType))
    return type(kind).__name__.removesuffix("Type").lower()


def _bounds(kind: types.IntType | types.FloatType) -> str:
    signs = ((">=", kind.ge), (">", kind.gt), ("<=", kind.le), ("<", kind.lt))
    words = [f"{sign} {bound:g}" for sign, bound in signs if bound is not None]
    return f", {' and '.join(words)}" if words else ""


def _default(item: types.Field) -> str:
    if item.required:
        return "required"
    value = item.default if item.default is not msgspec.NODEFAULT else item.default_factory()
    if value is None:
        return "none"
    return f"`{msgspec.json.encode(value, enc_hook=str).decode()}`"
