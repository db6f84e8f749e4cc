from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloud_core.policy.claims import ClaimRules, next_read_at, tenant_and_role

RULES = ClaimRules(
    tenant="",
    tenant_claim="org.name",
    role_claim="groups",
    roles={"ml-admins": "admin", "kiosks": "device", "apps": "client"},
    default_role="",
)


@pytest.mark.parametrize(
    ("claims", "given"),
    [
        ({"org": {"name": "shop"}, "groups": ["apps"]}, ("shop", "client")),
        ({"org": {"name": "shop"}, "groups": "openid apps ml-admins"}, ("shop", "admin")),
        ({"org": {"name": "shop"}, "groups": ["others", 3, None, "kiosks"]}, ("shop", "device")),
        ({"org.name": "shop", "groups": ["apps"]}, ("shop", "client")),
        ({"org": {"name": "shop"}, "groups": ["others"]}, None),
        ({"org": {"name": "shop"}}, None),
        ({"org": {"name": ["shop"]}, "groups": ["apps"]}, None),
        ({"org": "shop", "groups": ["apps"]}, None),
        ({"groups": ["apps"]}, None),
        ({"org": {"name": ""}, "groups": ["apps"]}, None),
    ],
)
def test_claims_name_a_tenant_and_the_mightiest_role(claims: dict[str, Any], given: tuple[str, str] | None) -> None:
    assert tenant_and_role(claims, RULES) == given


def test_a_fixed_tenant_and_a_default_role_need_no_claims() -> None:
    rules = replace(RULES, tenant="all", default_role="client")
    assert tenant_and_role({}, rules) == ("all", "client")
    assert tenant_and_role({"groups": ["ml-admins"]}, rules) == ("all", "admin")


def test_keys_are_read_at_once_then_in_time_and_sooner_where_they_are_asked_for() -> None:
    assert next_read_at(read_at=None, is_asked=False, refresh_s=300, min_refresh_s=10) == 0.0
    assert next_read_at(read_at=50.0, is_asked=False, refresh_s=300, min_refresh_s=10) == 350.0
    assert next_read_at(read_at=50.0, is_asked=True, refresh_s=300, min_refresh_s=10) == 60.0
