"""``penstock generate``: one text from a prompt or a conversation, shown as it is made."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.output import output_option, print_json, progress
from penstock.errors import InvalidInput

if TYPE_CHECKING:
    from penstock.sdk.client import Client
    from penstock.sdk.texts import Text, TextOptions

_MAX_PROMPT_BYTES = 8 * 1024 * 1024


@click.command(
    epilog="""\b
Examples:
  penstock generate unix:///run/penstock/agent.sock assistant "The sea is"
  penstock generate http://127.0.0.1:8000 assistant "How deep is the sea?" --chat
  penstock generate http://127.0.0.1:8000 assistant "Write a poem." --chat --temperature 0.8 --seed 7
  penstock generate http://127.0.0.1:8000 assistant "Is the sea deep? " --choice yes --choice no
  penstock generate http://127.0.0.1:8000 codecomplete - --max-tokens 32 -o json < program.py

The text goes to stdout as it is made, and who answered to stderr. What is not said is the model's own way, which its
certificate is about. Ctrl-C stops the server, too.""",
)
@click.argument("target")
@click.argument("model")
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Answer the prompt as a user's message, by the model's own template.")
@click.option("--system", metavar="TEXT", help="What the conversation begins with; implies --chat.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of the answer at most.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), metavar="T", help="How freely tokens are drawn; 0 is not at all."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="P",
    help="Draw from the likeliest tokens that have this share; with --temperature.",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Draw the same tokens again; with --temperature.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeat for several.")
@click.option("--choice", multiple=True, metavar="TEXT", help="Answer with this text or another one that is named so.")
@click.option("--version", default="", metavar="TAG|DIGEST", help="Version to ask; the server's default otherwise.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="S",
    help="Seconds for the whole answer, all tries together.",
)
@click.option(
    "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where there are tenants."
)
@output_option
def command(
    target: str, model: str, prompt: str, chat: bool, system: str | None, token: str, output: str, **asked: Any
) -> None:
    """Ask TARGET (http://host:port or unix:///path) for MODEL's continuation of PROMPT; '-' reads standard input."""
    from penstock.sdk.client import Client  # here, so that --help does not pay for it

    if prompt == "-":
        prompt = _standard_input()
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    said: Any = messages if chat or system is not None else prompt
    options = _options(asked)
    with Client(target, token=token) as client:
        if output == "json":
            text = (
                client.chat(model, said, **options)
                if isinstance(said, list)
                else client.generate(model, said, **options)
            )
            print_json(text)
        else:
            _show(client, model, said, options)


def _options(asked: dict[str, Any]) -> TextOptions:
    return {
        "max_new_tokens": asked["max_tokens"],
        "temperature": asked["temperature"],
        "top_p": asked["top_p"],
        "seed": asked["seed"],
        "stop": asked["stop"] or None,
        "choices": asked["choice"] or None,
        "version": asked["version"],
        "timeout": asked["timeout"],
    }


def _show(client: Client, model: str, said: Any, options: TextOptions) -> None:
    with closing(client.stream(model, said, **options)) as parts:
        is_begun = False
        try:
            for part in parts:
                is_begun = True
                click.echo(part.text, nl=False)
        finally:
            if is_begun:
                click.echo()  # also before the line that says what went wrong
    progress(_account(parts.answer))


def _account(text: Text) -> str:
    who = " ".join(word for word in (text.model, text.version[:24]) if word)
    usage = text.usage
    taken = "" if usage is None else f"; {usage.prompt_tokens} tokens in, {usage.completion_tokens} out"
    sure = "" if text.confidence is None else f"; confidence {text.confidence:.3f}"
    by = f"; by {text.served_by}" + (f" ({text.reason})" if text.reason else "") if text.served_by else ""
    return f"{who}: {text.finish_reason}{taken}{by}{sure}"


def _standard_input() -> str:
    data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise InvalidInput(f"standard input has more than {_MAX_PROMPT_BYTES} bytes", field="prompt")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"standard input is not UTF-8 at byte {error.start}", field="prompt") from None
