"""schemathesis, which others wrote, reads our OpenAPI document and asks whatever it says may be asked, and what it says
may not: nothing is answered with 5xx.

``PENSTOCK_FUZZ_EXAMPLES=200`` makes more requests of each kind (here: enough for seconds, not for hours).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from cloud_core.app import Core
from tests.cloud_core.rig import core_in_a_thread

EXAMPLES = int(os.environ.get("PENSTOCK_FUZZ_EXAMPLES", "2"))
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
PAIRS = [pytest.param(RIGHT, True, id="right-known"), pytest.param(WRONG, False, id="wrong-any")]
if "PENSTOCK_FUZZ_EXAMPLES" in os.environ:  # where there is time, the other two as well
    PAIRS += [pytest.param(RIGHT, False, id="right-any"), pytest.param(WRONG, True, id="wrong-known")]
KNOWN = {"model": "mlp", "version": "v1", "name": "mlp", "reference": "v1"}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    limits = {"max_body_bytes": 100_000}
    with core_in_a_thread(tmp_path_factory.mktemp("fuzz"), http=limits) as running:
        yield running


@pytest.fixture(scope="module")
def operations(core: Core) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{core.http_port}/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.timeout(300 + 20 * EXAMPLES)
@pytest.mark.parametrize(("mode", "known"), PAIRS)
def test_nothing_is_answered_with_5xx(core: Core, operations: list[Any], mode: GenerationMode, known: bool) -> None:
    """Names of models are known ones, or any."""
    seen: dict[int, int] = {}
    with requests.Session() as session:
        for operation in operations:
            for status in ask(operation, mode, known, session):
                seen[status] = seen.get(status, 0) + 1
    assert sum(seen.values()) >= EXAMPLES * len(operations) // 2, seen
    assert {200, 400, 404} <= seen.keys(), seen


def ask(operation: Any, mode: GenerationMode, known: bool, session: requests.Session) -> list[int]:
    names = {part.name for part in operation.path_parameters} & KNOWN.keys()
    if operation.method.upper() == "DELETE":
        names -= {"reference"}  # what is asked for later has to stay
    if operation.path.endswith("/unload"):
        names -= {"model"}
    given_names = {name: KNOWN[name] for name in names} if known else None
    statuses: list[int] = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, path_parameters=given_names))
    def one(case: Any) -> None:
        answer = case.call(session=session, timeout=30)
        statuses.append(answer.status_code)
        if answer.status_code == 504 and "x-request-timeout-ms" in {name.lower() for name in case.headers or {}}:
            return  # the request itself said that it would not wait
        assert answer.status_code < 500, (
            f"{case.method} {case.formatted_path}: {answer.status_code} {answer.text[:500]}"
        )

    one()
    return statuses
