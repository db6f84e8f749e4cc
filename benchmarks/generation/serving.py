"""What a core adds to its engine, and what the second turn of a conversation saves.

``engine`` is the engine in this process; ``core /v1`` and ``core /v2`` ask a core, whose engine runs in a process of
its own, over HTTP by OpenAI's API and by the generate extension; ``core, attached`` asks a second core that has the
first one as a server of others behind a URL. One stream; they take turns prompt by
prompt, and no two prompts begin alike.
"""

from __future__ import annotations

import contextlib
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.generation.asking import OIP, OPENAI, Answer, Ask, engine_asker, http_asker
from benchmarks.generation.models import NAME, packed
from benchmarks.servers import Pins, running, wait
from examples.tiny_llama import data
from penstock.generation import tokenizer
from penstock.hosting.generation.text_model import read_files
from penstock.runtime.generation import GenerationOptions, load

PROMPT_CHARS, NEW_TOKENS = 160, 32
TURN_CHARS, LATER_CHARS = 1500, 80
ALONE, V1, V2, ATTACHED = "engine", "core /v1", "core /v2", "core, attached"
PAIRS = ((V1, ALONE), (V2, ALONE), (ATTACHED, V1))
"""What is in front, and what it is in front of."""

_LOAD_S = 120.0
_SETTINGS = "[serving.generation.worker]\nthreads = {threads}\n[serving.generation.engine]\ncontext_tokens = 1024\n"
_ATTACHED = '[serving.generation.remote.urls]\n{name} = ["http://{endpoint}/v1"]\n'


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The second turn of one conversation, and the same length of text of which nothing is known."""

    with_first: Answer
    without: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """What can be asked.

    Attributes:
        askers: by name.
        endpoint: HTTP of the core that runs the engine.
    """

    askers: Mapping[str, Ask]
    endpoint: str


@contextlib.contextmanager
def cores(model: Path, threads: int) -> Iterator[Cores]:
    """Yield an engine in this process and cores in front of the same model, which end with the block."""
    engine = load("onnxruntime", model, GenerationOptions(threads=threads, slots=1, context_tokens=1024))
    reads = tokenizer.load(read_files(model))
    settings = _SETTINGS.format(threads=threads)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running(Path(name), Pins(server=None, client=None)) as servers,
        contextlib.closing(engine),
        contextlib.ExitStack() as connections,
    ):
        scratch = Path(name)
        layout = packed(model, scratch / "layout").root
        core = servers.core([layout], config=settings).endpoints["http"]
        wait("the core's model", partial(_is_ready, core), timeout_s=_LOAD_S)
        config = settings + _ATTACHED.format(name=NAME, endpoint=core)
        attached = servers.core([layout], name="attached", config=config).endpoints["http"]
        wait("the attached core's model", partial(_is_ready, attached), timeout_s=_LOAD_S)
        askers = {
            ALONE: engine_asker(engine, lambda text: list(reads.encode(text))),
            V1: connections.enter_context(http_asker(core, OPENAI)),
            V2: connections.enter_context(http_asker(core, OIP)),
            ATTACHED: connections.enter_context(http_asker(attached, OPENAI)),
        }
        yield Cores(askers=askers, endpoint=core)


def overhead(askers: Mapping[str, Ask], prompts: int) -> dict[str, list[Answer]]:
    """Ask each so many prompts, in turns; all get other prompts, since a core's slots remember."""
    source = _texts(PROMPT_CHARS, seed=1)
    found: dict[str, list[Answer]] = {name: [] for name in askers}
    for ask in askers.values():  # the first of each is its warm-up
        ask(next(source), NEW_TOKENS)
    for number in range(prompts):
        order = list(askers)[number % len(askers) :] + list(askers)[: number % len(askers)]
        for name in order:
            found[name].append(askers[name](next(source), NEW_TOKENS))
    return found


def second_turns(ask: Ask, conversations: int, chars: int = TURN_CHARS) -> list[Turn]:
    """Ask the first and the second turn of conversations, and beside each something as long as the second."""
    openings, laters = _texts(chars, seed=2), _texts(LATER_CHARS, seed=3)
    found = list[Turn]()
    for _ in range(conversations):
        opening, unknown, later = next(openings), next(openings), next(laters)
        ask(opening, NEW_TOKENS)
        found.append(Turn(with_first=ask(opening + later, 1), without=ask(unknown + later, 1)))
    return found


def _texts(chars: int, seed: int) -> Iterator[str]:
    """Yield texts of that length from places drawn at random, each with a beginning of its own."""
    draw, library = np.random.default_rng(seed), "".join(data.texts(held_out=True))
    while True:
        at = int(draw.integers(0, len(library) - chars))
        yield f"{draw.integers(10**6)} {library[at : at + chars]}"[:chars]


def _is_ready(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{endpoint}/v2/models/{NAME}/ready") as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False
