"""Bad requests for texts, and clients that do as they like, are told the same by a core and by an agent: real
processes, sockets, a small language model in each. Nothing is lost by any of them.

What becomes of a text in between is shown in ``tests/integration/test_generation.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from penstock.artifact.layout import Layout
from penstock.generation import tokenizer
from penstock.hosting.generation import text_model
from tests.contract.wire import connection
from tests.factories import certificate_for
from tests.language import CLOUD, EDGE, MODELS, NAME, text_draft
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess
from tests.waiting import PATIENCE_S, wait_until

CORE_CONFIG = "[serving]\ndrain_s = 0.5\n[serving.generation.worker]\nexit_s = 0.2\n"
CONFIG = AGENT_CONFIG + "\n[limits]\ndrain_s = 0.5\n[generation.worker]\nexit_s = 0.2\n"
TEMPLATE = b"""{% for message in messages %}{% set said = message.content %}
{% if said == 'refuse' %}{{ raise_exception('not about this') }}{% endif %}
{% if said == 'fail' %}{{ message.nothing.there }}{% endif %}
{% if said == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{% if said == 'grow' %}{{ 'x' * 100000000 }}{% endif %}
{{ message.role }}: {{ said }}{% endfor %}"""
LOCAL = {"penstock": {"local_only": True}}
WHO = ("core", "agent")


@dataclass
class World:
    """A core and an agent that both run the language model; the agent keeps what it is sure of."""

    core: CoreProcess
    agent: AgentProcess

    def target(self, who: str) -> str:
        return self.core.http_url if who == "core" else f"http://{self.agent.endpoints['tcp']}"

    def process(self, who: str) -> CoreProcess | AgentProcess:
        return self.core if who == "core" else self.agent

    def worker(self, who: str) -> int:
        """The process of the model's engine."""
        tasks = Path(f"/proc/{self.process(who).pid}/task").iterdir()
        (worker,) = {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
        return worker

    def is_idle(self) -> bool:
        """Nothing runs or waits, in either."""
        with urllib.request.urlopen(f"{self.core.http_url}/metrics", timeout=PATIENCE_S) as response:
            told = response.read().decode()
        gauges = re.findall(r"^penstock_(?:generations_(?:running|waiting)|inflight_requests)\S* (\S+)$", told, re.M)
        assert len(gauges) >= 3
        (model,) = self.agent.status()["models"]
        generation = model["generation"]
        return not (sum(map(float, gauges)) + generation["running"] + generation["waiting"])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    core = CoreProcess(directory=directory / "c", config=CORE_CONFIG)
    agent = AgentProcess(
        directory=directory, device_id="a1", core=core, config=CONFIG, arguments=("--tcp", "127.0.0.1:0")
    )
    try:
        core.start()
        core.push(_layout(directory).root)
        agent.start()
        core.release(f"{NAME}:v1")
        agent.wait_until_runs(NAME, "v1")
        yield World(core, agent)
    finally:
        agent.kill()
        core.kill()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    yield
    if all(Path(f"/proc/{world.process(who).pid}").exists() for who in WHO):
        wait_until("every slot to be given back", world.is_idle)
    assert "Traceback" not in world.core.log + world.agent.log


# --- the table of statuses ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ask:
    """``body`` is what is sent, bytes as they are."""

    body: Any = b""
    path: str = "/v1/completions"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()


def completion(**fields: Any) -> Ask:
    return Ask(body={"model": NAME, "prompt": "import os", **fields})


def chat(content: Any = "hi", **fields: Any) -> Ask:
    messages = [{"role": "user", "content": content}]
    return Ask(path="/v1/chat/completions", body={"model": NAME, "messages": messages, **fields})


def raw(rest: str) -> Ask:
    return Ask(body=f'{{"model": "{NAME}", {rest}}}'.encode())


def schema(value: Any) -> Ask:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}})


def replace_field(ask: Ask, **fields: Any) -> Ask:
    return replace(ask, body={**ask.body, **fields})


DEEP = json.loads('{"a":' * 300 + "{}" + "}" * 300)

