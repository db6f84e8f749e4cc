"""Tables with named columns: matched by name, whatever their order, over every transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock import AsyncClient, Client
from penstock.errors import InvalidInput
from penstock.sdk import call, frames
from penstock.wire.tensors import TensorSpec
from tests.penstock.sdk.server import WEIGHTS, Backend, Servers

NAMES = ("a", "b", "c", "d")
X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
COLUMNS = {"x": NAMES}
VALUES = {"a": [1.0, 5.0], "b": [2.0, 6.0], "c": [3.0, 7.0], "d": [4.0, 8.0]}
EXPECTED = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


@dataclass(frozen=True)
class Plain:
    """The least that a table of another library gives: names, and a column by its name, as pandas and polars do."""

    values: Mapping[str, Any]

    @property
    def columns(self) -> list[str]:
        return list(self.values)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def reordered(**changes: Any) -> dict[str, Any]:
    values = {**VALUES, **changes}
    return {name: values[name] for name in reversed(values)}


KINDS = {
    "plain": lambda values: Plain({name: np.array(column) for name, column in values.items()}),
    "pyarrow table": pa.table,
    "pyarrow batch": pa.RecordBatch.from_pydict,
}


@pytest.fixture(params=KINDS)
def frame_of(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def made(frame: Any, spec: TensorSpec = X, columns: Mapping[str, tuple[str, ...]] = COLUMNS) -> Any:
    return frames.inputs_of(frame, (spec,), columns)[spec.name]


def test_columns_are_matched_by_name(frame_of: Any) -> None:
    frame = frame_of(reordered())
    assert frames.is_frame(frame)
    x = made(frame)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, EXPECTED)


@pytest.mark.parametrize(
    "value", [EXPECTED, VALUES, [[1.0]], (1,), "text", None, 5, pa.chunked_array([[1.0]])],
    ids=["array", "dict", "list", "tuple", "text", "none", "number", "column"],
)  # fmt: skip
def test_what_has_no_names_is_no_table(value: Any) -> None:
    assert not frames.is_frame(value)


def test_missing_and_extra_columns_are_named(frame_of: Any) -> None:
    values = reordered(id=[1, 2], when=[3, 4])
    del values["b"]
    with pytest.raises(InvalidInput, match=r"it has no 'b'; the model does not take 'when', 'id'.*'a', 'b', 'c', 'd'"):
        made(frame_of(values))


def test_a_column_that_is_there_twice_is_refused() -> None:
    twice = pa.table([pa.array([1.0])] * 5, names=["a", "b", "c", "d", "a"])
    with pytest.raises(InvalidInput, match="more than one 'a'"):
        made(twice)


def test_names_are_not_guessed(frame_of: Any) -> None:
    with pytest.raises(InvalidInput, match=r"does not say which columns make its input 'x'"):
        made(frame_of(reordered()), columns={})


@pytest.mark.parametrize(
    ("column", "datatype", "expected"),
    [
        (np.array([1, 2]), "FP32", np.array([[1], [2]], np.float32)),
        (np.array([True, False]), "FP32", np.array([[1], [0]], np.float32)),
        (np.array([1.0, 2.0]), "INT64", np.array([[1], [2]], np.int64)),
        (np.array([1, 2], dtype=object), "FP64", np.array([[1], [2]], np.float64)),
        (np.array([np.nan, np.inf]), "FP32", np.array([[np.nan], [np.inf]], np.float32)),
        (np.array([1.0, None], dtype=object), "FP32", np.array([[1], [np.nan]], np.float32)),
        (pa.array([1, None]), "FP32", np.array([[1], [np.nan]], np.float32)),
        (pa.array(["red", "blue"]), "BYTES", np.array([["red"], ["blue"]], dtype=object)),
        (pa.array(["red", "blue"]).dictionary_encode(), "BYTES", np.array([["red"], ["blue"]], dtype=object)),
        (np.array([0, 1]), "BOOL", np.array([[False], [True]])),
    ],
)
def test_values_get_the_datatype_of_the_model(column: Any, datatype: str, expected: Any) -> None:
    x = made(Plain({"n": column}), TensorSpec(name="x", datatype=datatype, shape=(-1, 1)), {"x": ("n",)})
    assert x.dtype == expected.dtype
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    ("column", "datatype", "message"),
    [
        (np.array([1.5, 2.0]), "INT64", "row 0 holds 1.5, which INT64 cannot hold"),
        (np.array([1.0, 1e60]), "FP32", "row 1 holds 1e"),
        (np.array([1, 300]), "UINT8", "row 1 holds 300"),
        (np.array(["1.5", "2"], dtype=object), "FP32", "holds text"),
        (np.array(["1.5", "2"]), "FP32", "holds text, but the model takes FP32"),
        (np.array([1.0, None], dtype=object), "INT64", "holds nan"),
        (np.array([1.0, object()], dtype=object), "FP32", "missing or no number"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "FP32", "holds datetime64"),
        (np.array([np.nan]), "INT64", "row 0 holds nan"),
    ],
)
def test_values_that_do_not_fit_are_named_with_their_column(column: Any, datatype: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"inputs\['n'\].*{message}"):
        made(Plain({"n": column}), TensorSpec(name="x", datatype=datatype, shape=(-1, 1)), {"x": ("n",)})


def test_columns_of_different_lengths_are_named() -> None:
    with pytest.raises(InvalidInput, match="not equally long: 'a' has 2 rows, 'c' has 3"):
        call.arrays_of({**VALUES, "c": [1.0, 2.0, 3.0]}, (X,), COLUMNS)


def test_one_value_is_no_column() -> None:
    with pytest.raises(InvalidInput, match=r"inputs\['c'\]: one value and not a column; one row's is \[7.5\]"):
        call.arrays_of({**VALUES, "c": 7.5}, (X,), COLUMNS)


def test_the_shape_is_the_model_s() -> None:
    flat = made(Plain({"n": np.array([1.0, 2.0])}), TensorSpec(name="x", datatype="FP32", shape=(-1,)), {"x": ("n",)})
    assert flat.shape == (2,)
    picture = made(pa.table(VALUES), TensorSpec(name="x", datatype="FP32", shape=(-1, 2, 2)))
    np.testing.assert_array_equal(picture, EXPECTED.reshape(2, 2, 2))
    lists = pa.table({"x": [[1.0, 2.0], [3.0, 4.0]]})
    np.testing.assert_array_equal(
        made(lists, TensorSpec(name="x", datatype="FP32", shape=(-1, 2)), {"x": ("x",)}),
        np.array([[1, 2], [3, 4]], np.float32),
    )


def test_several_inputs_come_from_one_table_or_one_each() -> None:
    specs = (
        TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="s", datatype="BYTES", shape=(-1, 1)),
    )
    columns = {"x": ("a", "b"), "s": ("word",)}
    table = pa.table({"word": ["red"], "b": [2], "a": [1]})
    for given in (table, {"x": table.select(["b", "a"]), "s": table.select(["word"])}):
        arrays = call.arrays_of(given, specs, columns)
        np.testing.assert_array_equal(arrays["x"], [[1, 2]])
        assert arrays["s"].tolist() == [["red"]]
    with pytest.raises(InvalidInput, match=r"inputs\.x: .*it has no 'b'"):
        call.arrays_of({"x": table.select(["a"])}, specs, columns)


# --- through the clients --------------------------------------------------------------------------------------------


def named(backend: Backend, columns: Mapping[str, tuple[str, ...]] = COLUMNS) -> None:
    backend.models["digits"] = replace(backend.models["digits"], columns=columns)


def test_a_client_sends_columns_in_the_order_of_the_model(threaded: Servers, target: str) -> None:
    named(threaded.backend)
    with Client(target) as client:
        assert client.metadata("digits").columns == COLUMNS
        answer = client.infer("digits", pa.table(reordered()))
        np.testing.assert_allclose(answer.outputs["logits"], EXPECTED @ WEIGHTS)
        with pytest.raises(InvalidInput, match="it has no 'd'"):
            client.infer("digits", pa.table(VALUES).drop(["d"]))
        with pytest.raises(InvalidInput, match="does not say which columns"):
            client.infer("agent", pa.table(VALUES))


async def test_an_async_client_sends_columns_in_the_order_of_the_model(servers: Servers, scheme: str) -> None:
    named(servers.backend)
    async with AsyncClient(servers.target(scheme)) as client:
        for given in (pa.table(reordered()), {"x": pa.table(reordered())}):
            for request_id in ("", "alone"):
                answer = await client.infer("digits", given, request_id=request_id)
                np.testing.assert_allclose(answer.outputs["logits"], EXPECTED @ WEIGHTS)
        with pytest.raises(InvalidInput, match="it has no 'd'"):
            await client.infer("digits", pa.table(VALUES).drop(["d"]))


def test_a_dict_of_columns_is_a_table(threaded: Servers, target: str) -> None:
    named(threaded.backend)
    with Client(target) as client:
        for column in (list, np.array, pa.array):
            given = {name: column(values) for name, values in reordered().items()}
            np.testing.assert_allclose(client.infer("digits", given).outputs["logits"], EXPECTED @ WEIGHTS)
        with pytest.raises(InvalidInput, match="it has no 'd'; the model does not take 'e'"):
            client.infer("digits", {"a": [1], "b": [2], "c": [3], "e": [4]})
        with pytest.raises(InvalidInput, match="y"):  # two dimensions are no column
            client.infer("digits", {"y": EXPECTED})


@pytest.mark.parametrize("coalesce", [True, False])
async def test_a_dict_of_columns_is_a_table_for_an_async_client(servers: Servers, scheme: str, coalesce: bool) -> None:
    named(servers.backend)
    async with AsyncClient(servers.target(scheme), coalesce=coalesce) as client:
        for _ in range(2):
            answer = await client.infer("digits", reordered())
            np.testing.assert_allclose(answer.outputs["logits"], EXPECTED @ WEIGHTS)
            for dtype in (np.float64, np.int64, object):  # and then merged with rows that had the model's datatype
                answer = await client.infer("digits", EXPECTED.astype(dtype))
                np.testing.assert_allclose(answer.outputs["logits"], EXPECTED @ WEIGHTS)


def test_names_of_classes_and_units_reach_the_client(threaded: Servers, target: str) -> None:
    classes = tuple("0123456789"[: WEIGHTS.shape[1]])
    units = {"x": ("cm", "cm", "kg", "°C"), "logits": ("nat",)}
    digits = threaded.backend.models["digits"]
    threaded.backend.models["digits"] = replace(digits, labels={"logits": classes}, units=units)
    with Client(target) as client:
        known = client.metadata("digits")
        assert (known.labels, known.units) == ({"logits": classes}, units)
        answer = client.infer("digits", EXPECTED, labels=True)
        best = (EXPECTED @ WEIGHTS).argmax(axis=1)
        assert answer.classes == tuple(classes[one] for one in best)
        assert client.infer("digits", EXPECTED).classes == ()


async def test_names_of_classes_reach_the_async_client(servers: Servers, scheme: str) -> None:
    classes = tuple("0123456789"[: WEIGHTS.shape[1]])
    servers.backend.models["digits"] = replace(servers.backend.models["digits"], labels={"logits": classes})
    async with AsyncClient(servers.target(scheme)) as client:
        for _ in range(2):
            assert len((await client.infer("digits", EXPECTED, labels=True)).classes) == 2


def test_a_new_version_with_another_order_gets_its_own(threaded: Servers, target: str) -> None:
    named(threaded.backend)
    with Client(target) as client:
        client.infer("digits", pa.table(VALUES))
        named(threaded.backend, {"x": NAMES[::-1]})
        answer = client.infer("digits", pa.table(VALUES))
        np.testing.assert_allclose(answer.outputs["logits"], EXPECTED[:, ::-1] @ WEIGHTS)
