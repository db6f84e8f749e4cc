"""What is wrong with a request, said by the names that its client sent.

Prompts, limits and grammars are checked far from the transport, where they have names of their own: a client that sent
``response_format`` knows of no ``grammar``. Each API says which of its fields stands for what.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from penstock.errors import InvalidInput
from penstock.openai.decoding_fields import SamplingFields

Names = Mapping[str, str]
"""Names of fields as they are checked, and as a client sent them."""

_FIRST = re.compile(r"\w+")


def prompt_names(sent: str) -> Names:
    """Return the names where one field became the prompt."""
    return {"prompt": sent, "prompt_ids": sent}


def grammar_names(fields: SamplingFields) -> Names:
    """Return the names where one of two fields says what the answer looks like."""
    sent = "structured_outputs" if fields.structured_outputs is not None else "response_format"
    return {"grammar": sent, "options": sent, "choices": sent}


def as_sent(error: InvalidInput, names: Names) -> InvalidInput:
    """Return the error with the client's name of the field, in ``field`` and where its message begins with it."""
    found = _FIRST.match(error.field)
    sent = names.get(found[0], "") if found else ""
    if not found or not sent or sent == found[0]:
        return error
    message = error.message
    if re.match(rf"{found[0]}\b", message):
        message = sent + message[len(found[0]) :]
    return InvalidInput(message, field=sent + error.field[found.end() :])


@contextmanager
def named(names: Names) -> Iterator[None]:
    """Rename what is raised within."""
    try:
        yield
    except InvalidInput as error:
        other = as_sent(error, names)
        if other is error:
            raise
        raise other from error
