"""KServe's own SDK asks a core, both protocols and both transports. Its pins (psutil below 6, pandas below 3) do not
fit beside ours, so that it needs an environment of its own:

    python -m venv /tmp/kserve && /tmp/kserve/bin/pip install kserve
    PENSTOCK_KSERVE_PYTHON=/tmp/kserve/bin/python make test ARGS="-n0 tests/integration/test_kserve_sdk.py"
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cloud_core.rig import core_in_a_thread

PYTHON = os.environ.get("PENSTOCK_KSERVE_PYTHON", "")
PROGRAM = """
import asyncio, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

http, grpc = sys.argv[1:]
x = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]], np.float32)

def request(binary):
    given = InferInput(name="x", shape=list(x.shape), datatype="FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    return InferRequest(model_name="mlp", infer_inputs=[given], request_id="r1")

async def main():
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await rest.is_server_live(http)
    assert await rest.is_server_ready(http)
    assert await rest.is_model_ready(http, "mlp")
    found = []
    for binary in (True, False):
        answer = await rest.infer(http, request(binary), model_name="mlp")
        assert answer.id == "r1", answer
        found.append(answer.outputs[0].as_numpy())
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await first.is_model_ready(http, "mlp")
    answer = await first.infer(http, {"instances": x.tolist()}, model_name="mlp")
    found.append(np.array(answer["predictions"]))
    async with InferenceGRPCClient(grpc) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("mlp")
        answer = await client.infer(request(True))
        found.append(answer.outputs[0].as_numpy())
    for one in found:
        np.testing.assert_allclose(one, found[0], rtol=1e-5)
    assert found[0].shape == (2, 3)

asyncio.run(main())
print("all agree")
"""


@pytest.mark.skipif(
    not PYTHON, reason="PENSTOCK_KSERVE_PYTHON names no environment with kserve, whose pins do not fit ours"
)
def test_kserves_sdk_works_unmodified(tmp_path: Path) -> None:
    with core_in_a_thread(tmp_path) as core:
        addresses = [f"http://127.0.0.1:{core.http_port}", f"127.0.0.1:{core.grpc_port}"]
        done = subprocess.run(
            [PYTHON, "-c", PROGRAM, *addresses], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all agree" in done.stdout
