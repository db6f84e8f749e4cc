"""A core in front of a real vLLM: OpenAI's client gets the shapes that an engine of ours gives, and nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from penstock.artifact import golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.generation import tokenizer
from penstock.hosting.generation import text_model
from penstock.policy.text_answers import AnswerSpec
from tests.language import NAME as SLOTS
from tests.language import text_layout, text_spec
from tests.processes import CoreProcess
from tests.vllm.bytes_model import CONTEXT, NAME, PATIENCE_S, USUAL, Clock, ranks, rows
from tests.waiting import wait_until

openai = pytest.importorskip("openai", reason="the openai client is not installed: make venv")
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)


def config(models: Path) -> str:
    values = {"directory": str(models / "bytes"), **USUAL, "max_sequences": 2, "max_waiting": 1}
    lines = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()
    ]
    return f"[serving.generation.vllm.{NAME}]\n" + "\n".join(lines).replace("'", '"') + "\n"


def layout(models: Path, root: Path) -> Layout:
    """An artifact whose golden vectors transformers made; its weights are vLLM's to load, from elsewhere."""
    prompt, new = max(rows(models), key=lambda row: len(row[1]))
    vectors = golden.Golden(
        inputs={"prompt_ids": np.array([prompt], np.int64)}, outputs={"token_ids": np.array([new], np.int64)}
    )
    directory = models / "bytes"
    files = {name: directory / name for name in ("tokenizer.json", "tokenizer_config.json", "config.json")}
    draft = VariantDraft(
        spec=text_spec("cloud", model=NAME, answer=AnswerSpec(max_new_tokens=16)),
        weights=directory / "model.safetensors",
        golden=golden.encode(vectors),
        files=files,
    )
    made = Layout.create(root / "bytes")
    made.pack([draft], tag="v1")
    return made


def shape(value: object, name: str = "") -> object:
    """What is left of a document without its values; what stands under the names of tokens counts once."""
    match value:
        case dict() if name in ("top_logprobs", "logit_bias"):
            return "by token"
        case dict():
            return {key: shape(inner, key) for key, inner in value.items()}
        case list():
            kinds = [shape(inner, name) for inner in value]
            return [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]
        case float() | int() if not isinstance(value, bool):
            return "number"
    return type(value).__name__


def shapes(client: Any, model: str) -> dict[str, object]:
    """Shapes of everything that OpenAI's client can ask of a model."""
    # a stop string that no answer has: the artifacts' own may end one of them with its first token
    ask: dict[str, Any] = {"model": model, "prompt": "import ", "max_tokens": 4, "temperature": 0.0, "stop": ["@@@"]}
    found: dict[str, object] = {}
    for name, more in {"plain": {}, "logprobs": {"logprobs": 2}, "n": {"n": 2}, "seeded": {"seed": 7}}.items():
        found[name] = shape(client.completions.create(**ask, **more).to_dict())
    long = ask | {"max_tokens": 64, "stream": True, "stream_options": {"include_usage": True}}  # chunks merge
    chunks = [chunk.to_dict() for chunk in client.completions.create(**long)]
    found["chunks"] = [shape(chunks[0]), shape(chunks[-2]), shape(chunks[-1])]
    for name, wrong in {"long": {"max_tokens": 10**6}, "hot": {"temperature": -1.0}, "empty": {"prompt": ""}}.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{**ask, **wrong})
        found[name] = (caught.value.status_code, shape(caught.value.body))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    found["chat"] = (caught.value.status_code, shape(caught.value.body))
    return found


def test_openais_client_against_a_core_in_front_of_vllm(
    core_factory: Callable[..., CoreProcess], models: Path, interpreter: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_VLLM", str(interpreter))
    core = core_factory(config(models))
    core.push(text_layout(tmp_path).root)
    with Clock("one rank, from push to ready"):
        core.push(layout(models, tmp_path).root, patience_s=PATIENCE_S)
    client = openai.OpenAI(base_url=f"{core.http_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)
    try:
        pieces = tokenizer.load(text_model.read_files(models / "bytes")).pieces
        for prompt, new in rows(models):
            answer = client.completions.create(model=NAME, prompt=list(prompt), max_tokens=len(new), temperature=0)
            assert answer.choices[0].text == b"".join(map(pieces.bytes_of, new)).decode("utf-8", "replace")
            assert answer.usage.completion_tokens == len(new)
        assert shapes(client, NAME) == shapes(client, SLOTS)
        _check_a_full_queue(client)
        _check_a_killed_rank(core, client)
    finally:
        client.close()
    (keeper,) = keepers(core)
    left = [keeper, *keeper.children(recursive=True)]
    assert len(left) > 3
    with Clock("from the core's kill to the end of all processes"):
        core.kill()
        wait_until("no process is left", lambda: not any(one.is_running() for one in left))


def keepers(core: CoreProcess) -> list[psutil.Process]:
    children = psutil.Process(core.pid).children()
    return [one for one in children if any("managed.keeper" in word for word in one.cmdline())]


def _check_a_full_queue(client: Any) -> None:
    seen: list[object] = []
    new = CONTEXT - 10

    def ask() -> None:
        try:
            seen.append(client.completions.create(model=NAME, prompt="def ", max_tokens=new).usage.completion_tokens)
        except openai.InternalServerError as error:
            seen.append(error.response.headers["Retry-After"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [one for one in seen if isinstance(one, str)]
    assert 1 <= len(refused) <= 5, "two run, one waits; later ones may find that these are at their end"
    assert [one for one in seen if not isinstance(one, str)] == [new] * (8 - len(refused))


def _check_a_killed_rank(core: CoreProcess, client: Any) -> None:
    (keeper,) = keepers(core)
    victim = ranks(keeper.pid)[0]
    victim.suspend()  # or the answer would be at its end first: the model is tiny
    heard: list[Any] = []

    def ask() -> None:
        try:
            heard.extend(client.completions.create(model=NAME, prompt="def ", max_tokens=100, stream=True))
        except openai.APIError as error:
            heard.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    with Clock("from the rank's death to the error at the client"):
        victim.kill()
        asking.join()
    assert isinstance(heard[-1], openai.APIError), heard[-1]
    print(f"  {heard[-1].message}")

    def answers() -> bool:
        try:
            return bool(client.completions.create(model=NAME, prompt="def ", max_tokens=2).choices)
        except openai.InternalServerError as error:
            hints.append(error.response.headers.get("Retry-After"))
            return False

    hints: list[str | None] = []
    with Clock("until the next request is answered"):
        wait_until("an answer", answers, patience_s=PATIENCE_S)
    assert all(hints)
