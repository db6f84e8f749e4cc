"""A client that was used before a fork: everyone gets its own answers, or hears what is wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from penstock import AsyncClient
from penstock.errors import Internal
from tests.penstock.sdk.server import Servers
from tests.penstock.sdk.test_client import ROWS

PROGRAM = """
import os, sys
import numpy as np
from penstock import Client
from tests.penstock.sdk.server import WEIGHTS

client = Client(sys.argv[1], timeout=10)

def is_right(seed):
    for i in range(40):
        rows = np.full((2, 4), seed * 1000 + i, np.float32)
        if not np.array_equal(client.infer("digits", rows).outputs["logits"], rows @ WEIGHTS):
            return False
    return True

assert is_right(0)
children = []
for seed in range(1, 9):
    pid = os.fork()
    if not pid:
        code = 2
        try:
            code = 0 if is_right(seed) else 1
        finally:
            os._exit(code)
    children.append(pid)
said = [is_right(0)] + [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert said == [True] + [0] * 8, said
assert is_right(0)
"""


@pytest.mark.parametrize("scheme", ["http", "unix"])
def test_children_of_a_fork_and_their_parent_get_their_own_answers(threaded: Servers, scheme: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, threaded.target(scheme)], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr


OVER_GRPC = """
import os, sys
import numpy as np
from penstock import Client
from penstock.errors import Internal

client = Client(sys.argv[1])
rows = np.zeros((2, 4), np.float32)
client.infer("digits", rows)
child = os.fork()
if child == 0:
    for ask in (lambda: client.infer("digits", rows), lambda: next(client.stream("digits", "a"))):
        try:
            ask()
        except Internal as error:
            if "made before a fork" not in error.message:
                os._exit(2)
        else:
            os._exit(3)
    client.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
client.infer("digits", rows)
"""


def test_a_child_of_a_fork_is_told_that_grpc_stays_with_its_parent(threaded: Servers) -> None:
    said = subprocess.run(
        [sys.executable, "-c", OVER_GRPC, threaded.target("grpc")], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("scheme", ["grpc", "http", "unix"])
def test_a_second_event_loop_is_told_what_is_wrong(threaded: Servers, scheme: str) -> None:
    client = AsyncClient(threaded.target(scheme))

    async def first() -> None:
        await client.infer("digits", ROWS)

    async def second() -> None:
        with pytest.raises(Internal, match="another event loop"):
            await client.infer("digits", ROWS)

    with asyncio.Runner() as runner:
        runner.run(first())
        with asyncio.Runner() as other:
            other.run(second())
        runner.run(client.close())
