"""What commands print: a table for people by default, JSON with ``-o json``. Results on stdout, progress on stderr."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeVar

import click
import msgspec

_NO_LIMIT = 100_000
_NARROWEST = 16
"""Columns that a cell needs to be broken into lines that can be read."""

F = TypeVar("F", bound=Callable[..., Any])


FORMATS = ("table", "json")


def output_option(function: F) -> F:
    """Add the ``-o/--output table|json`` option, passed on as ``output``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="Output format.",
    )(function)


def path_option(kind: str, help: str, *, required: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an ``-o`` that takes a path and a format, each once, passed on as ``outputs`` for :func:`path_and_format`.

    Args:
        kind: of the path, ``DIR`` or ``FILE``.
        help: a sentence on what is written there.
    """
    return click.option(
        "-o",
        "--output",
        "outputs",
        metavar=f"{kind}|json",
        multiple=True,
        required=required,
        help=f"{help} Give it again as 'json' to choose what is printed.",
    )


def path_and_format(values: Sequence[str], what: str) -> tuple[str, str]:
    """Find the path ("" for none) and the format in the values of an ``-o`` that takes both.

    A format is always a format: ``./json`` is a path that is called so.

    Raises:
        UsageError: several of one; ``what`` names what the path is for.
    """
    formats = [value for value in values if value in FORMATS]
    paths = [value for value in values if value not in FORMATS]
    if len(paths) > 1 or len(formats) > 1:
        raise click.UsageError(f"give -o once with {what}, and at most once more with 'json' or 'table'")
    return "".join(paths), "".join(formats) or "table"


def asked_for_json(arguments: Sequence[str]) -> bool:
    """Say whether a command line asks for JSON; also one that could not be understood otherwise."""
    joined = "\n".join(arguments)
    return bool(re.search(r"^(-ojson|--output=json|(-o|--output)\njson)$", joined, re.MULTILINE))


def print_json(value: Any) -> None:
    """Print indented JSON on stdout, in UTF-8 on every terminal; dataclasses and Structs included."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2))


def print_result(output: str, document: Any, show: Callable[[], None]) -> None:
    """Print a command's result as ``--output`` asks: the document as JSON, or what ``show`` prints for people."""
    if output == "json":
        print_json(document)
    else:
        show()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a plain, aligned table on stdout; columns of numbers are right-aligned."""
    click.echo(format_table(columns, rows))


def format_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> str:
    """Return the text of :func:`print_table`: no colours and no box, so that it can be piped and pasted.

    On a terminal, what does not fit goes on in lines below, in its own column; words are never broken.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    right = [
        bool(rows) and all(isinstance(row[i], int | float) or _is_figure(str(row[i])) for row in rows)
        for i in range(len(columns))
    ]
    table = [[c.upper() for c in columns], *cells]
    widths = _fitting(table)

    def line(values: Sequence[str]) -> str:
        columns = [_broken(value, width) for value, width in zip(values, widths, strict=True)]
        parts = zip_longest(*columns, fillvalue="")
        padded = (
            "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(part, widths, right, strict=True))
            for part in parts
        )
        return "\n".join(one.rstrip() for one in padded)

    lines = [title, ""] if title else []
    return "\n".join([*lines, *map(line, table)])


def _fitting(table: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column: what it needs, or less for the widest where the table is too wide."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    least = [max(len(word) for cell in column for word in [*cell.split(), ""]) for column in zip(*table, strict=True)]
    least = [max(_NARROWEST, one) if one < width else width for one, width in zip(least, widths, strict=True)]
    while (excess := sum(widths) + 2 * (len(widths) - 1) - _width()) > 0:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        if widths[widest] <= least[widest]:
            break
        widths[widest] = max(least[widest], widths[widest] - excess)
    return widths


def _broken(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def wrapped(text: str, *, indent: str = "") -> str:
    """Break a line of prose where it does not fit into the width of the terminal; ``indent`` begins what follows."""
    if len(text) <= _width():
        return text
    return textwrap.fill(text, _width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _width() -> int:
    """Return the width of the terminal, at least 80 columns. What goes into a pipe or a file is not broken."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return max(80, shutil.get_terminal_size((80, 24)).columns)
    return _NO_LIMIT


def print_fields(fields: Mapping[str, object]) -> None:
    """Name and value lines, aligned; a long value goes on below."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(wrapped(f"{name.ljust(width)}  {value}", indent=" " * (width + 2)))


def progress(message: str) -> None:
    """Show one progress line on stderr."""
    click.echo(message, err=True)


@contextmanager
def shown(name: str, say: Callable[[float, str], None]) -> Iterator[Callable[[float, str], None]]:
    """Show how far something is: as a bar with the time left on a terminal, elsewhere as ``say`` puts it."""
    if not is_interactive():
        yield say
        return
    from penstock.cli.live import LiveBar

    with LiveBar() as bar:
        bar.started(name)
        yield bar.advanced


def is_interactive() -> bool:
    """Say whether live progress makes sense and can be shown: stderr is a terminal, and ``rich`` is installed."""
    return sys.stderr.isatty() and importlib.util.find_spec("rich") is not None


def _is_figure(text: str) -> bool:
    return (
        text in ("-", "") or text.lstrip("+-").split(" ")[0].rstrip("%x").replace(".", "", 1).replace(",", "").isdigit()
    )
