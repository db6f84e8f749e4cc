"""A core with a real language model, asked for texts over sockets: gRPC by tritonclient, streams, and who goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from cloud_core.api.rpc.grpc_oip import OipServicer
from cloud_core.app import Core
from penstock import AsyncClient
from penstock.errors import InvalidInput
from penstock.registry.transfer import RegistryClient, push
from penstock.rpc import codec
from penstock.rpc.pb import oip_pb2, oip_pb2_grpc
from penstock.wire.inference import InferRequest, Parameter
from tests.cloud_core.rig import core_settings, soon
from tests.language import CLOUD, NAME, references, text_layout
from tests.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of tritonclient and gevent
]
ROW = max(references(CLOUD), key=lambda one: min(one["margins"][:4]))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def core(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Core]:
    root: Path = tmp_path_factory.mktemp("texts")

    def send(url: str) -> None:
        with RegistryClient(url) as client:
            push(client, text_layout(root))

    async with await Core.start(core_settings(root / "core", grpc={"stream_window": 4})) as running:
        await asyncio.to_thread(send, f"http://127.0.0.1:{running.http_port}")
        await soon(lambda: running.plane.model_state(NAME).state == "READY")
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(core: Core) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{core.grpc_port}") as made:
        yield made


def tensor(name: str, datatype: str, values: Any) -> triton.InferInput:
    array = np.array(values, {"BYTES": object, "INT64": np.int64, "BOOL": bool}[datatype])
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def ids() -> triton.InferInput:
    return tensor("prompt_ids", "INT64", [ROW["ids"]])


def long_request() -> oip_pb2.ModelInferRequest:
    parameters: dict[str, Parameter] = {"stop": "\x00", "max_tokens": 400}
    return codec.encode_request(
        InferRequest(model=NAME, inputs={"prompt_ids": np.array([ROW["ids"]])}, parameters=parameters)
    )


async def asked(client: Any, *requests: dict[str, Any]) -> list[tuple[Any, Any]]:
    async def all_requests() -> AsyncIterator[dict[str, Any]]:
        for request in requests:
            yield {"model_name": NAME, **request}

    return [answer async for answer in client.stream_infer(all_requests())]


def is_final(result: Any) -> bool:
    final: bool = result.get_response().parameters["triton_final_response"].bool_param
    return final


def text_of(results: list[Any]) -> str:
    return b"".join(result.as_numpy("text_output")[0] for result in results).decode()


def tokens_of(results: list[Any]) -> list[int]:
    return [token for result in results for token in result.as_numpy("token_ids")[0].tolist()]


async def test_tritonclient_gets_a_text_in_parts_and_the_last_one_says_so(client: Any) -> None:
    parameters = {"max_tokens": 4, "sampling_parameters": '{"stop": []}'}
    inputs = [ids(), tensor("sampling_parameters", "BYTES", [parameters.pop("sampling_parameters")])]
    answers = await asked(client, {"inputs": inputs, "request_id": "a", "parameters": parameters})
    results = [result for result, error in answers if error is None]
    assert len(results) == 4
    assert tokens_of(results) == ROW["new"][:4]
    assert [is_final(result) for result in results] == [False, False, False, True]
    last = results[-1].get_response()
    assert {result.get_response().id for result in results} == {"a"}
    assert (last.parameters["finish_reason"].string_param, last.model_version) == ("length", "v1")
    assert last.parameters["prompt_tokens"].int64_param == len(ROW["ids"])
    assert last.parameters["served_by"].string_param == "cloud"


async def test_a_whole_answer_comes_from_a_stream_that_says_so_and_from_one_call(client: Any) -> None:
    prompt = tensor("text_input", "BYTES", ["import os\nimport "])
    (parted, whole) = ([prompt], [prompt, tensor("streaming", "BOOL", [False])])
    parts = [result for result, _ in await asked(client, {"inputs": parted})]
    ((result, error),) = await asked(client, {"inputs": whole})
    assert error is None
    assert is_final(result)
    assert text_of([result]) == text_of(parts)
    assert tokens_of([result]) == tokens_of(parts)
    alone = await client.infer(NAME, [prompt], outputs=[triton.InferRequestedOutput("text_output")])
    assert text_of([alone]) == text_of(parts)
    assert alone.as_numpy("token_ids") is None
    odds = await client.infer(NAME, [prompt], parameters={"logprobs": True})
    assert odds.as_numpy("logprobs").shape == odds.as_numpy("token_ids").shape
    assert (odds.as_numpy("logprobs") <= 0).all()


async def test_texts_of_one_stream_come_between_each_other_and_one_failure_ends_none(client: Any) -> None:
    fields = {"stop": "\x00", "max_tokens": 100}
    answers = await asked(
        client,
        *({"inputs": [ids()], "request_id": str(number), "parameters": fields} for number in range(3)),
        {"inputs": [tensor("text_input", "BYTES", [""])], "request_id": "empty"},
    )
    seen = [result.get_response().id for result, error in answers if error is None]
    assert sorted(set(seen)) == ["0", "1", "2"]
    assert seen != sorted(seen)  # at least one came between the parts of another
    assert {seen.count(name) for name in set(seen)} == {100}
    (failed,) = [error for _, error in answers if error is not None]
    assert "prompt is empty" in str(failed)


WRONG: list[tuple[list[triton.InferInput], dict[str, Any], str]] = [
    ([tensor("x", "BYTES", ["a"])], {}, "a language model takes text_input"),
    ([tensor("text_input", "BYTES", ["a", "b"])], {}, "one prompt"),
    ([tensor("text_input", "BYTES", ["a"]), ids()], {}, "one of text_input, prompt_ids, messages"),
    ([tensor("text_input", "INT64", [1])], {}, "expected BYTES"),
    ([tensor("text_input", "BYTES", [b"\xff"])], {}, "not UTF-8"),
    ([tensor("text_input", "BYTES", ["a"])], {"temperature": "hot"}, "parameters.temperature"),
    ([tensor("text_input", "BYTES", ["a"])], {"streaming": True}, "ModelStreamInfer"),
    ([tensor("text_input", "BYTES", ["a"]), tensor("sampling_parameters", "BYTES", ["{"])], {}, "parameters: not JSON"),
]


async def test_what_is_wrong_is_told_before_anything_is_made(core: Core, client: Any) -> None:
    for inputs, parameters, says in WRONG:
        with pytest.raises(triton.InferenceServerException, match=says):
            await client.infer(NAME, inputs, parameters=parameters)
    assert core.plane.measures.inflight == 0


async def test_the_sdk_and_the_generate_extension_say_the_same_over_http(core: Core) -> None:
    url = f"http://127.0.0.1:{core.http_port}"
    async with AsyncClient(url) as sdk, aiohttp.ClientSession() as http:
        text = await sdk.generate(NAME, ROW["ids"], max_new_tokens=4, stop=[], logprobs=0, version="v1")
        assert list(text.token_ids) == ROW["new"][:4]
        assert (text.finish_reason, text.served_by, len(text.logprobs)) == ("length", "cloud", 4)
        parts = sdk.stream(NAME, "import os\nimport ")
        streamed = "".join([str(part) async for part in parts])
        assert streamed == parts.answer.text
        async with http.post(f"{url}/v2/models/{NAME}/generate", json={"text_input": "import os\nimport "}) as answer:
            document = await answer.json()
        assert (document["text_output"], document["model_version"]) == (streamed, "v1")
        with pytest.raises(InvalidInput, match="chat template"):
            await sdk.chat(NAME, [{"role": "user", "content": "hi"}])


async def test_who_goes_away_stops_its_texts_and_is_counted(core: Core) -> None:
    (served,) = core.plane.served_texts()
    made_before = core.texts.accounts.tokens.get("", 0)
    request = long_request()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:

        async def forever() -> AsyncIterator[oip_pb2.ModelInferRequest]:
            yield request
            await asyncio.Event().wait()

        stub: Any = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.ModelStreamInfer(forever())
        await call.read()
        assert core.plane.measures.inflight == 1
        call.cancel()
        await until("it is given up", lambda: core.plane.measures.inflight == 0)
    assert served.inflight_bytes == 0
    assert core.plane.measures.routes[NAME, "v1"].requests["cancelled"] == 1
    made = core.texts.accounts.tokens[""] - made_before
    assert len(ROW["ids"]) < made < len(ROW["ids"]) + 400


class Silent:
    """A call whose client sends one request, reads one response, and does nothing more."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None


async def test_a_text_that_nobody_reads_gives_its_place_back(core: Core) -> None:
    servicer = OipServicer(core.plane, core.texts, version="0", stream_window=2, unread_s=0.05)
    handler: Any = servicer.service().streams["ModelStreamInfer"]

    async def one() -> AsyncIterator[bytes]:
        yield long_request().SerializeToString()

    responses = handler.stream_stream(one(), Silent())
    await anext(responses)
    assert core.plane.measures.inflight == 1
    await until("it is given up", lambda: core.plane.measures.inflight == 0)
    said = [oip_pb2.ModelStreamInferResponse.FromString(data) async for data in responses]
    assert said[-1].error_message == "the client did not read for 0.05 s"
    assert len(said) < 10
