"""Two tiny Llamas that learned from Python's standard library, and what is built of them, once a run."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from compiler.generation.built_model import BuiltModel
from compiler.passes import genai
from compiler.passes.job import PassJob, PassResult
from compiler.recipe.targets import GENAI_CPU, resolve
from examples.tiny_llama import data, run
from examples.tiny_llama.run import Outcome, Plan, Shape
from tests.shared import kept_directory, made_once, one_at_a_time, run_directory

PLAN = Plan(
    cloud=Shape(hidden=96, layers=2, steps=110),
    edge=Shape(hidden=64, layers=1, steps=110),
    vocabulary=768,
    context=256,
    batch=8,
    sequence=64,
    training_chars=400_000,
    examined_chars=24_000,
    prompts=480,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """Hugging Face directories, and a place to build in."""

    cloud: Path
    edge: Path
    scratch: Path

    def build(self, source: Path, name: str, **options: object) -> tuple[BuiltModel, PassResult]:
        """Build into a new directory of that name."""
        out = self.scratch / name
        out.mkdir()
        made = genai.run(PassJob(source=source, out=out, target=resolve(GENAI_CPU), options=options))
        return BuiltModel(directory=out, toolchain=str(options.get("toolchain", "optimum"))), made


@pytest.fixture(scope="session")
def tiny(
    toolchain: Callable[[str], str], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tiny:
    """Trained once, and kept for the next session while the example's code stays the same."""
    toolchain("optimum")
    code = b"".join(Path(path).read_bytes() for path in (data.__file__, run.TRAIN))
    key = hashlib.sha256(code + repr(PLAN).encode() + sys.version.encode()).hexdigest()[:16]
    models = kept_directory(request.config, tmp_path_factory, f"tiny-llama-{key}")
    with one_at_a_time(models):
        trained = run.train(models, PLAN)
    return Tiny(cloud=trained["cloud"], edge=trained["edge"], scratch=tmp_path_factory.mktemp("built"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What the example's whole chain left and said."""

    directory: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def chain(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The example as a user runs it, on models that are trained already."""
    out = run_directory(tmp_path_factory, "chain")

    def make() -> Chain:
        for source in (tiny.cloud, tiny.edge):
            shutil.copytree(source, out / source.name)
        return Chain(directory=out, outcome=run.run(out, PLAN, lambda line: None))

    return made_once(out, make)


@pytest.fixture(scope="session")
def edge_fp32(chain: Chain) -> BuiltModel:
    return BuiltModel(directory=chain.directory / "edge-fp32")


@pytest.fixture(scope="session")
def edge_int4(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltModel, PassResult]:
    shared = run_directory(tmp_path_factory, "edge-int4")
    return made_once(shared, lambda: replace(tiny, scratch=shared).build(tiny.edge, "edge-int4", precision="int4"))


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    return data.examination(PLAN.examined_chars)
