"""The messages and tools of a chat, as a model's template takes them. Renders nothing: templates are the model's.

Contents become texts: parts are joined by line ends as vLLM joins them, and a part that is no text is refused with its
place, since leaving out an image would answer another question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from penstock.errors import InvalidInput
from penstock.generation.plane import Chat
from penstock.openai.json_body import convert, read_object

MAX_MESSAGES = 4096
MAX_TOOLS = 128


class _Function(msgspec.Struct, kw_only=True):
    name: str
    arguments: str | dict[str, Any] = "{}"


class _ToolCall(msgspec.Struct, kw_only=True):
    function: _Function
    id: str | None = None
    type: Literal["function"] = "function"


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One message as it is sent; other fields that clients add are left out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class _Described(msgspec.Struct, kw_only=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]


class _Tool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: _Described


def chat_of(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, tool_choice: str | dict[str, Any] | None
) -> Chat:
    """Return the conversation, with the tools that the model may call.

    Raises:
        InvalidInput: no messages, a content that is no text, a message that lacks what its role needs, a choice of
            tools that nothing here can hold the model to.
    """
    if not messages:
        raise InvalidInput("messages: none; send at least one", field="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidInput(f"messages: {len(messages)}; at most {MAX_MESSAGES} are possible", field="messages")
    return Chat(
        messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
        tools=_tools(tools, tool_choice),
    )


def _message(message: Message, field: str) -> dict[str, Any]:
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise InvalidInput(f"{field}.content: missing", field=f"{field}.content")
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidInput(f"{field}.tool_call_id: missing; it names the call that is answered", field=field)
    # newer clients of OpenAI write "developer" for "system", which no template of open models knows
    said: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message.content, f"{field}.content"),
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            said[name] = value
    if message.tool_calls:
        said["tool_calls"] = [
            _call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ]
    return said


def _text(content: str | list[dict[str, Any]] | None, field: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        kind, where = part.get("type"), f"{field}[{index}]"
        if kind not in ("text", "refusal"):
            raise InvalidInput(f"{where}: {str(kind)[:40]!r} is not read here; send text parts", field=where)
        texts.append(convert(part.get(kind), str, field=f"{where}.{kind}"))
    return "\n".join(texts)


def _call(call: _ToolCall, field: str) -> dict[str, Any]:
    """Return a call as templates have it: arguments are an object, where OpenAI writes one as text."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        where = f"{field}.function.arguments"
        try:
            arguments = read_object(arguments.encode() or b"{}")
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error.message.removeprefix('body: ')}", field=where) from None
    said: dict[str, Any] = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return {**said, "id": call.id} if call.id is not None else said


def _tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | dict[str, Any] | None
) -> tuple[Mapping[str, Any], ...]:
    if choice not in (None, "none", "auto"):
        raise InvalidInput(
            "tool_choice: a model is not held to call a tool here; send auto or none", field="tool_choice"
        )
    if choice == "auto" and not tools:
        raise InvalidInput("tool_choice: auto, and there are no tools", field="tool_choice")
    if not tools or choice == "none":
        return ()
    if len(tools) > MAX_TOOLS:
        raise InvalidInput(f"tools: {len(tools)}; at most {MAX_TOOLS} are possible", field="tools")
    convert(tools, list[_Tool], field="tools")
    return tuple(tools)
