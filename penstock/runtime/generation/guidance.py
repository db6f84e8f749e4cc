"""Say in llguidance's words what an answer has to look like. Both who asks it and onnxruntime-genai, which carries it,
take these. Imports neither.
"""

from __future__ import annotations

import json
from typing import Literal

from penstock.errors import InvalidInput
from penstock.generation.choices import texts_of
from penstock.generation.values import GenerationRequest, Grammar

KINDS = frozenset({"json_schema", "regex", "choice"})

MAX_CHARACTERS = 65_536
"""Of a grammar: everybody else's tokens wait while it is read."""

Kind = Literal["json_schema", "regex", "lark_grammar"]


def guidance(grammar: Grammar) -> tuple[Kind, str]:
    """Return the kind that llguidance knows, and its text. White space between the parts of JSON is what a model that
    is unsure fills its limit with, so there is none.

    Raises:
        InvalidInput: text that is not what its kind says, or longer than ``MAX_CHARACTERS``.
    """
    if len(grammar.text) > MAX_CHARACTERS:
        raise InvalidInput(
            f"grammar: the {grammar.kind} has {len(grammar.text)} characters; at most {MAX_CHARACTERS} are read",
            field="grammar",
        )
    if grammar.kind == "regex":
        return "regex", grammar.text
    if grammar.kind == "choice":
        return "lark_grammar", "start: " + " | ".join(json.dumps(each) for each in texts_of(grammar))
    try:
        value = json.loads(grammar.text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"grammar: a {grammar.kind} is JSON: {error}", field="grammar") from error
    if not isinstance(value, dict):
        raise InvalidInput("grammar: a JSON schema is an object", field="grammar")
    return "json_schema", json.dumps(value | {"x-guidance": {"whitespace_flexible": False}})


def check_end(request: GenerationRequest) -> None:
    """Refuse what contradicts a grammar, which has an end.

    Raises:
        InvalidInput: with a grammar, a request that goes on after the end.
    """
    if request.grammar is not None and request.ignore_end:
        raise InvalidInput("ignore_end: not with a grammar, which has an end; leave one out", field="ignore_end")
