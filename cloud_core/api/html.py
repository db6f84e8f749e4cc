"""Elements of HTML as text. Whatever is not made here is escaped: nothing that a client sent can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | int | float | None


def element(name: str, *children: Child, **attributes: str | int | float | bool) -> Markup:
    """Make an element. Children that are no markup are escaped, and None is left out; ``class_`` is ``class``, and
    attributes that are False are left out."""
    named = "".join(_attribute(key, value) for key, value in attributes.items() if value is not False)
    return Markup(f"<{name}{named}>{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Markup:
    """Put children one after the other."""
    texts = (child for child in children if child is not None)
    return Markup("".join(child if isinstance(child, Markup) else escape(str(child)) for child in texts))


def table(head: Sequence[str], rows: Sequence[Sequence[Child]], *, numbers: frozenset[int] = frozenset()) -> Markup:
    """Make a table; ``numbers`` are columns that are aligned on the right."""

    def cells(kind: str, row: Sequence[Child]) -> Markup:
        made = [element(kind, cell, class_="number" if place in numbers else False) for place, cell in enumerate(row)]
        return element("tr", *made)

    body = element("tbody", *(cells("td", row) for row in rows))
    return element("div", element("table", element("thead", cells("th", head)), body), class_="wide")


def _attribute(key: str, value: str | int | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
