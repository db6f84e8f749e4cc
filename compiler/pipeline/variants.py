"""What ships for each rung and target: the chosen candidate made packable, and its figures on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import pack
from compiler.artifact.evaluation import Share, Speed, VariantFigures
from compiler.artifact.pack import Packable
from compiler.data import Split
from compiler.graph import row_independence
from compiler.measure import quality, side_by_side
from compiler.pipeline.cached_steps import Model, Workshop, engine
from compiler.pipeline.candidates import Built, Setting
from compiler.pipeline.inputs import Ladder
from compiler.progress import Doing, Steps
from compiler.recipe.recipes import CLOUD
from penstock.artifact.layout import VariantDraft
from penstock.wire.tensors import Array

_DATA_SUFFIX = ".data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A variant that ships. ``graph`` is the ONNX model that answers for it here: itself, or what its engine is of."""

    setting: Setting
    built: Built
    graph: Model
    draft: VariantDraft


def ship(shop: Workshop, steps: Steps, ladder: Ladder, setting: Setting, built: Built) -> Shipped:
    """Make the chosen candidate packable; for TensorRT targets that builds the engine.

    Raises:
        CompileError, MissingToolchain: the engine cannot be built here.
    """
    graph, target = built.chosen.model, built.target
    is_certified = ladder.recipe.model.task == "classification"  # only then does it matter what a score was
    assert graph is not None, "what was chosen was made"
    packed = graph
    if target.engine in ("tensorrt", "tensorrt-rtx"):
        with steps(f"{setting.what} engine") as doing:
            options = setting.rung.section.passes.get(target.engine, {})
            packed = shop.apply(
                target.engine, graph, doing, target=target, options=options, calibration=ladder.data.ranges
            ).model
            doing.note(packed.how)
    packable = Packable(
        role=setting.rung.role,
        target=target.name,
        precision=built.chosen.trial.precision,
        weights=packed.path,
        onnx=engine(graph.path),
        engine=target.engine,
        provider=target.provider,
        files={**_beside(packed), **_travelling(ladder, setting.rung.role)},
        max_batch=1 if is_certified and row_independence.affect_each_other(graph.path) else 0,
    )
    return Shipped(
        setting=setting,
        built=built,
        graph=graph,
        draft=pack.draft(ladder.described, packable, pack.edge_golden_inputs(ladder.data.ranges)),
    )


def cloud_draft(ladder: Ladder) -> VariantDraft:
    """The cloud variant, as it came.

    Raises:
        CompileError: it answers its golden inputs with NaN or infinities.
    """
    packable = Packable(
        role=CLOUD,
        target=pack.CLOUD_TARGET,
        precision="fp32",
        weights=ladder.cloud.path,
        onnx=engine(ladder.cloud.path),
        files=_travelling(ladder, CLOUD),
    )
    return pack.draft(
        ladder.described, packable, pack.cloud_golden_inputs(ladder.inputs, ladder.recipe.model.input_range)
    )


class Tested:
    """Answers and figures of models on the test split, against labels or the cloud."""

    def __init__(self, shop: Workshop, ladder: Ladder, doing: Doing) -> None:
        self._shop = shop
        self._ladder = ladder
        self._doing = doing
        self._cloud = self.answers(ladder.cloud, CLOUD)

    def answers(self, model: Model, what: str, *, split: Split | None = None) -> Array:
        """The scored output on the test split (or another)."""
        recipe, data = self._ladder.recipe, self._ladder.data
        return self._shop.answers(
            model,
            data.test if split is None else split,
            self._doing,
            output=self._ladder.output,
            max_batch=recipe.model.max_batch,
            what=what,
        )

    def figures(
        self, model: Model, *, role: str, target: str, precision: str, digest: str, size_bytes: int, speed: Speed | None
    ) -> VariantFigures:
        """What one model does on the test split."""
        task, test = self._ladder.recipe.model.task, self._ladder.data.test
        answered = self.answers(model, f"{role}/{target}")
        mask = test.inputs.get("attention_mask")
        return VariantFigures(
            role=role,
            target=target,
            precision=precision,
            digest=digest,
            size_bytes=size_bytes,
            quality=self._share(answered, labelled=True),
            agreement_cloud=self._share(answered, labelled=False),
            ranking=quality.ranking_kept(answered, self._cloud, mask) if task == "embedding" else None,
            speed=speed,
        )

    def _share(self, answered: Array, *, labelled: bool) -> Share:
        test = self._ladder.data.test
        labels = test.labels if labelled else None
        task = self._ladder.recipe.model.task
        return side_by_side.share(quality.good_rows(task, answered, self._cloud, labels=labels, inputs=test.inputs))


def draft_size(draft: VariantDraft) -> int:
    """Bytes of the model as it is packed."""
    return draft.weights.stat().st_size + sum(path.stat().st_size for path in draft.files.values())


def _beside(model: Model) -> Mapping[str, Path]:
    return {path.name: path for path in model.files}


def _travelling(ladder: Ladder, role: str) -> Mapping[str, Path]:
    """Tokenizer and the like of the source model; its weights have become the variant's own."""
    source = ladder.sources[role].model
    return {path.name: path for path in source.files if path.suffix != _DATA_SUFFIX or role == CLOUD}
