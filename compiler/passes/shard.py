"""Pipeline stages of a model that one device cannot hold: one ONNX file each, and ``stages.json`` that chains them.

Decides the cuts by memory and by the bytes that cross them (``compiler.graph.stages``), and owns that the chain
answers exactly, bit by bit, as the whole does: a cut through operators that onnxruntime would have fused is found by
running both, and made elsewhere. That holds with all of its fusions (level "extended"). The layout that it gives to
convolutions on top of those depends on their neighbours and moves the last bit; the difference is in the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from compiler.graph import equivalence, extract, files, probe, rewrite, shapes, stages
from compiler.graph.equivalence import Feeds
from compiler.graph.extract import Stage
from compiler.graph.names import named
from compiler.graph.onnx_libraries import onnx
from compiler.graph.stages import DoesNotFit, Plan
from compiler.passes.job import PassJob, PassResult
from compiler.passes.options import decode
from penstock import wording
from penstock.errors import CompileError, ConfigError

DOCUMENT = "stages.json"
MAX_STAGES = 64
_ATTEMPTS = 24
"""Divisions tried until the chain is equal to the whole. Each that is not forbids its harmful cuts and ever more places
around them, because what onnxruntime fuses has some extent."""
_LAYOUT_TOLERANCE = 1e-4
"""Of an output's largest value, between chain and whole as devices run them."""
_MEBIBYTE = 2**20


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        stages: devices in a line.
        memory_mib: what each device has for weights and activations of one call, in MiB: one number for all, or one for
            each, in the order of the line. Left out: stages as even as least crossing bytes allow.
    """

    stages: Annotated[int, msgspec.Meta(ge=2, le=MAX_STAGES)] = 2
    memory_mib: tuple[Annotated[float, msgspec.Meta(gt=0)], ...] = ()


class Port(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A tensor that a stage takes.

    Attributes:
        source: the stage that makes it, -1 for an input of the whole.
        bytes: its size on the examples that the division was made for.
    """

    name: str
    source: int
    bytes: int


class StageEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A stage: its file, its place in the line of devices, what it takes and gives, and what it needs."""

    file: str
    device: int
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    memory_bytes: int


class Chain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """``stages.json``: run the stages in order; ``crossing_bytes`` go over each link between neighbours."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stages: tuple[StageEntry, ...]
    crossing_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    values: Mapping[str, onnx.ValueInfoProto]

    def bytes(self, name: str) -> int:
        """Return the size of a tensor; 0 for a sequence, which only the caller can give."""
        if name not in self.shapes:
            return 0
        return extract.size_bytes(self.shapes[name], self.types[name])


def run(job: PassJob) -> PassResult:
    """Write the stages.

    Raises:
        InvalidInput, ConfigError, CompileError: the model or the options are wrong, no division fits the memory (the
            message says what the most even one needs), or none is equal to the whole.
    """
    options = decode(job.options, Options, name="shard")
    limits = _limits(options)
    model = named(files.read(job.source, field="model"))
    rewrite.close(model)
    rewrite.lift_constants(model.graph)
    rewrite.drop_dead(model.graph)
    if len(model.graph.node) < options.stages:
        raise CompileError(f"shard: {options.stages} stages of a graph with {len(model.graph.node)} operators")
    asked = equivalence.examples(model, job.calibration, seed=job.seed)
    sizes = _sizes(model, asked[0])
    whole = equivalence.Session(model, level="fused")
    plan, parts = _equal_division(model, sizes, options.stages, limits, whole, asked)
    chain = _chain(model, plan, parts, sizes)
    by_default = equivalence.Session(model, level="device")
    apart = equivalence.same(by_default, _Chained(parts, "device"), asked, tolerance=_LAYOUT_TOLERANCE, what="shard")
    for entry, part in zip(chain.stages, parts, strict=True):
        files.write(part.model, job.out / entry.file)
    (job.out / DOCUMENT).write_bytes(msgspec.json.format(msgspec.json.encode(chain), indent=2) + b"\n")
    return _result(chain, apart.relative)


def _limits(options: Options) -> tuple[int, ...]:
    given = options.memory_mib
    if len(given) not in (0, 1, options.stages):
        raise ConfigError(
            f"shard: memory_mib has {len(given)} numbers for {options.stages} stages; give one for all, or one for each"
        )
    each = given * options.stages if len(given) == 1 else given
    return tuple(int(number * _MEBIBYTE) for number in each)


def _sizes(model: onnx.ModelProto, feeds: Feeds) -> _Sizes:
    types = dict(probe.typed(model))
    given = {name: value.shape for name, value in feeds.items() if isinstance(value, np.ndarray)}
    found = {**shapes.observed(model, feeds), **given}
    seen = {name: shape for name, shape in found.items() if types.get(name)}
    return _Sizes(shapes=seen, types=types, values=extract.crossing_values(model, seen, types))


