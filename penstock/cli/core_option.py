"""The flag that says which core a command talks to, the same for all of them, whatever they speak with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import click

from penstock.errors import InvalidInput
from penstock.wire.core_addresses import DEFAULT, ENVIRONMENT, parse_core

NOBODY_THERE = f"start one with 'penstock core serve', or name another by --core or {ENVIRONMENT}"
"""What to do where no core answers."""


def core_option(speaks: Literal["grpc", "http"]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--core``, passed on as ``core``: the address by which the command speaks with it."""

    def parse(context: click.Context, parameter: click.Parameter, value: str) -> str:
        try:
            found = parse_core(value)
            return str(found.grpc if speaks == "grpc" else found.http)
        except InvalidInput as error:
            raise InvalidInput(f"--core: {error.message}", field="core") from None

    return click.option(
        "--core",
        envvar=ENVIRONMENT,
        default=DEFAULT,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        callback=parse,
        help="The core: its address for gRPC or HTTP; both, with a comma between, where they are not side by side.",
    )
