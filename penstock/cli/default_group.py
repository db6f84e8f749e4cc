"""A group whose most usual command needs no name: ``penstock certify DIR`` beside ``penstock certify verify DIR``.

Words that name a command run it; anything else belongs to the default one. A path that is called like a command is
written ``./verify``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

_NAMELESS = ""
"""Stands for the default command's name between parsing and calling; nobody can type it unquoted."""


class _Unnamed(click.Context):
    """The default command's context: its name is not part of what the user typed."""

    @property
    def command_path(self) -> str:
        return super().command_path.rstrip()


class DefaultGroup(click.Group):
    """A ``click.Group`` that runs its default command where no other one is named.

    Attributes:
        default_command: it is registered with ``@group.default(...)`` and shown as the group itself in ``--help``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.default_command: click.Command | None = None

    def default(self, *args: Any, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
        """Decorate a function to make it the default command; takes what ``click.command`` takes."""

        def register(function: Callable[..., Any]) -> click.Command:
            made: click.Command = click.command(*args, **kwargs)(function)
            made.context_class = _Unnamed
            self.default_command = made
            return made

        return register

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_ours = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        if not is_ours and self.default_command is not None:
            args = [_NAMELESS, *args]  # a word, so that click takes no option after it for the group's own
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.default_command is not None and args and args[0] == _NAMELESS:
            return _NAMELESS, self.default_command, args[1:]
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.default_command is None:
            super().format_help(ctx, formatter)
            return
        own = click.Context(self.default_command, parent=ctx.parent, info_name=ctx.info_name)
        self.default_command.format_usage(own, formatter)
        self.default_command.format_help_text(own, formatter)
        self.default_command.format_options(own, formatter)
        self.format_commands(ctx, formatter)
        self.default_command.format_epilog(own, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        own = [] if self.default_command is None else self.default_command.shell_complete(ctx, incomplete)
        found = [*super().shell_complete(ctx, incomplete), *own]
        if self.default_command is not None and not incomplete.startswith("-"):
            found.append(CompletionItem(incomplete, type="file"))
        return found
