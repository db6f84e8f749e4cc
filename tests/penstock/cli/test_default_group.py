"""A group with a command that needs no name."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from penstock.cli.default_group import DefaultGroup


@click.group("tool", cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
def tool() -> None:
    """A tool."""


@tool.default("run", context_settings={"help_option_names": ["-h", "--help"]}, epilog="Exit codes: 0.")
@click.argument("path")
@click.option("--data", required=True, help="The data.")
@click.option("-v", is_flag=True)
def run(path: str, data: str, v: bool) -> None:
    """Run on PATH."""
    click.echo(f"ran {path} {data} {v}")


@tool.command()
@click.argument("path")
def verify(path: str) -> None:
    """Check PATH."""
    click.echo(f"checked {path}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dir", "--data", "d"], "ran dir d False"),
        (["--data", "d", "dir"], "ran dir d False"),
        (["-v", "--data", "d", "dir"], "ran dir d True"),
        (["--data", "verify", "dir"], "ran dir verify False"),
        (["verify", "dir"], "checked dir"),
        (["./verify", "--data", "d"], "ran ./verify d False"),
        (["--data", "d", "--", "-dir"], "ran -dir d False"),
    ],
)
def test_words_that_name_no_command_are_the_default_commands(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(tool, arguments)
    assert result.output.strip() == said
    assert result.exit_code == 0


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_default_commands_with_the_others_listed(flag: str) -> None:
    text = CliRunner().invoke(tool, [flag]).output
    assert "Usage: tool [OPTIONS] PATH" in text
    assert "Run on PATH." in text
    assert "--data" in text
    assert "verify  Check PATH." in text
    assert text.strip().endswith("Exit codes: 0.")
    assert "run " not in text.split("Commands:")[1]


def test_help_of_either_command_is_its_own() -> None:
    assert "Usage: tool [OPTIONS] PATH" in CliRunner().invoke(tool, ["dir", "--help"]).output
    assert "Usage: tool verify [OPTIONS] PATH" in CliRunner().invoke(tool, ["verify", "--help"]).output


def test_usage_errors_name_what_was_typed() -> None:
    result = CliRunner().invoke(tool, ["dir"])
    assert result.exit_code == 2
    assert "Usage: tool [OPTIONS] PATH\n" in result.output
    assert "Missing option '--data'" in result.output


def test_no_words_at_all_show_the_help() -> None:
    result = CliRunner().invoke(tool, [])
    assert result.exit_code == 2
    assert "Commands:" in result.output


def complete(words: str, incomplete: str) -> set[tuple[str, str]]:
    from click.shell_completion import ShellComplete

    found = ShellComplete(tool, {}, "tool", "_TOOL_COMPLETE").get_completions(words.split(), incomplete)
    return {(item.type, item.value) for item in found}


def test_completion_offers_commands_files_and_the_default_commands_options() -> None:
    assert complete("", "v") == {("plain", "verify"), ("file", "v")}
    assert ("plain", "--data") in complete("", "--")
    assert ("plain", "--data") in complete("dir", "--")
