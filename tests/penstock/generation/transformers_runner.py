"""Toolchain program for tests: what transformers makes of conversations. Shares no code with ours.

Job: ``tokenizer`` (a tokenizer.json), ``named`` (special tokens), ``templates`` (name to text), ``chats`` (arguments of
``apply_chat_template``), ``at`` (a date in ISO form, for templates that tell one).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import transformers.utils.chat_template_utils as chat_utils
from protocol import serve
from transformers import PreTrainedTokenizerFast


def render(job: dict[str, Any]) -> dict[str, Any]:
    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromisoformat(job["at"])

    chat_utils.datetime = Fixed
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["tokenizer"], **job["named"])
    found: dict[str, Any] = {}
    for name, template in job["templates"].items():
        found[name] = [_one(tokenizer, template, chat) for chat in job["chats"]]
    return {"found": found}


def _one(tokenizer: Any, template: str, chat: dict[str, Any]) -> dict[str, Any]:
    try:
        text = tokenizer.apply_chat_template(**chat, chat_template=template, tokenize=False)
        ids = tokenizer.apply_chat_template(**chat, chat_template=template, return_dict=False)
    except Exception as error:
        return {"refused": str(error)}
    return {"text": text, "ids": ids}


if __name__ == "__main__":
    serve(render)