def _equal_division(
    model: onnx.ModelProto,
    sizes: _Sizes,
    count: int,
    limits: Sequence[int],
    whole: equivalence.Session,
    asked: Sequence[Feeds],
) -> tuple[Plan, list[Stage]]:
    forbidden: set[int] = set(extract.uncuttable(model, sizes.shapes))
    apart = ""
    for attempt in range(_ATTEMPTS):
        work = extract.work_of(model, sizes.shapes, sizes.types, frozenset(forbidden))
        found = stages.plan(work, count, limits=limits)
        if isinstance(found, DoesNotFit):
            raise CompileError(f"shard: {_why_not(found, count, limits, apart)}")
        parts = extract.stages(model, found.bounds, sizes.values)
        apart = _difference(parts, whole, asked)
        if not apart:
            return found, parts
        harmful = _harmful(model, found, sizes, whole, asked) or set(found.bounds[1:-1])
        radius = 2 ** (attempt // 2) - 1
        forbidden.update(place for cut in harmful for place in range(cut - radius, cut + radius + 1))
    raise CompileError(
        f"shard: of {_ATTEMPTS} divisions none answers exactly as the whole does ({apart}); run the optimize pass "
        "first, or ask for fewer stages"
    )


def _why_not(found: DoesNotFit, count: int, limits: Sequence[int], apart: str) -> str:
    if found.largest_bytes is None:
        return f"the graph has no {count - 1} places at which it can be cut" + (f" ({apart})" if apart else "")
    allowed = ", ".join(f"{limit / _MEBIBYTE:.3g}" for limit in limits)
    return (
        f"no division into {count} stages fits {allowed} MiB; the most even one needs "
        f"{found.largest_bytes / _MEBIBYTE:.3g} MiB in its largest stage. Allow more, or more stages"
    )


def _harmful(
    model: onnx.ModelProto, plan: Plan, sizes: _Sizes, whole: equivalence.Session, asked: Sequence[Feeds]
) -> set[int]:
    """Return the cuts that by themselves change the answers."""
    return {
        cut
        for cut in plan.bounds[1:-1]
        if _difference(extract.stages(model, (0, cut, plan.bounds[-1]), sizes.values), whole, asked)
    }


def _difference(parts: Sequence[Stage], whole: equivalence.Session, asked: Sequence[Feeds]) -> str:
    """Say what the chain answers differently from the whole; "" when all bits are the same."""
    chain = _Chained(parts, "fused")
    for feeds in asked:
        expected, found = whole.run(feeds), chain.run(feeds)
        for name, value in expected.items():
            if not _is_equal(value, found[name]):
                return f"output {name!r}: {equivalence.difference({name: value}, found).text}"
    return ""


class _Chained:
    """Stages run one after another."""

    def __init__(self, parts: Sequence[Stage], level: equivalence.Level) -> None:
        self._parts = [(part.inputs, equivalence.Session(part.model, level=level)) for part in parts]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        tensors = dict(feeds)
        for inputs, session in self._parts:
            tensors |= session.run({name: tensors[name] for name in inputs})
        return tensors


def _is_equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        is_number = expected.dtype.kind in "fc"
        return expected.dtype == found.dtype and np.array_equal(expected, found, equal_nan=is_number)
    return equivalence.difference({"": expected}, {"": found}).relative == 0


def _chain(model: onnx.ModelProto, plan: Plan, parts: Sequence[Stage], sizes: _Sizes) -> Chain:
    maker = {name: index for index, part in enumerate(parts) for name in part.outputs}
    entries = tuple(
        StageEntry(
            file=f"stage-{index}.onnx",
            device=index,
            inputs=tuple(Port(name=n, source=maker.get(n, -1), bytes=sizes.bytes(n)) for n in part.inputs),
            outputs=part.outputs,
            weight_bytes=equivalence.weight_bytes(part.model),
            memory_bytes=memory,
        )
        for index, (part, memory) in enumerate(zip(parts, plan.memory_bytes, strict=True))
    )
    return Chain(
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        stages=entries,
        crossing_bytes=plan.crossing_bytes,
    )


def _result(chain: Chain, with_layouts: float) -> PassResult:
    largest = wording.size(max(entry.memory_bytes for entry in chain.stages))
    return PassResult(
        model=DOCUMENT,
        summary=(
            f"{len(chain.stages)} stages, the largest of {largest}; {wording.size(sum(chain.crossing_bytes))} cross; "
            "bit-equal to the whole"
        ),
        facts={
            "stages": [msgspec.to_builtins(entry) for entry in chain.stages],
            "crossing_bytes": list(chain.crossing_bytes),
            "largest_difference_with_layouts": float(f"{with_layouts:.1e}"),
        },
    )
