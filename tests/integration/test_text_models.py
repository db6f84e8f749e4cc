"""A model that takes text, served by a real core: over HTTP (JSON and raw), gRPC and through the SDK."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock import AsyncClient, Client
from penstock.artifact import golden
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import InvalidInput
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.wire.tensors import Array, TensorSpec
from tests.cloud_core.rig import onnx_spec, soon, start_core

COLOURS = ["red", "green", "bläu", "pink"]
CODES = [[1.0], [2.0], [3.0], [-1.0]]


def column(items: list[bytes]) -> Array:
    array = np.empty((len(items), 1), dtype=object)
    array[:, 0] = items
    return array


def layout(directory: Path) -> Layout:
    shape = ["n", 1]
    node = helper.make_node(
        "LabelEncoder",
        ["colour"],
        ["code"],
        domain="ai.onnx.ml",
        keys_strings=COLOURS[:3],
        values_floats=[1.0, 2.0, 3.0],
        default_float=-1.0,
    )
    graph = helper.make_graph(
        [node],
        "colours",
        [helper.make_tensor_value_info("colour", TensorProto.STRING, shape)],
        [helper.make_tensor_value_info("code", TensorProto.FLOAT, shape)],
    )
    weights = directory / "colours.onnx"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(weights))
    spec = onnx_spec(
        "colours",
        inputs=(TensorSpec(name="colour", datatype="BYTES", shape=(-1, 1)),),
        outputs=(TensorSpec(name="code", datatype="FP32", shape=(-1, 1)),),
        score_output="code",
    )
    # the core replays them before the model answers: they go the same way as a request
    vectors = golden.encode(
        Golden(
            inputs={"colour": column([c.encode() for c in COLOURS])},
            outputs={"code": np.array(CODES, dtype=np.float32)},
        )
    )
    made = Layout.create(directory / "layout")
    made.pack([VariantDraft(spec=spec, weights=weights, golden=vectors)], tag="v1")
    return made


async def test_text_is_understood_by_every_door(tmp_path: Path) -> None:
    core = await start_core(tmp_path)
    http, grpc = f"http://127.0.0.1:{core.http_port}", f"grpc://127.0.0.1:{core.grpc_port}"

    def push() -> None:
        with RegistryClient(http) as client:
            transfer.push(client, layout(tmp_path))

    def ask(target: str, items: list[bytes]) -> list[list[float]]:
        with Client(target) as client:
            return client.infer("colours", {"colour": column(items)}).outputs["code"].tolist()

    async with core:
        await asyncio.to_thread(push)
        await soon(lambda: core.plane.model_state("colours").state == "READY")
        raw = [colour.encode() for colour in COLOURS]
        for target in (http, grpc):
            assert await asyncio.to_thread(ask, target, raw) == CODES
            with pytest.raises(InvalidInput, match=r"colour\[1, 0\].*not UTF-8"):
                await asyncio.to_thread(ask, target, [b"red", b"\xff"])
        document = {"inputs": [{"name": "colour", "datatype": "BYTES", "shape": [4, 1], "data": COLOURS}]}
        async with aiohttp.ClientSession() as session:
            answer = await session.post(f"{http}/v2/models/colours/infer", data=json.dumps(document))
            assert json.loads(await answer.read())["outputs"][0]["data"] == [1.0, 2.0, 3.0, -1.0]


async def test_a_request_that_is_no_text_fails_alone(tmp_path: Path) -> None:
    core = await start_core(tmp_path, serving={"max_delay_s": 0.2})
    http = f"http://127.0.0.1:{core.http_port}"

    def push() -> None:
        with RegistryClient(http) as client:
            transfer.push(client, layout(tmp_path))

    async with core:
        await asyncio.to_thread(push)
        await soon(lambda: core.plane.model_state("colours").state == "READY")
        async with AsyncClient(http, coalesce=False) as client:
            asked = [client.infer("colours", {"colour": column([item])}) for item in (b"red", b"\xff", b"green")]
            red, refused, green = await asyncio.gather(*asked, return_exceptions=True)
    assert not isinstance(red, BaseException)
    assert not isinstance(green, BaseException)
    assert (red.outputs["code"].tolist(), green.outputs["code"].tolist()) == ([[1.0]], [[2.0]])
    assert isinstance(refused, InvalidInput)
    assert "colour[0, 0]" in refused.message
