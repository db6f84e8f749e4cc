"""What transformers makes of conversations by a model's own chat template: a part of ``genai_build.py``."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def prompts(tokenizer: Any, chats: list[dict[str, Any]], at: str) -> list[list[int] | None] | None:
    """Return the ids of each conversation's prompt, None for one that the template refuses or fails with. Without a
    template there are none.

    Args:
        chats: ``messages`` and ``tools`` of each.
        at: what templates that tell a date are told, in ISO form.
    """
    import transformers.utils.chat_template_utils as chat_utils

    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromisoformat(at)

    if not tokenizer.chat_template:
        return None
    chat_utils.datetime = Fixed
    return [_prompt(tokenizer, chat) for chat in chats]


def _prompt(tokenizer: Any, chat: dict[str, Any]) -> list[int] | None:
    try:
        found = tokenizer.apply_chat_template(
            chat["messages"], tools=chat["tools"] or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception:  # a template fails in any way that an expression can: one made for tools, without any
        return None
    return [int(token) for token in found]
