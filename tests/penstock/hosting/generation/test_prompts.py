"""What a request becomes is found out once for all of its answers."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from penstock.generation.chat_template import ChatTemplate
from penstock.generation.plane import Chat, TextRequest
from penstock.hosting.generation import prompts
from penstock.hosting.generation.prompts import Vocabulary
from penstock.hosting.generation.settings import TextLimits
from penstock.runtime.generation import EngineFacts
from tests.penstock.http.text_house import TEMPLATE, tokenizer

FACTS = EngineFacts(
    context_tokens=64, vocabulary=tokenizer().facts.vocabulary, slots=1, end_ids=frozenset({0}), kv_bytes_per_token=0
)


def test_a_prompt_that_is_known_is_not_made_again() -> None:
    template = ChatTemplate({"default": TEMPLATE}, {})
    rendered = 0

    class Counted:
        def render(self, *given: object, **more: object) -> str:
            nonlocal rendered
            rendered += 1
            return template.render(*given, **more)  # type: ignore[arg-type]

    reads = Vocabulary(tokenizer=tokenizer(), template=Counted(), answer=None)  # type: ignore[arg-type]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    prepare = partial(prompts.prepared, reads=reads, facts=FACTS, limits=TextLimits(), id="a", seed=1, at=at)
    asked = TextRequest(model="m", prompt=Chat(messages=({"role": "user", "content": "the dog"},)))
    first = prepare(asked)
    assert not prompts.is_quick(asked)
    again = TextRequest(model="m", prompt=asked.prompt, known_ids=first.prompt_ids)
    assert prompts.is_quick(again)
    assert prepare(again) == first
    assert rendered == 1
