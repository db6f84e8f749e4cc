from __future__ import annotations

import pytest

from cloud_core.policy.admission import (
    Tenant,
    authorize,
    bearer_token,
    by_token,
    check_model,
    hashed,
    may_ask,
    nobody,
)
from penstock.errors import PermissionDenied, Unauthenticated
from penstock.policy.access import Action

SHOP = Tenant(name="shop", models=("digits", "shop-*"))
TENANTS = by_token([("a-long-secret", SHOP)])


@pytest.mark.parametrize("value", ["Bearer a-long-secret", "bearer a-long-secret", "BEARER  a-long-secret "])
def test_a_known_token_is_its_tenant(value: str) -> None:
    assert TENANTS[hashed(bearer_token(value))] is SHOP


@pytest.mark.parametrize("value", ["", "a-long-secret", "Basic a-long-secret"])
def test_what_is_no_bearer_token_is_nobody(value: str) -> None:
    with pytest.raises(Unauthenticated):
        bearer_token(value)


@pytest.mark.parametrize("value", ["Bearer ", "Bearer a-long-secre", "Bearer \udcff", "Bearer é"])
def test_a_token_that_is_nearly_right_is_not_known(value: str) -> None:
    assert hashed(bearer_token(value)) not in TENANTS


def test_refusals_name_nothing() -> None:
    assert "shop" not in nobody().message
    with pytest.raises(PermissionDenied) as of_one_that_may_exist:
        check_model(SHOP, "payroll")
    with pytest.raises(PermissionDenied) as of_another:
        check_model(SHOP, "no-such-model")
    assert of_one_that_may_exist.value.message == of_another.value.message
    assert "payroll" not in of_one_that_may_exist.value.message


def test_tokens_are_not_kept() -> None:
    assert b"a-long-secret" not in b"".join(TENANTS)


@pytest.mark.parametrize(
    ("model", "may"),
    [
        ("digits", True),
        ("shop-faces", True),
        ("digits2", False),
        ("shop", False),
        ("xshop-1", False),
        ("Digits", False),
    ],
)
def test_patterns_say_which_models_a_tenant_may_ask(model: str, may: bool) -> None:
    assert may_ask(SHOP, model) is may
    assert may_ask(Tenant(name="free"), model)


def test_an_observer_reads_metrics_and_nothing_else() -> None:
    observer = Tenant(name="prometheus", role="observer")
    authorize(observer, Action.SCRAPE)
    for action in set(Action) - {Action.SCRAPE}:
        with pytest.raises(PermissionDenied):
            authorize(observer, action)
    with pytest.raises(PermissionDenied):
        authorize(Tenant(name="app", role="client"), Action.SCRAPE)
