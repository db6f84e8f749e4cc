"""What the answers of a registry say: their headers, and the words of its errors. Pure."""

from __future__ import annotations

import http.client
import json

from penstock.rest.mistaken import words_in


def lower_names(response: http.client.HTTPResponse) -> dict[str, str]:
    """Return the headers of an answer with their names in lower case."""
    return {name.lower(): value for name, value in response.getheaders()}


def reason_in(body: bytes) -> str:
    """Return the messages of an OCI error document, or the body's beginning."""
    try:
        errors = json.loads(body)["errors"]
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors[:5])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return words_in(body, limit=200)
