"""The flags that say which registry a command talks to, and who asks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from penstock.wire.core_addresses import DEFAULT, ENVIRONMENT, parse_core

if TYPE_CHECKING:
    from penstock.registry.client import RegistryClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A registry, and who one is there."""

    url: str
    user: str
    token: str

    def client(self) -> RegistryClient:
        """Make a client.

        Raises:
            InvalidInput: ``url`` is none.
        """
        from penstock.registry.client import RegistryClient

        return RegistryClient(self.url, user=self.user, token=self.token)


def _of_the_core() -> str:
    """Return the registry of the core that the environment names: who names a core need not name it twice."""
    return str(parse_core(os.environ.get(ENVIRONMENT) or DEFAULT).http)


def registry_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--registry``, ``--user`` and ``--token`` to a command, which gets them as ``access``."""
    function = click.option(
        "--registry",
        envvar="PENSTOCK_REGISTRY",
        default=_of_the_core,
        show_default=f"that of {ENVIRONMENT}, http://127.0.0.1:8000",
        show_envvar=True,
        metavar="URL",
        help="The registry: a core, or any OCI registry, with the namespace of its models as a path.",
    )(function)
    function = click.option(
        "--user",
        envvar="PENSTOCK_REGISTRY_USER",
        default="",
        show_envvar=True,
        help="User whose password or access token --token is.",
    )(function)
    function = click.option(
        "--token",
        envvar=["PENSTOCK_REGISTRY_TOKEN", "PENSTOCK_TOKEN"],
        default="",
        show_envvar=True,
        help="Bearer token for the registry; with --user, that user's password.",
    )(function)

    @functools.wraps(function)
    def with_access(*args: Any, registry: str, user: str, token: str, **values: Any) -> Any:
        return function(*args, access=Access(url=registry, user=user, token=token), **values)

    return with_access
