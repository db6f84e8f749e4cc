"""The command tree: names, one-line summaries, and where each command lives. Loads nothing it does not run."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from penstock.cli import streams
from penstock.errors import MissingExtra, PenstockError, missing_extra

EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED, EXIT_UNREACHABLE = 1, 2, 3, 4
"""Exit codes: 1 failed, 2 wrong usage or settings, 3 refused (gate, certificate, conflict), 4 out of reach."""


_REFUSED = frozenset(
    {"conflict", "calibration", "gate", "certificate-mismatch", "signature", "permission-denied", "unauthenticated"}
)


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str
    target: str = ""  # "module:attribute"; "" for a room's entry point of the same name
    extra: str = ""  # brings what the command needs beyond the base install


_COMMANDS: Mapping[str, _Command] = {
    "compile": _Command("Turn models and examples into one certified artifact.", extra="compile"),
    "certify": _Command("Certify a packed artifact on new examples, or recompute its certificates.", extra="compile"),
    "artifact": _Command("Inspect, verify, push and pull artifacts.", "penstock.cli.artifact:command", "sign"),
    "keys": _Command(
        "Make the keys that sign artifacts, and say which are trusted.", "penstock.cli.keys:command", "sign"
    ),
    "toolchain": _Command(
        "Install, check and remove the environments of heavy backends.", "penstock.cli.toolchain:command"
    ),
    "core": _Command("Run the cloud core: gRPC and HTTP inference, registry, fleet.", extra="core"),
    "agent": _Command("Run the daemon on a device, or ask it how it is.", extra="agent"),
    "fleet": _Command("Plan, start, watch and stop rollouts over many devices.", "penstock.cli.fleet.commands:command"),
    "infer": _Command("Send one inference to an agent, a core, or any OIP server.", "penstock.cli.infer:command"),
    "batch": _Command("Run a model over the rows of a file, resumable.", "penstock.cli.batch:command"),
    "generate": _Command("Ask a language model for a text, as it is made.", "penstock.cli.generate:command"),
    "demo": _Command("Run the whole path on real data and end with a verdict.", "penstock.cli.demo:command", "demo"),
    "completion": _Command("Print the shell completion script.", "penstock.cli.completion:command"),
    "version": _Command("Print versions of Penstock and of what it runs on.", "penstock.cli.version:command"),
}


_OURS = frozenset({"penstock", "compiler", "edge_agent", "cloud_core", "examples"})


class _LazyGroup(click.Group):
    """Lists commands from a table and imports one only when it is called (``--help`` stays fast)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ImportError, MissingExtra) as error:  # of what the command imported only when it ran
            raise _missing(ctx.invoked_subcommand or "", error) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        loaded = _load(cmd_name)
        assert isinstance(loaded, click.Command)
        return loaded

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from penstock.process.config import nearest

            raise click.UsageError(f"no command {args[0]!r}; {nearest(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [CompletionItem(n, help=c.summary) for n, c in _COMMANDS.items() if n.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def _print_version(ctx: click.Context, option: click.Parameter, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        click.echo(f"penstock {importlib.metadata.version('penstock')}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  penstock demo
  penstock compile recipe.toml -o build/digits
  penstock core serve
  penstock agent run
  penstock fleet plan digits:v2

Environment: PENSTOCK_CORE says where the core is, by either of its addresses, and PENSTOCK_TOKEN who asks;
PENSTOCK_REGISTRY is a registry that is not the core's; PENSTOCK_CA_FILE, PENSTOCK_CLIENT_CERT and PENSTOCK_CLIENT_KEY
are for https:// and grpcs://.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 refused, 4 out of reach. With -o json, an error is a
document on standard output, too: {"error": {"code": ..., "message": ..., "exit_code": ...}}.""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version of Penstock.",
)
def command() -> None:
    """Serve a model that lives in two places: a small variant on the device, a large one in the cloud."""


