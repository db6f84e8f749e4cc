"""An encoder-decoder of transformers, trained to spell digits backwards, from ``penstock compile`` to answers in words.

What is right is known without any model: the names of the digits. ``spelling/make.py`` made the weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import penstock, penstock_json
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.wire.tensors import Array
from tests.processes import AgentProcess, CoreProcess

tokenizers = pytest.importorskip("tokenizers")

SPELLING = Path(__file__).parent / "spelling"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTH = 10
RECIPE = f"""
[model]
name = "spelling"
task = "seq2seq"
[edge]
model = "{SPELLING}"
precisions = ["int8-dynamic"]
objective = "size"
source.max_new_tokens = {LENGTH}
[data]
source = "digits.csv"
text = "digits"
labels = "names"
tokenizer = {{ file = "{SPELLING}/tokenizer.json", max_length = 9 }}
[quality]
max_accuracy_drop = 0.1
[certificate]
max_harm = 0.05
"""


def spelt(digits: str) -> str:
    return " ".join(NAMES[int(digit)] for digit in reversed(digits))


def examples(count: int) -> list[str]:
    draw = random.Random(3)
    found: set[str] = set()
    while len(found) < count:
        found.add("".join(draw.choices("0123456789", k=draw.randint(1, 7))))
    return sorted(found)


def encoded(digits: list[str]) -> dict[str, Array]:
    """What a client makes of texts: tokens of several lengths in one batch, and the mask."""
    tokenizer = tokenizers.Tokenizer.from_file(str(SPELLING / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0)
    rows = tokenizer.encode_batch(digits)
    return {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
    }


def words(tokens: Array) -> list[str]:
    tokenizer = tokenizers.Tokenizer.from_file(str(SPELLING / "tokenizer.json"))
    return [" ".join(tokenizer.id_to_token(int(token)) for token in row if token > 1) for row in tokens]


def test_an_agent_and_a_core_spell(
    tmp_path: Path,
    toolchain: Callable[[str], str],
    core_factory: Callable[..., CoreProcess],
    agent_factory: Callable[..., AgentProcess],
) -> None:
    toolchain("optimum")
    rows = examples(700)
    (tmp_path / "digits.csv").write_text("digits,names\n" + "".join(f"{row},{spelt(row)}\n" for row in rows))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    said = penstock("compile", tmp_path / "recipe.toml", "-o", tmp_path / "out")
    assert "greedy search for up to 10 tokens" in said.stdout + said.stderr
    assert penstock_json("certify", "verify", tmp_path / "out")["is_good"]
    artifact = Layout(tmp_path / "out").artifact()
    edge, cloud = artifact.variant("edge").spec, artifact.variant("cloud").spec
    assert (edge.precision, edge.score_output) == ("int8-dynamic", "token_probabilities")
    assert (edge.max_batch, cloud.max_batch) == (1, 64), "integers of a batch have one scale, and the loop amplifies it"
    core = core_factory()
    core.push(tmp_path / "out")
    agent = agent_factory(core)
    core.release("spelling:v1")
    agent.wait_until_runs("spelling", "v1")
    asked = ["4711", "0", "9876543", "12", "55"]
    for target in (core.http_url, agent.target):
        with Client(target) as client:
            together = client.infer("spelling", encoded(asked)).outputs
            assert together["token_ids"].shape == together["token_probabilities"].shape == (len(asked), LENGTH)
            assert words(together["token_ids"]) == [spelt(row) for row in asked]
            for row, tokens in zip(asked, together["token_ids"], strict=True):
                alone = client.infer("spelling", encoded([row]))
                assert alone.outputs["token_ids"][0].tolist() == tokens.tolist()
    assert alone.parameters["served_by"] == "edge"
    assert 0.5 < float(alone.parameters["confidence"]) <= 1
