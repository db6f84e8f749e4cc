"""A small language model on a device, a larger one in a core: OpenAI's own client on both, and the cascade between.

Real processes, real sockets, models that were trained and built (examples/codecomplete).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock import Client
from penstock.artifact.layout import Layout
from tests import waiting
from tests.language import ANSWER, EDGE, NAME, references, text_layout
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, penstock

openai = pytest.importorskip("openai", reason="the openai client is not installed: make venv")
httpx = pytest.importorskip("httpx2", reason="what the openai client is built on")

Started = tuple[CoreProcess, AgentProcess]
PROMPT = "import os\nimport "
AUDITED = AGENT_CONFIG + "\n[cascade]\naudit_share = 0.5\n"


@pytest.fixture
def start(
    core_factory: Callable[..., CoreProcess], agent_factory: Callable[..., AgentProcess], tmp_path: Path
) -> Callable[..., Started]:
    def started(threshold: float | None, *, config: str = AGENT_CONFIG, arguments: tuple[str, ...] = ()) -> Started:
        core = core_factory()
        layout: Layout = text_layout(tmp_path, threshold=threshold)
        core.push(layout.root)
        agent = agent_factory(core, config=config, arguments=arguments)
        core.release(f"{NAME}:v1")
        agent.wait_until_runs(NAME, "v1")
        return core, agent

    return started


def completion(agent: AgentProcess, **fields: Any) -> dict[str, Any]:
    """Ask over the unix socket, as an application on the device does."""
    transport = httpx.HTTPTransport(uds=str(agent.socket))
    with openai.OpenAI(
        base_url="http://agent/v1", api_key="none", max_retries=0, http_client=httpx.Client(transport=transport)
    ) as client:
        ours = {name: fields.pop(name) for name in ("penstock",) if name in fields}
        answer = client.completions.create(**{"model": NAME, "prompt": PROMPT, "extra_body": ours, **fields})
        found: dict[str, Any] = answer.to_dict()
        return found


def test_the_client_of_openai_asks_core_and_agent_alike(start: Callable[..., Started]) -> None:
    core, agent = start(0.0, arguments=("--tcp", "127.0.0.1:0"))
    for url, who in ((core.http_url, "cloud"), (f"http://{agent.endpoints['tcp']}", "edge")):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == [NAME]
        whole = client.completions.create(model=NAME, prompt=PROMPT)
        assert whole.choices[0].finish_reason in ("stop", "length")
        assert whole.model_extra["penstock"]["served_by"] == who
        parts = list(client.completions.create(model=NAME, prompt=PROMPT, stream=True))
        assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
        assert parts[-1].model_extra["penstock"]["served_by"] == who
        with pytest.raises(openai.BadRequestError, match="chat template"):
            client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nobody", prompt="x")
        client.close()
    _check_our_own_clients(core, agent, whole.choices[0].text)
    _check_ways_of_decoding(agent)


def test_what_the_device_is_sure_of_stays_and_the_rest_is_the_clouds(start: Callable[..., Started]) -> None:
    core, agent = start(0.2)
    by_core = openai.OpenAI(base_url=f"{core.http_url}/v1", api_key="none", max_retries=0)
    served = set()
    for row in references(EDGE)[:12]:
        found = completion(agent, prompt=row["ids"])
        account = found["penstock"]
        served.add(account["served_by"])
        assert account["threshold"] == 0.2
        assert account["certificate"].startswith("sha256:")
        if account["served_by"] == "edge":
            assert account["reason"] == "confident"
            assert account["confidence"] >= 0.2
        else:
            assert account["reason"] == "escalated"
            assert account["confidence"] < 0.2
            said = by_core.completions.create(model=NAME, prompt=row["ids"])
            assert found["choices"][0]["text"] == said.choices[0].text
    by_core.close()
    assert served == {"edge", "cloud"}


def test_without_the_cloud_the_device_answers_with_a_flag_also_after_its_engine_was_killed(
    start: Callable[..., Started],
) -> None:
    core, agent = start(1.0)
    assert completion(agent)["penstock"]["served_by"] == "cloud"
    core.kill()
    account = completion(agent)["penstock"]
    assert (account["served_by"], account["reason"]) == ("edge", "cloud_unreachable")
    (worker,) = children(agent.pid)
    os.kill(worker, signal.SIGKILL)
    waiting.wait_until("a new worker", lambda: bool(set(children(agent.pid)) - {worker}))

    def answers() -> bool:
        try:
            return completion(agent)["penstock"]["served_by"] == "edge"
        except openai.InternalServerError:  # 503: it is being started again
            return False

    waiting.wait_until("an answer", answers)


def test_audits_end_a_promise_that_does_not_hold(start: Callable[..., Started]) -> None:
    """Two models of which one is certified for nothing: kept whatever it says, and nearly always otherwise."""
    _, agent = start(0.0, config=AUDITED)
    assert completion(agent)["penstock"]["reason"] == "confident"

    def is_distrusted() -> bool:
        return bool(completion(agent)["penstock"]["reason"] == "cloud_only")

    waiting.wait_until("the alarm", is_distrusted)
    (model,) = agent.status()["models"]
    assert model["counts"]["audited"] >= model["counts"]["audit_harm"] > 1
    assert model["generation"] | {"running": 0, "waiting": 0} == {
        "context_tokens": 512, "slots": 4, "running": 0, "waiting": 0, "failures": 0, "problem": "",
    }  # fmt: skip
    exposed = agent.get("/metrics")[1].decode()
    assert f'penstock_agent_completion_tokens_total{{model="{NAME}",version="v1"}}' in exposed
    assert "penstock_agent_text_escalations_failed_total 0.0" in exposed
    assert "penstock_agent_text_drafts_saved_total 0.0" in exposed
    assert "penstock_agent_text_draft_tokens_lost_total 0.0" in exposed


def children(pid: int) -> list[int]:
    found: Iterator[str] = (
        line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "children").read_text().split()
    )
    return sorted({int(line) for line in found})


def _check_our_own_clients(core: CoreProcess, agent: AgentProcess, drafted: str) -> None:
    """The SDK, the generate extension and the command say what OpenAI's client was told, and by which promise."""
    device = f"unix://{agent.socket}"
    with Client(core.http_url) as client:
        assert client.generate(NAME, PROMPT).served_by == "cloud"
    with Client(device) as client:
        text, parts = client.generate(NAME, PROMPT), client.stream(NAME, PROMPT)
        assert "".join(map(str, parts)) == text.text == drafted
        assert (text.served_by, text.reason, text.threshold) == ("edge", "confident", 0.0)
        assert text.certificate == parts.answer.certificate != ""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(agent.socket))) as plain:
        document = plain.post(f"http://agent/v2/models/{NAME}/generate", json={"text_input": PROMPT}).json()
    assert (document["text_output"], document["parameters"]["certificate"]) == (drafted, text.certificate)
    assert penstock("generate", device, NAME, PROMPT).stdout == f"{drafted}\n"


def _check_ways_of_decoding(agent: AgentProcess) -> None:
    """Another way than the certified one has no promise."""
    sampled = completion(agent, temperature=0.8, seed=1)["penstock"]
    assert (sampled["served_by"], sampled["reason"]) == ("cloud", "uncertified")
    other_stop = completion(agent, stop=[";"])["penstock"]
    assert (other_stop["served_by"], other_stop["reason"]) == ("cloud", "uncertified")
    private = completion(agent, temperature=0.8, seed=1, penstock={"local_only": True})["penstock"]
    assert (private["served_by"], private["reason"]) == ("edge", "privacy")
    plain = completion(agent, max_tokens=ANSWER.max_new_tokens)["penstock"]
    assert (plain["served_by"], plain["reason"]) == ("edge", "confident")
