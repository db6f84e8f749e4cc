"""What the core's serving tests share: tiny ONNX models, a data plane over a real registry, a whole core."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper

from cloud_core.app import Core
from cloud_core.observing.finished import Finished
from cloud_core.registry.registry import Registry
from cloud_core.serving.controller import Controller
from cloud_core.serving.counters import Measures
from cloud_core.serving.dataplane import DataPlane
from cloud_core.settings import CoreSettings, ServingSettings
from cloud_core.tenants.callers import Callers
from cloud_core.tenants.settings import TenantSettings
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Role, VariantSpec
from penstock.hosting.generation.managed.vllm import ManagedServers
from penstock.policy.token_budget import Moment
from penstock.process.telemetry import LogSettings
from penstock.registry.transfer import RegistryClient, push
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest
from penstock.wire.tensors import Array
from tests import waiting
from tests.factories import onnx_model, variant_spec


def write_mlp(path: Path, *, seed: int = 0, hidden: int = 8, features: int = 4, classes: int = 3) -> Path:
    """A two-layer perceptron x [-1, features] -> logits [-1, classes] with random weights."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.normal(size=(features, hidden)).astype(np.float32),
        "b1": rng.normal(size=hidden).astype(np.float32),
        "w2": rng.normal(size=(hidden, classes)).astype(np.float32),
        "b2": rng.normal(size=classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
    ]
    model = onnx_model(nodes, weights, inputs={"x": ["n", features]}, outputs={"logits": ["n", classes]})
    onnx.save(model, path)
    return path


def onnx_spec(model: str, role: Role = "cloud", **changes: Any) -> VariantSpec:
    return variant_spec(role, **{"model": model, "target": "cpu", "max_batch": 16} | changes)


def onnx_layout(root: Path, tag: str, *, model: str = "mlp", seed: int = 0, **changes: Any) -> Layout:
    """A layout with one ONNX variant for the cloud; another seed, another digest."""
    weights = write_mlp(root / f"{model}-{tag}-{seed}.onnx", seed=seed)
    layout = Layout.create(root / f"layout-{model}-{tag}-{seed}")
    layout.pack([VariantDraft(spec=onnx_spec(model, **changes), weights=weights)], tag=tag)
    return layout


@dataclass
class Rig:
    """A data plane over a real registry; :meth:`settle` brings into memory what should be there."""

    registry: Registry
    controller: Controller
    plane: DataPlane
    measures: Measures

    async def settle(self) -> None:
        await self.controller.reconcile()
        self.controller.settled.set()

    async def infer(
        self,
        x: Array,
        *,
        model: str = "mlp",
        version: str = "",
        token: str = "",
        timeout_s: float | None = None,
        **more: Any,
    ) -> Any:
        request = InferRequest(model=model, version=version, inputs={"x": x}, **more)
        context = self.context(token=token).within(timeout_s)
        with self.plane.admit(context, model, version, x.nbytes) as ticket:
            return await self.plane.infer(ticket, context, request)

    def context(self, *, token: str = "") -> RequestContext:
        """Of a request that arrives now."""
        return RequestContext(
            arrived_at=asyncio.get_running_loop().time(), tenant=self.plane.authenticate(f"Bearer {token}")
        )


class Told:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.requests: list[Finished] = []

    def finished(self, request: Finished) -> None:
        self.requests.append(request)


def rig_of(
    registry: Registry,
    settings: ServingSettings | None = None,
    tenants: Sequence[TenantSettings] = (),
    log_settings: LogSettings | None = None,
    managed: ManagedServers | None = None,
) -> Rig:
    """Must be called with a running loop."""
    settings = settings or ServingSettings()
    now = asyncio.get_running_loop().time
    measures = Measures()
    callers = Callers(tenants, lambda: Moment(now=now(), at=time.time())) if tenants else None
    controller = Controller(
        registry,
        settings,
        measures,
        now,
        log_settings=log_settings,
        managed=managed,
        shares=(lambda: None) if callers is None else callers.fair_shares,
    )
    return Rig(registry, controller, DataPlane(controller, registry, measures, settings, callers, now), measures)


def core_settings(data_dir: Path, **changes: Any) -> CoreSettings:
    """Settings of a core on free loopback ports; ``changes`` are sections or values."""
    tree: dict[str, Any] = {"data_dir": str(data_dir), "http": {"port": 0}, "grpc": {"port": 0}}
    for name, value in changes.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return msgspec.convert(tree, CoreSettings)


async def start_core(directory: Path, **changes: Any) -> Core:
    """A real core under ``directory`` that serves ``mlp:v1``, pushed over HTTP."""
    core = await Core.start(core_settings(directory / "core", **changes))
    token = changes["tenants"][0].get("token", "") if "tenants" in changes else ""
    scheme = "https" if "tls" in changes else "http"  # trusted by what the environment says
    await push_to(core, onnx_layout(directory, "v1"), token=token, scheme=scheme)
    return core


async def push_to(core: Core, layout: Layout, *, token: str = "", scheme: str = "http") -> None:
    """Push a layout over HTTP, and wait until its model can be asked."""

    def send() -> None:
        with RegistryClient(f"{scheme}://127.0.0.1:{core.http_port}", token=token) as client:
            push(client, layout)

    await asyncio.to_thread(send)
    model = layout.artifact().model
    await soon(lambda: core.plane.model_state(model).state == "READY")


@contextmanager
def core_in_a_thread(directory: Path, **changes: Any) -> Iterator[Core]:
    """The same on an event loop in a thread of its own, for clients that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="core")
    thread.start()
    try:
        core = asyncio.run_coroutine_threadsafe(start_core(directory, **changes), loop).result()
        try:
            yield core
        finally:
            asyncio.run_coroutine_threadsafe(core.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def soon(condition: Callable[[], bool]) -> None:
    """The same where sockets and threads are real and take their time."""
    await waiting.until("the condition", condition)
