"""Options that the commands of the fleet share: which core, who asks and why, and how long to follow."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.core_option import NOBODY_THERE, core_option
from penstock.errors import Unavailable

if TYPE_CHECKING:
    from penstock.rpc.fleet import FleetClient, Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Says which core is asked, and with which credential."""

    target: str
    token: str

    def client(self) -> FleetClient:
        """Make a client; it connects with its first call."""
        from penstock.rpc.fleet import FleetClient

        return FleetClient(self.target, token=self.token)


def core_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--core`` and ``--token``, passed on as one value, ``core``."""

    @functools.wraps(function)
    def call(*, core: str, token: str, **others: Any) -> Any:
        try:
            return function(core=Core(target=core, token=token), **others)
        except Unavailable as error:
            if "cannot reach it" not in error.message:
                raise
            raise Unavailable(f"{error.message}; {NOBODY_THERE}", retry_after_s=error.retry_after_s) from error

    call = click.option(
        "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where the core has tenants."
    )(call)
    return core_option("grpc")(call)


def operator_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--reason`` and ``--who``, passed on as one value, ``by``."""

    @functools.wraps(function)
    def call(*, who: str, reason: str, **others: Any) -> Any:
        from penstock.rpc.fleet import Operator

        by: Operator = Operator(who=who, reason=reason)
        return function(by=by, **others)

    call = click.option(
        "--who",
        envvar="PENSTOCK_OPERATOR",
        default=_login,
        show_envvar=True,
        help="Who, for the record.  [default: your login]",
    )(call)
    return click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")(call)


def wait_options(until: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--wait`` and ``--timeout``; ``until`` says what is waited for."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option(
            "--timeout", "timeout_s", type=float, default=0.0, metavar="S", help="With --wait: give up after this long."
        )(function)
        return click.option("--wait", is_flag=True, help=f"Follow {until}.")(function)

    return add


def _login() -> str:
    """Return the name of whoever runs this; a user without an entry is a number."""
    named = os.environ.get("USER") or os.environ.get("LOGNAME")
    if named:
        return named
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
