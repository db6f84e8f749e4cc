"""The port for what answers the rows of a batch, with its two forms: a server, and an artifact on this machine.

Either is pinned to one version when it is opened: a default that moves while a run works changes none of its rows.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from penstock.artifact.layout import Layout
from penstock.artifact.tensor_names import metadata_of
from penstock.artifact.variant_files import verified_files
from penstock.errors import InvalidInput
from penstock.hosting.loading import Loaded, load
from penstock.process.machine import usable_cpus
from penstock.runtime import TEXT_ENGINES
from penstock.sdk.aio import AsyncClient
from penstock.wire.inference import ModelMetadata
from penstock.wire.tensors import Array

_TRIES = 8


class Answerer(Protocol):
    """What answers rows.

    Attributes:
        metadata: of the model in that version.
        version: the digest of the artifact, or what the server calls its version where it tells no digest.
    """

    @property
    def metadata(self) -> ModelMetadata: ...
    @property
    def version(self) -> str: ...

    async def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Answer rows.

        Raises:
            InvalidInput: it takes no such rows. PenstockError: it cannot answer.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A server that is asked.

    Attributes:
        timeout_s: of a request, all its tries together.
    """

    target: str
    token: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Server:
    client: AsyncClient
    metadata: ModelMetadata
    version: str

    async def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        found = await self.client.infer(self.metadata.name, inputs, version=self.version)
        return found.outputs


@asynccontextmanager
async def of_server(asked: Asked, model: str, version: str) -> AsyncIterator[Answerer]:
    """Open a model of a core, or of another server of the inference protocol.

    Args:
        version: a tag, a digest, or "" for what is the default now.

    Raises:
        NotFound: no such model or version. Unavailable: nobody answers there. PenstockError: as the client says.
    """
    client = AsyncClient(
        asked.target, timeout=asked.timeout_s, token=asked.token or None, retries=_TRIES, coalesce=False
    )
    async with client:
        metadata = await client.metadata(model, version=version)
        pinned = metadata.properties.get("digest") or version or metadata.properties.get("default_version", "")
        yield _Server(client, metadata, pinned)


class _Engine:
    def __init__(self, loaded: Loaded, metadata: ModelMetadata, version: str) -> None:
        self.metadata, self.version = metadata, version
        self._loaded = loaded
        self._turn = asyncio.Lock()

    async def infer(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        async with self._turn:
            return await asyncio.to_thread(self._run, inputs)

    def _run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        rows, most = len(next(iter(inputs.values()))), self._loaded.max_batch
        if rows <= most:
            return self._loaded.engine.run(inputs)
        done = [
            self._loaded.engine.run({name: array[start : start + most] for name, array in inputs.items()})
            for start in range(0, rows, most)
        ]
        return {name: np.concatenate([one[name] for one in done]) for name in done[0]}


@asynccontextmanager
async def of_layout(path: Path, role: str, threads: int) -> AsyncIterator[Answerer]:
    """Load a variant of an artifact on this machine; it proves itself as it does on a device and in a core.

    Args:
        role: of the variant, ``cloud`` or a device's.
        threads: of the engine; 0 for as many as make it faster.

    Raises:
        ArtifactError: damaged, no such variant, or it does not compute what was compiled. InvalidInput: its model
            makes texts. MissingExtra: its engine is not installed.
    """
    layout = Layout(path)
    artifact = layout.artifact()
    variant = artifact.variant(role)
    spec = variant.spec
    if spec.engine in TEXT_ENGINES:
        raise InvalidInput(
            f"{path}: {artifact.model} makes texts; batches are for models that answer rows", field="model"
        )
    with tempfile.TemporaryDirectory(prefix="penstock-batch-") as scratch:
        files = await asyncio.to_thread(verified_files, variant, layout.blobs, Path(scratch))
        loaded = await asyncio.to_thread(load, spec, files, threads=threads, cpus=usable_cpus())
        try:
            metadata = metadata_of(
                spec,
                name=artifact.model,
                versions=(layout.tag,),
                platform=spec.engine,
                inputs=loaded.engine.inputs,
                outputs=spec.answers,
            )
            # the cloud's variant is what a core would answer with, so that its version has the same name
            yield _Engine(loaded, metadata, artifact.digest if role == "cloud" else f"{artifact.digest}/{role}")
        finally:
            loaded.engine.close()
