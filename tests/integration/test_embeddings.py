"""A sentence encoder from its directory through the compiler to a core and an agent, asked by OpenAI's own client."""

from __future__ import annotations

import itertools
import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.artifact import manifests
from penstock.artifact.layout import Layout
from penstock.policy.text_rows import EmbeddingSpec
from tests import encoder
from tests.pages import DOCS, walk
from tests.processes import AgentProcess, CoreProcess

openai = pytest.importorskip("openai", reason="the openai client is not installed: make venv")

TEXTS = ["the dog", "river runs by night", "the dog sleeps on a mat by night " * 6, "A", "é 漢", "zebra crossing"]
PAGE = DOCS / "how-to" / "embed-texts.md"


def client_of(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_page_that_teaches_it_says_what_works(short_dir: Path) -> None:
    """Its recipe and its commands, with a tiny encoder; what its directory says is what the artifact declares."""
    encoder.directory(short_dir / "minilm")
    (recipe,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (short_dir / "recipe.toml").write_text(recipe)
    lines = [" ".join(words) for words in itertools.islice(itertools.permutations(encoder.WORDS[4:], 4), 0, 9600, 12)]
    (short_dir / "text.csv").write_text("text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    said = walk(PAGE, short_dir)
    answers = [json.loads(line) for line in re.findall(r'{"object":"list".*?}}', said)]
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == [12, 5]
    assert [answer["penstock"]["served_by"] for answer in answers] == ["cloud", "edge"]
    layout = Layout(short_dir / "build" / "sentences")
    for variant in layout.artifact().variants:
        declared = variant.spec.embedding
        assert declared, variant.spec.role
        assert (declared.max_tokens, declared.is_lower_case, declared.measured_tokens) == (64, True, 12)
        assert [file.annotations[manifests.TITLE] for file in variant.files] == ["tokenizer.json"]


def test_core_and_agent_answer_the_client_of_openai_alike(
    tmp_path: Path, core_factory: Callable[..., CoreProcess], agent_factory: Callable[..., AgentProcess]
) -> None:
    layout = encoder.layout(tmp_path, embedding=EmbeddingSpec(max_tokens=encoder.MAX_TOKENS, is_lower_case=True))
    core = core_factory()
    core.push(layout.root)
    agent = agent_factory(core, arguments=("--tcp", "127.0.0.1:0"))
    core.release(f"{encoder.NAME}:v1")
    agent.wait_until_runs(encoder.NAME, "v1")
    for url, who in ((core.http_url, "cloud"), (f"http://{agent.endpoints['tcp']}", "edge")):
        with client_of(url) as client:
            check_answers(client, who)
            check_refusals(client)
    scraped = urllib.request.urlopen(f"{core.http_url}/metrics").read().decode()  # the plane for arrays counted them
    assert f'penstock_rows_total{{model="{encoder.NAME}",version="v1"}}' in scraped


def check_answers(client: Any, who: str) -> None:
    for form in ({}, {"encoding_format": "float"}):  # the client asks for base64 unless it is told
        answer = client.embeddings.create(model=encoder.NAME, input=TEXTS, **form)
        for text, entry in zip(TEXTS, answer.data, strict=True):
            np.testing.assert_allclose(entry.embedding, encoder.expected(text.lower()), atol=1e-5)
        tokens = sum(len(encoder.ids_of(text.lower())) for text in TEXTS)
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
        account = answer.model_extra["penstock"]
        assert account["served_by"] == who
        assert who == "cloud" or account["reason"] == "uncertified"
    ids = encoder.ids_of("the dog")
    one, by_ids = client.embeddings.create(model=encoder.NAME, input="the dog"), client.embeddings.create(
        model=f"{encoder.NAME}:v1", input=[ids, [2, 3]], dimensions=encoder.SIZE
    )  # fmt: skip
    np.testing.assert_allclose(one.data[0].embedding, by_ids.data[0].embedding, atol=1e-6)
    many = client.embeddings.create(model=encoder.NAME, input=["the dog sleeps"] * 1000)
    assert len(many.data) == 1000
    listed = {model.id: model.model_extra["max_model_len"] for model in client.models.list()}
    assert listed[encoder.NAME] == 64


def check_refusals(client: Any) -> None:
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({"input": "the " * 63}, "input", "65 tokens, and the model takes at most 64"),
        ({"input": ["a", "x" * 9000]}, "input[1]", "9000 characters"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["a"] * 1025}, "input", "1025 texts, at most 1024"),
        ({"input": [[1, 99]]}, "input", "99 is not in the vocabulary"),
        ({"input": [-1]}, "input[0]", "-1|>= 0"),
        ({"input": "a", "dimensions": 3}, "dimensions", "3 asked for"),
        ({"input": "a", "extra_body": {"truncate_prompt_tokens": 3}}, "truncate_prompt_tokens", "leave it out"),
    ]
    for fields, param, words in refused:
        with pytest.raises(openai.BadRequestError, match=words) as wrong:
            client.embeddings.create(model=encoder.NAME, **fields)
        assert wrong.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="a")
    with pytest.raises(openai.BadRequestError, match="answers with arrays"):
        client.completions.create(model=encoder.NAME, prompt="a")
