from __future__ import annotations

import pytest

from penstock.errors import InvalidInput
from penstock.rpc.channels import channel_options, open_channel, server_options


def test_limits_are_the_same_on_both_sides() -> None:
    for name in ("grpc.max_send_message_length", "grpc.max_receive_message_length"):
        assert dict(channel_options(max_message_bytes=7))[name] == dict(server_options(max_message_bytes=7))[name] == 7


def test_our_servers_bear_the_keepalive_that_our_agents_may_ask_for() -> None:
    server = dict(server_options())
    allowed_ms = server["grpc.http2.min_ping_interval_without_data_ms"]
    assert allowed_ms == server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert dict(channel_options(keepalive_s=10.0))["grpc.keepalive_time_ms"] >= allowed_ms


def test_a_server_that_may_not_be_ours_is_never_pinged_between_calls() -> None:
    assert "grpc.keepalive_permit_without_calls" not in dict(channel_options())
    assert dict(channel_options(keepalive_s=25.0))["grpc.keepalive_permit_without_calls"] == 1


@pytest.mark.parametrize("target", ["http://127.0.0.1:1", "unix:///x", "127.0.0.1:1"])
def test_only_grpc_targets_have_a_channel(target: str) -> None:
    with pytest.raises(InvalidInput, match="grpc://"):
        open_channel(target, aio=False)