BAD: dict[str, tuple[Ask, int, str]] = {
    "id of another vocabulary": (completion(prompt=[10, 1024]), 400, r"1024 .*0 to 1023"),
    "id in a list": (completion(prompt=[[10], [1024]]), 400, r"prompt\[1\]\[0\]: token 1024"),
    "negative id": (completion(prompt=[-1]), 400, r"prompt\[0\]"),
    "id that is no number": (completion(prompt=[1.5]), 400, "prompt"),
    "empty prompt": (completion(prompt=""), 400, "prompt: empty"),
    "no prompt": (completion(prompt=None), 400, "prompt: missing"),
    "no ids": (completion(prompt=[]), 400, "prompt: missing"),
    "no messages": (chat(messages=[]), 400, "messages: none"),
    "long prompt": (completion(prompt="x y " * 2000), 400, r"4001 tokens.* 511"),
    "long prompt in a list": (completion(prompt=["x", "x y " * 2000]), 400, r"4001 tokens.* 511"),
    "long conversation": (chat("x y " * 2000), 400, r"tokens.* 511"),
    "long answer of a chat": (chat(max_completion_tokens=10**6), 400, r"1000000, together .* 512"),
    "long answer": (completion(max_tokens=10**6), 400, r"1000000, together 1000002.* 512"),
    "prompt and answer": (completion(prompt=[10] * 500, max_tokens=100), 400, "500 tokens.* 100, together 600.* 512"),
    "no answer": (completion(max_tokens=0), 400, "max_tokens"),
    "empty stop": (completion(stop=""), 400, "stop string is empty"),
    "many stops": (completion(stop=[f"{at}!" for at in range(100)]), 400, "100 stop strings; at most"),
    "long stop": (completion(stop="a" * 2**20), 400, "1048576 characters; at most"),
    "no choices": (completion(n=0), 400, "n: "),
    "many choices": (completion(n=1000), 400, "n: .*128"),
    "many logprobs": (completion(logprobs=21), 400, "logprobs: .*20"),
    "many top logprobs": (chat(logprobs=True, top_logprobs=21), 400, "top_logprobs: .*20"),
    "NaN": (raw('"prompt": "x", "temperature": NaN'), 400, "NaN"),
    "infinite": (raw('"prompt": "x", "temperature": 1e999'), 400, "1e999"),
    "negative temperature": (completion(temperature=-1), 400, "temperature"),
    "large seed": (completion(seed=2**64), 400, "seed"),
    "broken schema": (schema({"type": "nonsense"}), 400, "response_format: "),
    "schema that is none": (schema([1]), 400, "schema: Expected `object`"),
    "deep schema": (schema(DEEP), 400, "response_format: |nested too deeply"),
    "huge schema": (schema({"enum": [f"v{at}" for at in range(50_000)]}), 400, "response_format: "),
    "schema that refers to nothing": (schema({"$ref": "#/nowhere"}), 400, "response_format: "),
    "schema that nothing fits": (
        schema({"type": "object", "properties": {"a": False}, "required": ["a"]}),
        400,
        "response_format: ",
    ),
    "broken regex": (completion(structured_outputs={"regex": "("}), 400, "structured_outputs: "),
    "half a surrogate pair": (raw(r'"prompt": "a\ud800b"'), 400, "surrogate"),
    "half a character": (Ask(body=b'{"model": "m", "prompt": "\xe2\x82"}'), 400, "not UTF-8"),
    "unknown role": (chat(messages=[{"role": "king", "content": "x"}]), 400, "king"),
    "template refuses": (chat("refuse"), 400, "refuses this conversation: not about this"),
    "template fails": (chat("fail"), 400, "fails with this conversation"),
    "template loops": (chat("loop"), 400, "was stopped at this conversation"),
    "template grows": (chat("grow"), 400, "more than 8388608 characters"),
    "image": (chat([{"type": "image_url", "image_url": {"url": "x"}}]), 400, "image_url"),
    "stream_options": (completion(stream_options={"include_usage": True}), 400, "only with stream"),
    "too large": (completion(prompt="a" * 8 * 2**20), 413, "8388608"),
    "unknown model": (completion(model="nope"), 404, "'nope'.*codecomplete"),
    "unknown version": (completion(model=f"{NAME}:v9"), 404, "'v9'.*v1"),
    "no JSON": (Ask(body=b'{"model":'), 400, "not JSON"),
    "nested without end": (Ask(body=b"[" * 100_000), 400, "nested too deeply"),
    "expired": (replace(completion(), headers=(("x-request-timeout-ms", "0"),)), 504, "deadline"),
    "wrong method": (Ask(method="GET"), 405, "GET.*POST"),
    "wrong method for models": (Ask(method="DELETE", path="/v1/models"), 405, "DELETE.*GET"),
    "unknown coding": (replace(completion(), headers=(("Content-Encoding", "br"),)), 415, "'br'"),
}


