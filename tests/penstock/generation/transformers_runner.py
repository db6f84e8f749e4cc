"""Toolchain program for tests: what transformers makes of conversations, asked here, and by the compiler's own program.

Job: ``tokenizer`` (a tokenizer.json), ``named`` (special tokens), ``templates`` (name to text), ``chats`` (arguments of
``apply_chat_template``), ``at`` (a date in ISO form, for templates that tell one), ``golden`` (conversations).
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import transformers.utils.chat_template_utils as chat_utils
from protocol import serve
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[3] / "compiler" / "runners"))

from chat_prompts import prompts


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
    golden = {}
    for name, template in job["templates"].items():
        tokenizer.chat_template = template
        golden[name] = prompts(tokenizer, job["golden"], job["at"])
    tokenizer.chat_template = None
    return {"found": found, "golden": golden, "without": prompts(tokenizer, job["golden"], job["at"])}


def _one(tokenizer: Any, template: str, chat: dict[str, Any]) -> dict[str, Any]:
    try:
        text = tokenizer.apply_chat_template(**chat, chat_template=template, tokenize=False)
        ids = tokenizer.apply_chat_template(**chat, chat_template=template, return_dict=False)
    except Exception as error:
        return {"refused": str(error)}
    return {"text": text, "ids": ids}


if __name__ == "__main__":
    serve(render)
