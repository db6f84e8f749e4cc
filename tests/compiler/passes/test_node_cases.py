"""Every graph pass on onnx's own node cases: transformed with the outputs kept, or refused with an error of ours.

Never a crash, never silently wrong. How many are accepted is pinned: a pass that quietly takes fewer loses coverage,
and one that takes more should say so here. Passes that need constant weights get the cases with all inputs but the
first made constants. Each test is one loop over its cases: thousands of items would take longer than the cases.

Which cases: a third of the 1,526 that onnxruntime runs, chosen by ``cases.spread``, which says how.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from compiler.graph import rewrite
from compiler.passes import fp16, int8_dynamic, int8_static, optimize, prune, shard
from compiler.passes.weights import weights_only
from tests.compiler.passes import cases
from tests.compiler.passes.cases import LAYERS, Case, Outcome, Run
from tests.compiler.small_models import needs_vnni

ORT_DIFFERS = 5
"""Cases in which onnxruntime itself answers otherwise than onnx expects; it is onnxruntime that passes must keep."""


@functools.cache
def runnable() -> list[Case]:
    """Cases that onnxruntime runs, thinned."""
    return cases.spread(cases.node_cases()[0])


@functools.cache
def with_weights() -> list[Case]:
    """Cases with a layer, their weights made constants."""
    layered = [case for case in runnable() if any(rewrite.is_standard(n, *LAYERS) for n in case.model.graph.node)]
    return [made for case in layered if (made := cases.with_constants(case)) is not None]


def check(outcome: Outcome, *, accepted: int) -> None:
    print(outcome.counts, dict(outcome.reasons().most_common(8)))
    assert outcome.wrong == {}
    assert len(outcome.accepted) == accepted


def test_the_suite_is_whole() -> None:
    found, others = cases.node_cases()
    assert len(found) + len(others) == 1884
    assert len(found) == 1526
    assert sum(not case.is_as_onnx_says for case in found) == ORT_DIFFERS


def test_optimize() -> None:
    """onnxslim, which takes half of the time, sees every third case."""
    found = runnable()
    slimmed = cases.judge(optimize.run, found[::3], tolerance=1e-4)
    check(slimmed, accepted=172)
    rest = [case for index, case in enumerate(found) if index % 3]
    check(cases.judge(optimize.run, rest, tolerance=1e-4, options={"slim": False}), accepted=342)


def test_optimize_with_weights_and_gemm_split() -> None:
    check(cases.judge(optimize.run, with_weights(), tolerance=1e-4, options={"gemm_to_matmul": True}), accepted=75)


def test_fp16() -> None:
    check(cases.judge(fp16.run, runnable(), tolerance=0.02), accepted=388)


def test_shard() -> None:
    """With all fusions off, as the outputs of the cases were found: equal to the last bit."""
    check(cases.judge(shard.run, runnable(), tolerance=0), accepted=148)


@pytest.mark.parametrize(
    ("options", "tolerance", "accepted"),
    [
        ({"bits": 4, "block_size": 16}, 0.15, 12),
        ({"bits": 8, "block_size": 16, "symmetric": False}, 0.02, 12),
        ({"bits": 4, "block_size": 16, "method": "hqq"}, 0.15, 12),
        ({"bits": 8, "block_size": 16, "method": "gptq"}, 0.02, 12),
    ],
)
def test_weights_only(options: dict[str, object], tolerance: float, accepted: int) -> None:
    check(cases.judge(weights_only.run, with_weights(), tolerance=tolerance, options=options), accepted=accepted)


@pytest.mark.parametrize(("method", "accepted"), [("magnitude", 39), ("channels", 77)])
def test_prune_nothing(method: str, accepted: int) -> None:
    check(
        cases.judge(prune.run, with_weights(), tolerance=0, options={"share": 0.0, "method": method}), accepted=accepted
    )


def test_prune_half_of_the_channels_of_single_layers() -> None:
    """Their channels are outputs: there is nothing to take."""
    outcome = cases.judge(prune.run, with_weights(), tolerance=0, options={"share": 0.5, "method": "channels"})
    check(outcome, accepted=0)


@pytest.mark.parametrize(
    ("run", "accepted"), [(int8_static.run, 25), pytest.param(int8_dynamic.run, 8, marks=needs_vnni)]
)
def test_int8(run: Run, accepted: int) -> None:
    check(cases.judge(run, with_weights(), tolerance=0.1), accepted=accepted)


@pytest.mark.parametrize(
    ("run", "options"),
    [(optimize.run, {}), (fp16.run, {}), (weights_only.run, {}), (prune.run, {"share": 0.1}), (shard.run, {})],
)
def test_what_onnxruntime_cannot_run_is_refused_in_our_words(run: Run, options: dict[str, object]) -> None:
    _, others = cases.node_cases()
    found = [
        Case(name=str(index), model=model, feeds={"x": np.zeros(1, np.float32)}, expected={}, is_as_onnx_says=False)
        for index, model in enumerate(others)
    ]
    outcome = cases.judge(run, found, tolerance=0, options=options)
    assert outcome.counts == {"accepted": 0, "refused": len(others), "wrong": 0}
