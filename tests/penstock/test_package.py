"""What importing the SDK costs others: nothing they did not ask for, and no clash with other clients."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import penstock
from penstock import errors


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import penstock; penstock.__version__", "numpy grpc msgspec onnxruntime aiohttp click rich"),
        (
            "from penstock import Client",
            "grpc google.protobuf onnxruntime aiohttp pydantic rich click sqlalchemy uvloop onnx asyncio",
        ),
        (
            "from penstock import Client; Client('grpc://127.0.0.1:1').close()",
            "onnxruntime aiohttp pydantic rich click sqlalchemy http.client",
        ),
        ("from penstock import Client; Client('unix:///nowhere').close()", "grpc google.protobuf aiohttp rich click"),
        ("from penstock import AsyncClient", "grpc google.protobuf onnxruntime aiohttp pydantic rich click"),
    ],
)
def test_an_import_loads_only_what_it_needs(code: str, absent: str) -> None:
    loaded = run(f"{code}\nimport sys; print(*sys.modules)").split()
    assert set(absent.split()) & set(loaded) == set()


_OURS = "from penstock import Client; Client('grpc://127.0.0.1:1').close()"
_THEIRS = "import tritonclient.grpc, tritonclient.http; tritonclient.grpc.service_pb2.ModelInferRequest(model_name='m')"


@pytest.mark.parametrize("code", [f"{_OURS}\n{_THEIRS}", f"{_THEIRS}\n{_OURS}"], ids=["ours-first", "theirs-first"])
def test_tritonclient_lives_in_the_same_process(code: str) -> None:
    run(f"{code}\nfrom penstock.rpc.pb import oip_pb2; oip_pb2.ModelInferRequest(model_name='m')")


def test_public_names() -> None:
    for name in penstock.__all__:
        assert getattr(penstock, name) is not None
    assert set(penstock.__all__) <= set(dir(penstock))
    assert penstock.__version__ == importlib.metadata.version("penstock")
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        penstock.Nope  # noqa: B018


def test_every_error_is_here() -> None:
    assert {cls.__name__ for cls in errors.ALL.values()} | {"PenstockError"} <= set(penstock.__all__)
    assert penstock.NotFound is errors.NotFound
    assert penstock.DeadlineExceeded is errors.DeadlineExceeded
