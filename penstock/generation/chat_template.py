"""Make a prompt of a conversation by the model's own chat template, as transformers' ``apply_chat_template`` does.

Decides which of a model's templates is used, what it is given, and what its failures mean to whoever sent the
conversation. Running one is ``penstock.generation.template_sandbox``'s. The prompt has the model's special tokens in it
already: encode it without adding any. As with transformers, a special token that a user writes out becomes that token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from penstock.errors import ArtifactError, InvalidInput, missing_extra
from penstock.generation.tokenizer import MAX_FILE_BYTES, named_tokens, read_optional

FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
_DEFAULT, _TOOLS = "default", "tool_use"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; transformers fills the first two
_SHOWN = 300
_PROBES = ("first-part", "second-part")
_LIST_ITSELF = re.compile(r"""['"]type['"]: ?['"]text['"]""")
_SOME_DAY = datetime(2026, 1, 1)

Message = Mapping[str, Any]


class ChatTemplate:
    """The chat templates of one model: usually one, sometimes another for conversations with tools.

    Attributes:
        digest: of the templates' texts and of the tokens that they are given, "sha256:...".
    """

    def __init__(self, sources: Mapping[str, str], named: Mapping[str, str]) -> None:
        try:
            from penstock.generation import template_sandbox
        except ImportError as error:
            raise missing_extra("jinja2", "generate", "rendering conversations") from error
        self._sandbox = template_sandbox
        self._named = dict(named)
        self.digest = digest(sources, named)
        try:
            self._compiled = {name: template_sandbox.CompiledTemplate(source) for name, source in sources.items()}
        except template_sandbox.Malformed as error:
            raise ArtifactError(f"the model's chat template cannot be read: {str(error)[:_SHOWN]}") from error
        self._read_parts = {name for name in sources if self._reads_parts(name)}

    def render(
        self, messages: Sequence[Message], *, at: datetime, tools: Sequence[Mapping[str, Any]] = (), answer: bool = True
    ) -> str:
        """Return the prompt of a conversation.

        Args:
            messages: as OpenAI has them; contents are texts, or lists of parts that are texts.
            at: the date that templates which tell one tell.
            tools: descriptions of functions, as OpenAI has them.
            answer: end with what begins an assistant's answer.

        Raises:
            InvalidInput: no messages, parts that are no text, what the template itself refuses in its own words, or
                a conversation with which it fails or goes on without end.
        """
        if not messages:
            raise InvalidInput("the conversation has no messages; send at least one", field="messages")
        name = _TOOLS if tools and _TOOLS in self._compiled else _DEFAULT
        reads_parts = name in self._read_parts
        prepared = [_prepared(message, place, reads_parts) for place, message in enumerate(messages)]
        try:
            return self._compiled[name].render(self._values(prepared, tools, answer), at)
        except self._sandbox.Refused as error:
            raise InvalidInput(
                f"the model's chat template refuses this conversation: {str(error)[:_SHOWN]}", field="messages"
            ) from error
        except self._sandbox.BoundPassed as error:
            raise InvalidInput(
                f"the model's chat template was stopped at this conversation: {error}", field="messages"
            ) from error
        except Exception as error:  # a template can fail in any way that an expression can
            raise InvalidInput(
                "the model's chat template fails with this conversation; has each message what it needs? "
                f"{type(error).__name__}: {str(error)[:_SHOWN]}",
                field="messages",
            ) from error

    def _values(self, messages: list[dict[str, Any]], tools: Sequence[Any], answer: bool) -> dict[str, Any]:
        return {
            **self._named,
            "messages": messages,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": answer,
        }

    def _reads_parts(self, name: str) -> bool:
        """Try whether a template puts the texts of a content's parts into the prompt, and not the list as it is."""
        message = {"role": "user", "content": [{"type": "text", "text": probe} for probe in _PROBES]}
        try:
            text = self._compiled[name].render(self._values([message], (), True), _SOME_DAY)
        except Exception:  # it knows no lists, as most
            return False
        return all(probe in text for probe in _PROBES) and not _LIST_ITSELF.search(text)


def load(files: Mapping[str, bytes]) -> ChatTemplate | None:
    """Load the chat templates of a model from its files' contents, by name; None for a model without any.

    Raises:
        ArtifactError: a template that cannot be read, or several of which none is the default one. MissingExtra: the
            library is not installed.
    """
    sources = read_sources(files)
    if not sources:
        return None
    if _DEFAULT not in sources:
        raise ArtifactError(f"the model has chat templates {', '.join(sorted(sources))}, and none is named {_DEFAULT}")
    return ChatTemplate(sources, named_tokens(files))


def read_sources(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the texts of a model's templates by name; chat_template.jinja comes before what tokenizer_config.json has.

    Raises:
        ArtifactError: too large, not UTF-8, or not in one of the forms that transformers writes.
    """
    if FILE in files:
        if len(files[FILE]) > MAX_FILE_BYTES:
            raise ArtifactError(f"{FILE} has {len(files[FILE])} bytes, at most {MAX_FILE_BYTES} are read")
        try:
            return {_DEFAULT: files[FILE].decode("utf-8")}
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{FILE} is not UTF-8: {error}") from error
    match read_optional(files, _CONFIG).get("chat_template"):
        case None:
            return {}
        case str(source):
            return {_DEFAULT: source}
        case list(several):
            try:
                return {entry["name"]: entry["template"] for entry in several}
            except (KeyError, TypeError) as error:
                raise ArtifactError(f"{_CONFIG}: chat_template is a list of something else: {error!r}") from error
        case other:
            raise ArtifactError(f"{_CONFIG}: chat_template is a {type(other).__name__}, not a text")


def digest(sources: Mapping[str, str], named: Mapping[str, str]) -> str:
    """Digest what a prompt is made with, apart from the conversation."""
    parts = [sorted(sources.items()), sorted(named.items())]
    return "sha256:" + hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _prepared(message: Message, place: int, reads_parts: bool) -> dict[str, Any]:
    """Change a message as transformers 5 does: no keys without a value, reasoning under all of its names. A template
    that knows no parts gets one text, its parts in lines of their own, as vLLM has it; transformers would write the
    list itself into the prompt."""
    prepared = {key: value for key, value in message.items() if value is not None}
    reasoning = next((prepared[name] for name in _REASONING if name in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    content = prepared.get("content")
    if isinstance(content, list | tuple):
        for part in content:
            if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
                raise InvalidInput(
                    f"messages[{place}]: a part of its content is no text; this model reads text only",
                    field=f"messages[{place}].content",
                )
        if not reads_parts:
            prepared["content"] = "\n".join(part["text"] for part in content)
    return prepared