PARAMS = {
    "id of another vocabulary": "prompt[1]",
    "id in a list": "prompt[1][0]",
    "negative id": "prompt[0]",
    "long prompt": "prompt",
    "long prompt in a list": "prompt[1]",
    "long conversation": "messages",
    "long answer": "max_tokens",
    "long answer of a chat": "max_completion_tokens",
    "broken schema": "response_format",
    "deep schema": "response_format",
    "huge schema": "response_format",
    "broken regex": "structured_outputs",
    "many logprobs": "logprobs",
    "template refuses": "messages",
}


@pytest.mark.parametrize("case", BAD)
def test_core_and_agent_say_alike_what_is_wrong_with_a_request(world: World, case: str) -> None:
    ask, status, says = BAD[case]
    told = [answer_of(world.target(who), ask) for who in WHO]
    assert [answer.status for answer in told] == [status, status], told
    for answer in told:
        error = answer.document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert re.search(says, error["message"]), error
        assert "http://" not in error["message"], "who asked knows of no server behind the one that answers"
        assert error["param"] == PARAMS.get(case, error["param"]), error
        assert not re.search(r"prompt_ids|grammar", error["message"]), "these are no names of OpenAI's"
    assert told[0].document["error"] | {"message": ""} == told[1].document["error"] | {"message": ""}
    assert {name: told[0].headers.get(name) for name in HINTS} == {name: told[1].headers.get(name) for name in HINTS}


HINTS = ("x-penstock-code", "x-penstock-reason", "x-penstock-limit-bytes", "allow", "accept-encoding", "content-type")


