"""Which server listens for gRPC."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloud_core.policy.listeners import Surroundings, choose_server

GOOD = Surroundings(is_installed=True, has_tls=False, is_loopback=True, max_connections=0, can_reserve=True,
    has_directory=True)  # fmt: skip
UNABLE = [(GOOD, {"is_installed": False}, "not installed"), (GOOD, {"has_tls": True}, "TLS"),
          (GOOD, {"max_connections": 5}, "count connections"),
    (GOOD, {"can_reserve": False}, "4 GiB"), (GOOD, {"has_directory": False}, "TMPDIR")]  # fmt: skip


def test_native_serves_where_it_is_installed_and_this_machine_alone_can_reach_it() -> None:
    assert choose_server("auto", GOOD)[0] == "native"
    server, why = choose_server("auto", replace(GOOD, is_loopback=False))
    assert (server, "network" in why) == ("grpcio", True)
    assert choose_server("native", replace(GOOD, is_loopback=False))[0] == "native"


@pytest.mark.parametrize(("around", "change", "says"), UNABLE)
def test_what_native_cannot_do_is_grpcios_or_is_refused(around: Surroundings, change: Any, says: str) -> None:
    unable = replace(around, **change)
    server, why = choose_server("auto", unable)
    assert (server, says in why) == ("grpcio", True)
    with pytest.raises(ValueError, match=says):
        choose_server("native", unable)


def test_grpcio_serves_where_it_is_asked_for() -> None:
    assert choose_server("grpcio", GOOD)[0] == "grpcio"
