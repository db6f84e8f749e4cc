"""The OpenAPI document of a core: valid by a judge that others wrote, whole, and no more than what is served."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from cloud_core.app import Core
from tests.cloud_core.rig import core_in_a_thread


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    with core_in_a_thread(tmp_path_factory.mktemp("openapi")) as running:
        yield running


@pytest.fixture(scope="module")
def document(core: Core) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{core.http_port}/openapi.json") as answer:
        return json.load(answer)


def test_every_row_says_what_it_answers(core: Core) -> None:
    """A row without ``says=Operation(...)`` is served and in no document: write it where the row is."""
    assert [f"{row.method} {row.pattern}" for row in core.http.routes if row.says is None] == []


def test_what_can_be_asked_without_a_credential_says_so(document: Any) -> None:
    told = document["paths"]
    assert told["/v2/health/live"]["get"]["security"] == []
    assert told["/v2/models/{model}/infer"]["post"]["security"] != []


def test_the_document_is_valid(document: Any) -> None:
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