@pytest.mark.parametrize("who", WHO)
def test_a_model_of_texts_asked_for_arrays_says_where_to_ask(world: World, who: str) -> None:
    given = {"name": "prompt_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}
    answer = answer_of(world.target(who), Ask(path=f"/v2/models/{NAME}/infer", body={"inputs": [given]}))
    assert answer.status == 400
    for path in re.findall(r"/v\d/\S+\b", answer.document["error"]):
        assert answer_of(world.target(who), Ask(path=path, body=b"{}")).status == 400, "it is served"


def test_metadata_of_a_model_of_texts_are_the_same_and_name_what_is_taken(world: World) -> None:
    told = [answer_of(world.target(who), Ask(method="GET", path=f"/v2/models/{NAME}")).document for who in WHO]
    shapes = [[(one["name"], one["datatype"], one["shape"]) for one in doc["inputs"] + doc["outputs"]] for doc in told]
    assert shapes[0] == shapes[1] == [
        ("text_input", "BYTES", [1]), ("prompt_ids", "INT64", [1, -1]), ("messages", "BYTES", [1]),
        ("sampling_parameters", "BYTES", [1]), ("streaming", "BOOL", [1]),
        ("text_output", "BYTES", [1]), ("token_ids", "INT64", [1, -1]), ("logprobs", "FP32", [1, -1]),
    ]  # fmt: skip
    for who in WHO:
        assert "generate" in answer_of(world.target(who), Ask(method="GET", path="/v2")).document["extensions"]


@pytest.mark.parametrize("who", WHO)
def test_more_answers_than_there_is_room_for_come_one_after_the_other(world: World, who: str) -> None:
    """A core's line has 68 places by default; a request for more at once would never be let in."""
    ask = completion(n=100, max_tokens=1, temperature=1, seed=1)
    answer = answer_of(world.target(who), ask)
    assert answer.status == 200, answer
    assert len(answer.document["choices"]) == 100


RECURSIVE = {
    "may end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
    "never ends": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "says nothing": {"$ref": "#"},
}


@pytest.mark.parametrize("case", RECURSIVE)
@pytest.mark.parametrize("who", WHO)
def test_a_schema_that_refers_to_itself_is_held_to_as_far_as_tokens_go(world: World, who: str, case: str) -> None:
    answer = answer_of(world.target(who), replace_field(schema(RECURSIVE[case]), max_tokens=24))
    if case == "never ends" and answer.status == 400:  # seen before anything is generated, in later versions of it
        assert "response_format" in answer.document["error"]["message"]
        return
    assert answer.status == 200, answer
    (choice,) = answer.document["choices"]
    assert choice["finish_reason"] == "length" or json.loads(choice["message"]["content"]) is not None
    assert case != "never ends" or choice["finish_reason"] == "length"


@pytest.mark.parametrize("who", WHO)
def test_a_prompt_that_ends_in_half_a_character_is_continued_in_whole_ones(world: World, who: str) -> None:
    reads = tokenizer.load(text_model.read_files(MODELS / EDGE))
    ids = [*reads.encode("# caf"), reads.encode("é", add_special_tokens=False)[0]]
    assert reads.pieces.bytes_of(ids[-1]) == b"\xc3"
    answer = answer_of(world.target(who), completion(prompt=ids, max_tokens=8))
    assert answer.status == 200, answer
    assert answer.document["usage"]["prompt_tokens"] == len(ids)
    answer.document["choices"][0]["text"].encode()


# --- connections -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", WHO)
def test_connections_are_used_again_after_streams_whatever_is_asked_next(world: World, who: str) -> None:
    stream, whole = request(stream=True), request()
    other = b"POST /v2/models/nobody/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    with link(world.target(who)) as line:
        line.sendall(stream + whole + other + b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + stream)
        said = read(line, until=lambda told: told.count(b"[DONE]") == 2 and told.endswith(b"0\r\n\r\n"))
    statuses = re.findall(rb"HTTP/1.1 (\d+)", said)
    assert statuses[:2] + statuses[3:] == [b"200"] * 4
    assert statuses[2].startswith(b"4")


@pytest.mark.parametrize("who", WHO)
def test_a_client_of_http_1_0_reads_to_the_end_of_the_connection(world: World, who: str) -> None:
    with link(world.target(who)) as line:
        line.sendall(request(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
        said = read(line)
    assert b"chunked" not in said
    assert said.endswith(b"data: [DONE]\n\n")


# --- who goes away, and what goes away ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"n": 3, "temperature": 1}], ids=["one", "several"])
@pytest.mark.parametrize(("who", "runs"), [("core", "core"), ("agent", "agent"), ("agent", "core")])
def test_a_client_that_goes_away_leaves_nothing_behind(
    world: World, who: str, runs: str, fields: dict[str, Any]
) -> None:
    """In every phase: before the first token, in a stream, while it waits for a whole, after the last token. That the
    slots are given back is what ``nothing_is_left`` waits for."""
    long = {"max_tokens": 400, "stop": [], **fields, **(LOCAL if (who, runs) == ("agent", "agent") else {})}
    worker = world.worker(runs)
    os.kill(worker, signal.SIGSTOP)
    try:
        for stream in (True, False):
            with link(world.target(who)) as line:
                line.sendall(request(stream=stream, **long))
    finally:
        os.kill(worker, signal.SIGCONT)
    with link(world.target(who)) as line:
        line.sendall(request(stream=True, **long))
        read(line, until=lambda told: told.count(b"data: ") > 2)
    with link(world.target(who)) as line:
        line.sendall(request(stream=True, **long | {"max_tokens": 4}))
        read(line, until=lambda told: b'"finish_reason":"' in told)


@pytest.mark.parametrize("who", WHO)
def test_many_streams_at_once_are_all_answered_and_the_line_has_an_end(world: World, who: str) -> None:
    """64 fit into 4 slots and the line before them; what finds no room is told when to come back."""
    with ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(exchange, world.target(who), stream=True, max_tokens=2, **LOCAL) for _ in range(100)]
        told = [one.result() for one in asked]
    whole = [said for said in told if said.startswith(b"HTTP/1.1 200")]
    assert len(whole) >= 64
    assert all(b"data: [DONE]" in said for said in whole)
    for said in set(told) - set(whole):
        assert said.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: " in said
        assert b"queue-full" in said


@pytest.mark.parametrize("who", WHO)
def test_a_deadline_in_a_stream_is_an_error_event_and_no_end(world: World, who: str) -> None:
    worker = world.worker(who)
    with link(world.target(who)) as line:
        line.sendall(request("x-request-timeout-ms: 1500\r\n", stream=True, max_tokens=500, stop=[], **LOCAL))
        said = read(line, until=lambda told: b"data: " in told)
        os.kill(worker, signal.SIGSTOP)
        try:
            said += read(line, until=lambda told: told.endswith(b"0\r\n\r\n"))
        finally:
            os.kill(worker, signal.SIGCONT)
    assert b'"code":"deadline-exceeded"' in said
    assert b"[DONE]" not in said


@pytest.mark.parametrize("who", WHO)
def test_an_engine_that_is_killed_ends_its_streams_with_an_error_and_comes_back(world: World, who: str) -> None:
    worker = world.worker(who)
    with link(world.target(who)) as line:
        line.sendall(request(stream=True, max_tokens=500, stop=[], **LOCAL))
        said = read(line, until=lambda told: b"data: " in told)
        os.kill(worker, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        said += read(line, until=lambda told: told.endswith(b"0\r\n\r\n"))
    assert b'"code":"unavailable"' in said
    assert b"[DONE]" not in said
    if who == "agent":  # what may leave the device is answered meanwhile
        assert b'"served_by":"cloud"' in exchange(world.target(who))
    wait_until("an answer", lambda: exchange(world.target(who), **LOCAL).startswith(b"HTTP/1.1 200"))


@pytest.mark.parametrize("who", ["agent", "core"])
def test_what_a_drain_has_no_time_for_is_told_so(world: World, who: str) -> None:
    """The last tests of this module: they end the agent, then the core."""
    target, process, worker = world.target(who), world.process(who), world.worker(who)
    with link(target) as line, link(target) as other:
        line.sendall(request(stream=True, max_tokens=500, stop=[], **LOCAL))
        said = read(line, until=lambda told: b"data: " in told)
        os.kill(worker, signal.SIGSTOP)
        other.sendall(request(**LOCAL))
        for _ in range(2):  # what came before them has been taken in
            answer_of(target, Ask(method="GET", path="/v1/models"))
        process.stop()
        said += read(line)
        whole = read(other)
    assert b'"code":"unavailable"' in said
    assert b"[DONE]" not in said
    assert whole.startswith(b"HTTP/1.1 503")
    assert not Path(f"/proc/{worker}").exists()


# --- bytes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    document: dict[str, Any]


def answer_of(target: str, ask: Ask) -> Answer:
    made = connection(target)
    try:
        body = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body).encode()
        made.request(ask.method, ask.path, body, dict(ask.headers))
        response = made.getresponse()
        content = response.read()
    finally:
        made.close()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(status=response.status, headers=headers, document=json.loads(content))


def link(target: str) -> socket.socket:
    host, _, port = target.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def request(headers: str = "", **fields: Any) -> bytes:
    body = json.dumps({"model": NAME, "prompt": "import os", **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def read(line: socket.socket, *, until: Callable[[bytes], bool] = lambda told: False) -> bytes:
    said = b""
    while not until(said) and (piece := line.recv(65_536)):
        said += piece
    return said


def exchange(target: str, **fields: Any) -> bytes:
    with link(target) as line:
        line.sendall(request("Connection: close\r\n", **fields))
        return read(line)


def _layout(directory: Path) -> Layout:
    """As ``text_layout``, with a template."""
    template = directory / "chat_template.jinja"
    template.write_bytes(TEMPLATE)
    drafts = [text_draft("edge", EDGE), text_draft("cloud", CLOUD)]
    layout = Layout.create(directory / "layout")
    layout.pack([replace(draft, files={**draft.files, template.name: template}) for draft in drafts], tag="v1")
    layout.attach_certificate(
        certificate_for(layout, score="token_min", threshold=0.2, harm="disagreement", max_harm=0.1)
    )
    return layout
