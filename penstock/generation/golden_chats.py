"""Conversations whose prompts transformers made when a model was built, to be made again wherever it is loaded.

A prompt in another form than a model was trained with is answered all the same, only worse, so that nobody would hear
of it. Decides which conversations, what is kept of them in a model's files, and whether prompts are the same. Runs no
transformers: ``compiler/runners/chat_prompts.py`` does, when a model is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from penstock.errors import ArtifactError, InvalidInput
from penstock.generation import chat_template, tokenizer
from penstock.generation.chat_template import ChatTemplate
from penstock.generation.tokenizer import Tokenizer, named_tokens

FILE = "chats.json"
AT = datetime(2026, 1, 2, 3, 4, 5)
"""What templates that tell a date are told."""

_USER = {"role": "user", "content": "What is 2 + 2?"}
_SAID = {"role": "assistant", "content": "It is 4."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather <now> & here.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


class Conversation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a template is given."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()


CONVERSATIONS = (
    Conversation(messages=(_USER,)),
    Conversation(messages=({"role": "system", "content": "Be brief."}, _USER)),
    Conversation(
        messages=(_USER, _SAID, {"role": "user", "content": "  na\u00efve\n\u65e5\u672c\u8a9e \U0001f642 <b> "})
    ),
    Conversation(messages=(_USER,), tools=(_TOOL,)),
)


class GoldenChat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One conversation and its prompt.

    Attributes:
        ids: of the prompt with the beginning of an answer; None where the template refuses the conversation.
    """

    conversation: Conversation
    ids: tuple[int, ...] | None


class GoldenChats(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file holds.

    Attributes:
        template: digest of the templates, as :attr:`penstock.generation.chat_template.ChatTemplate.digest`.
        tokenizer: digest of the tokenizer, as in :class:`penstock.generation.tokenizer.TokenizerFacts`.
        made_by: name and version of the library that made the prompts.
    """

    format: int = 1
    template: str
    tokenizer: str
    made_by: str
    chats: tuple[GoldenChat, ...]


def golden_chats(files: Mapping[str, bytes], prompts: Sequence[Sequence[int] | None], *, made_by: str) -> bytes:
    """Write the file for a model.

    Args:
        files: contents of the model's own files, by name.
        prompts: ids of each of :data:`CONVERSATIONS`, None where the template refused it.

    Raises:
        ArtifactError: the model's files cannot be read.
    """
    chats = tuple(
        GoldenChat(conversation=conversation, ids=None if ids is None else tuple(ids))
        for conversation, ids in zip(CONVERSATIONS, prompts, strict=True)
    )
    made = GoldenChats(
        template=chat_template.digest(chat_template.read_sources(files), named_tokens(files)),
        tokenizer=tokenizer.digest_of(files),
        made_by=made_by,
        chats=chats,
    )
    return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"


def check_files(files: Mapping[str, bytes]) -> None:
    """Check the golden chats of a model that is loaded from its files for this alone.

    Raises:
        ArtifactError: as :func:`check`, or tokenizer or template cannot be loaded. MissingExtra.
    """
    template = chat_template.load(files)
    if template is not None:
        check(files, tokenizer.load(files), template)


def check(files: Mapping[str, bytes], loaded: Tokenizer, template: ChatTemplate) -> None:
    """Make every prompt of a model's golden chats again, and compare. A model without the file has nothing to compare.

    Raises:
        ArtifactError: the file is malformed or of other files than these, or a prompt is not the same.
    """
    if FILE not in files:
        return
    try:
        golden = msgspec.json.decode(files[FILE], type=GoldenChats)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{FILE} cannot be read: {error}") from error
    if golden.format != 1:
        raise ArtifactError(f"{FILE} has format {golden.format}, this Penstock reads 1; update Penstock")
    for what, told, found in (
        ("chat template", golden.template, template.digest),
        ("tokenizer", golden.tokenizer, loaded.facts.digest),
    ):
        if told != found:
            raise ArtifactError(
                f"{FILE} was made with another {what} ({told}) than the model's files have ({found}); build it again"
            )
    for place, chat in enumerate(golden.chats):
        ids = _prompt(chat.conversation, loaded, template)
        if ids != chat.ids:
            raise ArtifactError(
                f"conversation {place} of {FILE} becomes another prompt here than {golden.made_by} made when the model "
                f"was built: {_short(ids)} instead of {_short(chat.ids)}; its answers would be worse. Send its chat "
                "template and tokenizer with a bug report"
            )


def _prompt(conversation: Conversation, loaded: Tokenizer, template: ChatTemplate) -> tuple[int, ...] | None:
    try:
        text = template.render(conversation.messages, at=AT, tools=conversation.tools)
    except InvalidInput:
        return None
    return tuple(loaded.encode(text, add_special_tokens=False))


def _short(ids: tuple[int, ...] | None) -> str:
    if ids is None:
        return "a refusal"
    content = hashlib.sha256(msgspec.json.encode(ids)).hexdigest()[:8]
    return f"{len(ids)} tokens {content}"
