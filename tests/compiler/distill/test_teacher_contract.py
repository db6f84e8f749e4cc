"""What every teacher owes the answer cache: rows in, the same rows' answers out, and a name that tells models apart.

The fake of the unit tests is held to it as well. A new teacher becomes one more line of ``TEACHERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from compiler.distill.teacher import CoreTeacher, LocalTeacher, Teacher, ToolchainTeacher
from compiler.recipe.distill_section import Factory
from penstock.artifact.blobs import digest_of_file
from penstock.runtime import EngineOptions, load_engine
from penstock.sdk.client import Client
from penstock.wire.tensors import Array, TensorSpec
from tests.compiler.distill.conftest import Digits, FakeTeacher
from tests.penstock.sdk.server import Backend, running_in_thread

PIXELS = TensorSpec(name="x", datatype="FP32", shape=(-1, 64))
Make = Callable[[str], Teacher]
"""``make(which)``: the same teacher for the same word, another one for another word."""


def local(request: pytest.FixtureRequest, stack: ExitStack, work: Path) -> Make:
    digits: Digits = request.getfixturevalue("digits")
    content = digest_of_file(digits.teacher)
    return lambda which: LocalTeacher(load_engine("onnx", digits.teacher, EngineOptions()), content=content + which)


def core(request: pytest.FixtureRequest, stack: ExitStack, work: Path) -> Make:
    servers = stack.enter_context(running_in_thread(Backend()))
    client = stack.enter_context(Client(servers.grpc))
    return lambda which: CoreTeacher(client, {"": "digits", "other": "agent"}[which])


def toolchain(request: pytest.FixtureRequest, stack: ExitStack, work: Path) -> Make:
    request.getfixturevalue("torch")
    digits: Digits = request.getfixturevalue("digits")

    def make(which: str) -> Teacher:
        function = {"": "four", "other": "seven"}[which]
        model = Factory(named=f"nets.py:{function}", function=function, file=digits.nets / "nets.py")
        return ToolchainTeacher(model, [PIXELS], work=work, base=digits.nets)

    return make


def fake(request: pytest.FixtureRequest, stack: ExitStack, work: Path) -> Make:
    weight = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    return lambda which: FakeTeacher(weight=weight, fingerprint=f"sha256:{which}")


TEACHERS = (local, core, toolchain, fake)


@pytest.fixture(params=TEACHERS, ids=lambda made: made.__name__)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:
        yield request.param(request, stack, tmp_path / "work")


def rows_for(teacher: Teacher, rows: int) -> Mapping[str, Array]:
    source = np.random.default_rng(11)
    return {spec.name: source.integers(0, 17, (rows, *spec.shape[1:])).astype(np.float32) for spec in teacher.inputs}


def unheard(share: float, note: str) -> None:
    pass


def test_answers_are_floats_of_the_promised_shape_in_the_order_of_the_rows(make: Make) -> None:
    """A hundred rows are more than any of them asks for at a time."""
    teacher = make("")
    given, heard = rows_for(teacher, 100), []
    answers = teacher.answer(given, lambda share, note: heard.append((share, note)))
    assert (answers.dtype, answers.ndim, len(answers)) == (np.float32, 2, 100)
    assert teacher.output.datatype == "FP32"
    assert teacher.output.shape in ((-1, answers.shape[1]), (-1, -1))
    order, kept = np.random.default_rng(2).permutation(100), answers.copy()
    turned = teacher.answer({name: array[order] for name, array in given.items()}, unheard)
    np.testing.assert_allclose(turned, kept[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(answers, kept, "an answer is the caller's own")
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1
    assert all(note for _, note in heard)


def test_a_fingerprint_is_that_of_a_model_not_of_an_object(make: Make) -> None:
    assert make("").fingerprint == make("").fingerprint
    assert make("").fingerprint != make("other").fingerprint
    assert make("").fingerprint.startswith("sha256:")


def test_it_says_how_much_to_ask_for_at_a_time(make: Make) -> None:
    assert make("").chunk_rows >= 1
    assert isinstance(make("").is_pinned, bool)
