"""How a variant is run, in the words of a server that is asked for a model's config. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.artifact.manifests import Variant
from penstock.wire.inference import ModelConfig, ModelMetadata

_ON_GPU = frozenset({"cuda", "tensorrt"})


def config_of(
    variant: Variant,
    metadata: ModelMetadata,
    *,
    instances: int = 1,
    max_delay_s: float = 0.0,
    in_parts: bool = False,
    versions: str = "all",
    max_batch_rows: int | None = None,
    providers: Sequence[str] = (),
) -> ModelConfig:
    """Make the config of a version that a variant runs.

    Args:
        instances: engines that answer.
        max_delay_s: how long rows wait for others.
        in_parts: whether it answers token by token.
        versions: which versions of the model are served.
        max_batch_rows: fewer than the variant allows, where that is set.
        providers: in place of the variant's, where they are set.
    """
    spec = variant.spec
    provider = providers[0] if providers else spec.provider
    tensors = (*metadata.inputs, *metadata.outputs)
    has_batch = not in_parts and all(tensor.shape[:1] == (-1,) for tensor in tensors)
    return ModelConfig(
        metadata=metadata,
        backend=metadata.platform.partition("_")[0],
        max_batch_rows=min(spec.max_batch, max_batch_rows or spec.max_batch) if has_batch else 0,
        instances=instances,
        on_gpu=provider in _ON_GPU,
        max_delay_s=max_delay_s,
        in_parts=in_parts,
        versions=versions,
        facts={
            "variant": variant.digest,
            "target": spec.target,
            "precision": spec.precision,
            "execution_provider": provider,
        },
    )
