"""onnx's own backend node cases (1,884 small models with inputs and outputs) as a suite for graph passes, in bulk.

A pass either transforms a case, and then the outputs stay what they were, or refuses it with an error of ours. Oracles:
the outputs that onnx ships with each case, which its numpy reference made, and onnxruntime running the case as it is.
"""

from __future__ import annotations

import copy
import functools
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from compiler.graph import equivalence, files, rewrite
from compiler.passes.job import PassJob, PassResult
from compiler.recipe import targets
from penstock.errors import CompileError, PenstockError

Run = Callable[[PassJob], PassResult]
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ALONE = {
    "test_softmax_large_number": "half precision moves an output too far, and the error names it",
    "test_causal_conv_with_state_b1_c1_degenerate_expanded": "an operator of one input joins channels; an empty output",
}
"""Cases that alone reach a branch of a pass, of whatever group of :func:`spread` they are, and which branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case that onnxruntime can run: what it answers, and whether that is what onnx expects."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any]
    expected: dict[str, Any]
    is_as_onnx_says: bool


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a pass did with the suite. ``wrong`` must stay empty."""

    accepted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        return {"accepted": len(self.accepted), "refused": len(self.refused), "wrong": len(self.wrong)}

    def reasons(self) -> Counter[str]:
        """Refusals by the first words of their message."""
        return Counter(" ".join(message.split()[:7]) for message in self.refused.values())


@functools.cache
def node_cases() -> tuple[list[Case], list[onnx.ModelProto]]:
    """Cases that onnxruntime runs, and models of those that it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx divides by zero on purpose
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    runnable, others = [], []
    for case in collected:
        inputs, outputs = case.data_sets[0]
        feeds = dict(zip((value.name for value in case.model.graph.input), inputs, strict=False))
        # copies everywhere: onnxruntime writes new running means of a BatchNormalization into the caller's arrays
        try:
            expected = equivalence.Session(case.model).run(copy.deepcopy(feeds))
        except CompileError:
            others.append(case.model)
            continue
        names = [value.name for value in case.model.graph.output]
        plain = [each if isinstance(each, list) else np.asarray(each) for each in outputs]
        shipped = dict(zip(names, plain, strict=False))
        runnable.append(
            Case(
                name=case.name,
                model=case.model,
                feeds=feeds,
                expected=expected,
                is_as_onnx_says=_apart(shipped, expected) < 1e-3,
            )
        )
    return runnable, others


def with_constants(case: Case) -> Case | None:
    """The case with all inputs but the first made constants, as in a trained model; None if it has only one."""
    first, rest = next(iter(case.feeds), ""), list(case.feeds)[1:]
    if not rest or not all(isinstance(case.feeds[name], np.ndarray) for name in rest):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)  # before, constants are inputs too
    kept = [value for value in model.graph.input if value.name == first]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(case.feeds[name]), name) for name in rest)
    try:
        expected = equivalence.Session(model).run({first: copy.deepcopy(case.feeds[first])})
    except (CompileError, ValueError):  # shape inference looks into constants and refuses some
        return None
    return Case(
        name=case.name,
        model=model,
        feeds={first: case.feeds[first]},
        expected=expected,
        is_as_onnx_says=case.is_as_onnx_says,
    )


def spread(found: list[Case]) -> list[Case]:
    """Choose cases that can fail differently: of those with the same kinds of operators the first and the last.

    Passes look at kinds of operators and at how they are joined; 87 cases of one Attention differ in what Attention
    computes, which no pass touches. Of a layer that passes rewrite (it alone is the graph), every case is kept:
    paddings, strides, groups and transposed operands are different graphs to them. So are those of ``ALONE``.

    Chosen with branch coverage of ``compiler``: what the passes do with these is all that they do with all of them.
    """
    groups: dict[frozenset[str], list[int]] = {}
    for index, case in enumerate(found):
        kinds = frozenset(node.op_type for graph in rewrite.graphs(case.model.graph) for node in graph.node)
        groups.setdefault(kinds, []).append(index)
    chosen = [set(members) if kinds <= LAYERS else {members[0], members[-1]} for kinds, members in groups.items()]
    alone = {index for index, case in enumerate(found) if case.name in ALONE}
    assert len(alone) == len(ALONE)
    return [found[index] for index in sorted(alone.union(*chosen))]


def judge(run: Run, cases: list[Case], *, tolerance: float, options: dict[str, Any] | None = None) -> Outcome:
    """Send cases through a pass, one after another in this process.

    Args:
        tolerance: largest relative difference of an accepted case.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="penstock-cases-", dir=_memory_disk()) as directory:
        for case in cases:
            _judge(run, case, Path(directory), tolerance, options or {}, outcome)
    return outcome


def _judge(run: Run, case: Case, directory: Path, tolerance: float, options: dict[str, Any], outcome: Outcome) -> None:
    source, out = directory / "source.onnx", directory / "out"
    source.write_bytes(case.model.SerializeToString())
    out.mkdir()

    def batches() -> Iterator[dict[str, Any]]:
        yield copy.deepcopy(case.feeds)

    job = PassJob(source=source, out=out, target=targets.resolve("x86-64-vnni"), options=options, calibration=batches)
    try:
        result = run(job)
        found = answers(out / result.model, copy.deepcopy(case.feeds))
    except PenstockError as error:
        outcome.refused[case.name] = error.message
    else:
        apart = _apart(case.expected, found)
        if apart > tolerance:
            outcome.wrong[case.name] = f"{apart:.3g}"
        else:
            outcome.accepted.append(case.name)
    finally:
        shutil.rmtree(out)


def answers(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """What a pass's result answers: a model, or a chain of stages."""
    if path.suffix != ".json":
        return equivalence.Session(files.read(path, field="result")).run(feeds)
    import msgspec

    from compiler.passes.shard import Chain

    chain = msgspec.json.decode(path.read_bytes(), type=Chain)
    tensors = dict(feeds)
    for stage in chain.stages:
        session = equivalence.Session(files.read(path.with_name(stage.file), field="stage"))
        tensors |= session.run({port.name: tensors[port.name] for port in stage.inputs})
    return {name: tensors[name] for name in chain.outputs}


def _apart(expected: dict[str, Any], found: dict[str, Any]) -> float:
    try:
        return equivalence.difference(expected, found).relative
    except CompileError:
        return np.inf


def _memory_disk() -> str | None:
    """Thousands of small files: in memory where there is a place for it."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
