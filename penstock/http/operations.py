"""What a row of the table says of itself: a sentence, its bodies, its query. Its address and who may ask are the row's.

Words only: nothing is checked by them. ``penstock.http.openapi`` makes a document of all rows of a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

JSON = "application/json"
BYTES = "application/octet-stream"
TEXT = "text/plain"
HTML = "text/html"
OPEN_METRICS = "application/openmetrics-text"
EVENTS = "text/event-stream"


class Refusal(TypedDict):
    """Why a request was not answered."""

    error: str


@dataclass(frozen=True, slots=True)
class Raw:
    """A body that is no JSON."""

    about: str


Shape = Any
"""A type that msgspec can describe (a Struct, a TypedDict, a list of them...), or ``Raw``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one row answers.

    Attributes:
        summary: a sentence without its full stop.
        group: under which heading it stands.
        asks: the body that it takes, by media type; empty for none.
        needs_body: whether a request without a body is refused.
        answers: the body of an answer, by media type; empty for none.
        query: what may stand in the query, with what it means.
        headers: headers that mean something here and nowhere else.
        status: of an answer.
        also: other statuses that are no refusal, with what they mean.
        refusal: the body of an answer that says no.
    """

    summary: str
    group: str
    asks: Mapping[str, Shape] = field(default_factory=dict)
    needs_body: bool = True
    answers: Mapping[str, Shape] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    also: Mapping[int, str] = field(default_factory=dict)
    refusal: Shape = Refusal
