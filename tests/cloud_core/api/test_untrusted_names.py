"""Names that a client makes up, in every place of every path that the core serves: none is a path of a file, and no
body is unpickled. What the process opens and unpickles while it is asked is watched by Python's own audit hook."""

from __future__ import annotations

import asyncio
import http.client
import os
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc

from cloud_core.app import Core
from penstock.rpc.pb import oip_pb2 as pb
from tests.cloud_core.rig import start_core

MARK = "no-such-thing-7f3a"
_WATCHED: list[list[str]] = []


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (MARK,)


PICKLED = pickle.dumps(Evil())


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir", "shutil.rmtree"):
        _WATCHED[-1].extend(os.fsdecode(one) for one in arguments[:2] if isinstance(one, str | bytes))
    elif event in ("pickle.find_class", "marshal.loads"):
        _WATCHED[-1].append(f"{event} {MARK}")


sys.addaudithook(_hook)  # cannot be taken away; it costs one comparison where nothing is watched


@contextmanager
def watched() -> Iterator[list[str]]:
    seen: list[str] = []
    _WATCHED.append(seen)
    try:
        yield seen
    finally:
        _WATCHED.pop()


def names(secret: Path) -> list[str]:
    up = "../" * 12
    return [
        f"{up}{str(secret)[1:]}", quote(f"{up}{str(secret)[1:]}", safe=""), quote(str(secret), safe=""),
        f"..%2f..%2f{MARK}", f"%2e%2e/%2e%2e/{MARK}", f"..\\..\\{MARK}", f"{MARK}%00.json", f"%252e%252e%252f{MARK}",
        f"file:%2f%2f{MARK}", f".{MARK}", f"~root%2f{MARK}", f"sha256:{MARK}", f"{MARK}{'a' * 3000}",
    ]  # fmt: skip


def paths(core: Core, secret: Path) -> Iterator[tuple[str, str]]:
    """Method and path of each route with each name in all of its places, and in the query."""
    for route in core.http.routes:
        for name in names(secret) if "{" in route.pattern else ():
            path = "".join(name if part.startswith("{") else part for part in re.split(r"(\{\w+\*?\})", route.pattern))
            yield route.method, path
            yield route.method, f"{path}?digest={name}&mount={name}&from={name}&last={name}"


def ask_all(core: Core, secret: Path) -> tuple[int, dict[str, int]]:
    """Ask for everything, with a body that would do harm if somebody unpickled it; how often, and what went wrong."""
    asked, failed = 0, {}
    connection = http.client.HTTPConnection("127.0.0.1", core.http_port, timeout=60)
    for method, path in paths(core, secret):
        connection.request(method, path, body=None if method == "GET" else PICKLED)
        answer = connection.getresponse()
        said = answer.read()
        asked += 1
        if answer.status >= 500 or b"TOP" in said:
            failed[f"{method} {path[:200]}"] = answer.status
        if answer.will_close:
            connection.close()
    connection.close()
    return asked, failed


def calls(name: str) -> dict[str, Any]:
    return {
        "ModelMetadata": pb.ModelMetadataRequest(name=name, version=name),
        "ModelConfig": pb.ModelConfigRequest(name=name, version=name),
        "ModelInfer": pb.ModelInferRequest(model_name=name, raw_input_contents=[PICKLED]),
        "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name=name, repository_name=name),
        "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name=name),
        "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(name=name, key=name, byte_size=8),
    }


async def test_no_name_is_a_path_and_no_body_is_unpickled(tmp_path: Path) -> None:
    secret = tmp_path / "outside" / f"{MARK}.json"
    secret.parent.mkdir()
    secret.write_text('{"TOP": "secret"}')
    codes = set()
    async with await start_core(tmp_path) as core:
        with watched() as seen:
            asked, failed = await asyncio.to_thread(ask_all, core, secret)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
                for name in (str(secret), f"../../{MARK}", f"{MARK}\x00"):
                    for method, message in calls(name).items():
                        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
                        codes.add(await call(message.SerializeToString()).code())
    assert asked > 500
    assert failed == {}
    assert codes & {grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN} == set()
    assert [one for one in seen if MARK in one] == []


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    with watched() as seen:
        (tmp_path / MARK).write_text("x")
        pickle.loads(pickle.dumps(Path))
    assert len([one for one in seen if MARK in one]) == 2
