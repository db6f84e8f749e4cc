"""What changed between two readings of the settings, and what a core takes on while it runs."""

from __future__ import annotations

from typing import Any

import msgspec

from cloud_core.policy.reloading import LIVE, Difference, differences
from cloud_core.settings import CoreSettings


def tree(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(msgspec.convert(changes, CoreSettings))
    return found


def test_equal_settings_differ_in_nothing() -> None:
    assert differences(tree(), tree()) == ()


def test_each_setting_is_told_with_what_becomes_of_it() -> None:
    found = differences(tree(), tree(http={"port": 9000}, log={"level": "debug"}, serving={"lame_duck_s": 5}))
    assert [(one.setting, one.before, one.after, one.is_live) for one in found] == [
        ("http.port", "8000", "9000", False),
        ("log.level", "info", "debug", True),
        ("serving.lame_duck_s", "0.0", "5.0", True),
    ]


def test_tenants_are_compared_by_name_and_their_secrets_are_never_shown() -> None:
    shop, mill = {"name": "shop", "token": "secret-one"}, {"name": "mill", "token": "secret-two"}
    before, after = tree(tenants=[shop, mill]), tree(tenants=[mill, {**shop, "token": "secret-three"}])
    assert differences(before, after) == (
        Difference(setting="tenants.shop.token", before="(secret)", after="(secret)", is_live=True),
    )
    gone = differences(before, tree(tenants=[mill]))
    assert {one.after for one in gone} == {"(none)"}
    assert all("secret-" not in one.before for one in gone)


def test_a_database_and_its_password_are_never_shown() -> None:
    (one,) = differences(tree(), tree(database="postgresql://u:pw@h/d"))
    assert (one.before, one.after, one.is_live) == ("(none)", "(secret)", False)


def test_what_a_core_cannot_take_on_waits_although_others_could() -> None:
    (one,) = differences(tree(log={"level": "info"}), tree(log={"level": "debug"}), fixed=("log",))
    assert not one.is_live


def test_every_live_setting_is_a_setting() -> None:
    for name in LIVE:
        node: Any = tree()
        for part in name.split("."):
            node = node[part]
