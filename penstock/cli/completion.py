"""``penstock completion``: the script that makes a shell complete commands, options and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "penstock"
_VARIABLE = "_PENSTOCK_COMPLETE"  # what click derives from the program's name when the shell asks


@click.command(
    epilog="""\b
Examples:
  eval "$(penstock completion bash)"                                      # this shell; put it into ~/.bashrc to keep it
  penstock completion zsh > "${fpath[1]}/_penstock"
  penstock completion fish > ~/.config/fish/completions/penstock.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None  # the choice above lists what click has
    click.echo(kind(ctx.find_root().command, {}, _PROGRAM, _VARIABLE).source())