def main() -> None:
    """Run a command line: errors of ours become one line and an exit code, never a traceback."""
    streams.secure()
    os.umask(os.umask(0o077) | 0o002)  # whatever the umask was, nothing that is written here is for everybody to change
    try:
        code = command(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)  # click returns what ctx.exit() was given, and raises nothing
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        _document("usage" if isinstance(error, click.UsageError) else "failed", error.format_message(), error.exit_code)
        sys.exit(error.exit_code)
    except PenstockError as error:
        click.echo(f"penstock: {error.message}", err=True)
        _document(error.code, error.message, exit_code(error))
        sys.exit(exit_code(error))
    except FileNotFoundError as error:
        if error.filename is not None or "temporary directory" not in str(error):
            raise
        click.echo("penstock: no directory for temporary files can be written; set TMPDIR to one", err=True)
        sys.exit(EXIT_FAILED)
    except streams.OutputLostError as error:
        streams.give_up()
        if not isinstance(error.__cause__, BrokenPipeError):  # a reader that has seen enough knows that it left
            click.echo(f"penstock: standard output cannot be written: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _document(code: str, message: str, exit_with: int) -> None:
    """Print an error as JSON where JSON was asked for: whoever reads it reads one document, whatever happened."""
    from penstock.cli.output import asked_for_json, print_json

    if asked_for_json(sys.argv[1:]):
        try:
            print_json({"error": {"code": code, "message": message, "exit_code": exit_with}})
            sys.stdout.flush()
        except streams.OutputLostError:  # the exit code still says it
            streams.give_up()


def exit_code(error: PenstockError) -> int:
    """Return the exit code of an error."""
    if error.code in ("config", "invalid-input", "missing-extra", "missing-toolchain"):
        return EXIT_USAGE
    if error.code in _REFUSED:
        return EXIT_REFUSED
    if error.code in ("unavailable", "deadline-exceeded"):
        return EXIT_UNREACHABLE
    return EXIT_FAILED


def _load(name: str) -> object:
    target = _COMMANDS[name].target
    if target:
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    found = importlib.metadata.entry_points(group="penstock.commands", name=name)
    if not found:
        raise click.ClickException(f"'penstock {name}' is not installed here; reinstall penstock")
    try:
        return next(iter(found)).load()
    except (ImportError, MissingExtra) as error:
        raise _missing(name, error) from error


def _missing(command: str, error: ImportError | MissingExtra) -> Exception:
    """Return the error to raise for an absent library: it names the one extra that brings all that the command needs.

    A library that is broken, a module of ours, and an extra beyond the command's own stay as they are.
    """
    extra = _COMMANDS[command].extra if command in _COMMANDS else ""
    if isinstance(error, MissingExtra):
        is_part = _brings(extra, error.library)
        return missing_extra(error.library, extra, f"'penstock {command}'") if is_part else error
    library = (error.name or "").partition(".")[0]
    if not library or library in _OURS or not isinstance(error, ModuleNotFoundError):
        return error
    named = extra if _brings(extra, library) else _extra_of(library) or extra
    return missing_extra(library, named, f"'penstock {command}'") if named else error


def _brings(extra: str, library: str) -> bool:
    """Say whether an extra installs a library, by what the installed package declares."""
    name = re.sub(r"[-_.]+", "[-_.]+", library)  # a module's underscores are often a package's hyphens
    form = re.compile(rf"{name}\b.*extra == ['\"]{re.escape(extra)}['\"]", re.IGNORECASE)
    return bool(library and extra) and any(map(form.match, importlib.metadata.requires("penstock") or []))


def _extra_of(library: str) -> str:
    """Return the smallest extra that brings a library; "" where none does."""
    from penstock.cli.version import declared_libraries

    by_module = {re.sub(r"[-_.]+", "_", name.lower()): extra for name, extra in declared_libraries().items()}
    return by_module.get(library.lower(), "")
