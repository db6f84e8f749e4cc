from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.cli.generate import command
from penstock.errors import Internal, InvalidInput, NotFound, Unavailable
from penstock.generation.plane import Chat
from penstock.generation.values import Sampling
from tests.penstock.http.text_house import House, text_house
from tests.waiting import until

TEXT = "The quick café"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with text_house(tmp_path) as made:
        yield made
        await until("everything is given back", lambda: made.is_quiet)


async def generate(*arguments: str, stdin: str | bytes | None = None) -> Result:
    def run() -> Result:
        return CliRunner().invoke(command, arguments, input=stdin, catch_exceptions=False, standalone_mode=False)

    return await asyncio.to_thread(run)


async def test_a_text_goes_to_stdout_and_who_gave_it_to_stderr(house: House) -> None:
    for target in (house.tcp, f"unix://{house.socket}"):
        done = await generate(target, "echo", TEXT)
        assert done.stdout == f"{TEXT}\n"
        assert done.stderr.startswith("echo sha256:ab: stop; ")
        assert done.stderr.endswith("by edge (kept)\n")


async def test_options_and_conversations_reach_the_plane(house: House) -> None:
    await generate(
        house.tcp, "echo", "-", "--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--max-tokens", "2",
        "--stop", "a", "--stop", "b", "--version", "v2", "--timeout", "9", stdin="xyz",
    )  # fmt: skip
    context, asked = house.plane.asked[-1]
    assert asked.sampling == Sampling(temperature=0.5, top_p=0.9, seed=3)
    assert (asked.prompt, asked.max_new_tokens, asked.stop, asked.version) == ("xyz", 2, ("a", "b"), "v2")
    assert 8 < context.deadline - context.arrived_at <= 9
    await generate(house.tcp, "echo", "hello", "--chat")
    await generate(house.tcp, "echo", "hello", "--system", "be kind")
    said = [request.prompt for _, request in house.plane.asked[-2:]]
    assert all(isinstance(prompt, Chat) for prompt in said)
    assert [[one["role"] for one in prompt.messages] for prompt in said if isinstance(prompt, Chat)] == [
        ["user"], ["system", "user"],
    ]  # fmt: skip


@pytest.mark.parametrize("chat", [(), ("--chat",)])
async def test_json_has_everything(house: House, chat: tuple[str, ...]) -> None:
    document = json.loads((await generate(house.tcp, "echo", TEXT, "-o", "json", *chat)).stdout)
    assert (document["text"], document["finish_reason"], document["served_by"]) == (TEXT, "stop", "edge")
    assert document["usage"]["completion_tokens"] == len(document["token_ids"])


async def test_what_goes_wrong_is_an_error_after_what_was_said(house: House, closed_port: int) -> None:
    with pytest.raises(NotFound, match="known: "):
        await generate(house.tcp, "ghost", "a")
    with pytest.raises(Internal):
        await generate(house.tcp, "breaks", "x")
    with pytest.raises(Unavailable, match=str(closed_port)):
        await generate(f"http://127.0.0.1:{closed_port}", "echo", "a")
    with pytest.raises(Unavailable, match=str(closed_port)):
        await generate(f"grpc://127.0.0.1:{closed_port}", "echo", "a")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        await generate(house.tcp, "echo", "-", stdin=b"\xff")


async def test_a_reader_that_has_seen_enough_stops_the_server(house: House) -> None:
    shell = f"{sys.executable} -m penstock generate {house.tcp} endless a --max-tokens 1000000 | head -c 5"
    done = await asyncio.to_thread(subprocess.run, ["sh", "-c", shell], capture_output=True, timeout=100)
    assert done.stdout == b"a" * 5
    await until("the generation stops", lambda: house.is_quiet)
