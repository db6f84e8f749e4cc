"""A model of a running core as the teacher: over both wires, killed on the way, and taken up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.distill.cache import AnswerCache, Answered
from compiler.distill.teacher import CORE_ROWS, CoreTeacher
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import NotFound, Unavailable
from penstock.runtime import EngineOptions, load_engine
from penstock.sdk.client import Client
from tests.compiler.distill.conftest import Digits
from tests.factories import variant_spec
from tests.processes import CoreProcess


@pytest.fixture
def core(core_process: CoreProcess, digits: Digits, tmp_path: Path) -> CoreProcess:
    """A core that serves the digits' teacher as digits:v1."""
    engine = load_engine("onnx", digits.teacher, EngineOptions())
    spec = variant_spec("cloud", inputs=engine.inputs, outputs=engine.outputs)
    layout = Layout.create(tmp_path / "layout")
    layout.pack([VariantDraft(spec=spec, weights=digits.teacher)], tag="v1")
    core_process.push(tmp_path / "layout")
    return core_process


def test_killed_on_the_way_and_taken_up_again(core: CoreProcess, digits: Digits, tmp_path: Path) -> None:
    inputs = digits.splits["train"].inputs

    def ask(target: str, version: str, report: Callable[[float, str], None]) -> Answered:
        with Client(target) as client:
            teacher = CoreTeacher(client, "digits", version=version)
            return AnswerCache(tmp_path / "answers").answers(teacher, inputs, tmp_path / "teacher.npy", report)

    def kill_soon(share: float, note: str) -> None:
        if share > CORE_ROWS / 700:
            core.kill()

    def unheard(share: float, note: str) -> None:
        pass

    with pytest.raises(Unavailable, match=f"{CORE_ROWS} of 700 rows are answered and kept: run the same again"):
        ask(core.grpc_target, "", kill_soon)
    core.start()
    rest = ask(core.grpc_target, "", unheard)
    assert rest.asked == 700 - CORE_ROWS
    over_http = ask(core.http_url, "v1", unheard)
    assert over_http.asked == 700, "a version that is named is a teacher of its own"
    assert over_http.digest == rest.digest
    with pytest.raises(NotFound, match="digits"):
        ask(core.grpc_target, "v9", unheard)
