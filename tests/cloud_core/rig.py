"""What the core's serving tests share: a virtual clock, engines that obey a test, tiny ONNX models, a data plane."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx
from onnx import helper

from cloud_core.app import Core
from cloud_core.registry.registry import Registry
from cloud_core.serving.controller import Controller
from cloud_core.serving.counters import Measures
from cloud_core.serving.dataplane import DataPlane
from cloud_core.serving.replica import Replica
from cloud_core.settings import CoreSettings, ServingSettings, TenantSettings
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Role, VariantSpec
from penstock.errors import Internal
from penstock.policy.service_time import ServiceTime, Timing
from penstock.registry.transfer import RegistryClient, push
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest
from penstock.wire.tensors import Array, TensorSpec
from tests import waiting
from tests.factories import X, onnx_model, variant_spec

T = TypeVar("T")


class _VirtualSelector(selectors.DefaultSelector):
    """Where the loop would sleep, its clock jumps instead. Threads are not waited for: use :class:`LoopExecutor`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _VirtualSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def run_virtual(test: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a loop whose time passes only while nothing else can happen."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(test())


class LoopExecutor(Executor):
    """In place of a replica's thread: runs jobs on the loop, but only while it is open."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: list[Callable[[], None]] = []
        self._is_open = True

    def close(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        for job in self._held:
            self._loop.call_soon(job)
        self._held.clear()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        if self._is_open:
            self._loop.call_soon(job)
        else:
            self._held.append(job)
        return future


@dataclass
class FakeEngine:
    """Doubles its input ``x``; refuses batches that hold a NaN."""

    inputs: tuple[TensorSpec, ...] = (X,)
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)
    batches: list[int] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    is_closed: bool = False

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        x = inputs["x"]
        self.batches.append(x.shape[0])
        if np.isnan(x.astype(float)).any():
            raise Internal("the model failed: NaN")
        self.seen.extend(float(value) for value in x[:, 0])
        return {"y": x * np.float32(2)}

    def close(self) -> None:
        self.is_closed = True


def replica_of(
    engine: FakeEngine, *, max_batch: int = 4, inline: bool = True, service_s: float = 0.0, one_row_s: float = 1.0
) -> Replica:
    """A replica whose warm-up found a full batch to take no time (inline) or so long that it is run elsewhere."""
    timing = Timing(
        service=ServiceTime(fixed_s=service_s),
        is_batchable=True,
        one_row_s=one_row_s,
        full_batch_s=1e-6 if inline else 1.0,
    )
    return Replica(engine, LoopExecutor(), timing=timing, max_batch=max_batch, inline_below_s=1e-3)


def rows(*values: float) -> Array:
    """FP32 [len(values), 4], each row filled with one value."""
    return np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)


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
        with self.plane.admit(context, model, version) as ticket:
            return await self.plane.infer(ticket, context, request)

    def context(self, *, token: str = "") -> RequestContext:
        """Of a request that arrives now."""
        return RequestContext(
            arrived_at=asyncio.get_running_loop().time(), tenant=self.plane.authenticate(f"Bearer {token}")
        )


def rig_of(registry: Registry, settings: ServingSettings | None = None, tenants: Sequence[TenantSettings] = ()) -> Rig:
    """Must be called with a running loop."""
    settings = settings or ServingSettings()
    now = asyncio.get_running_loop().time
    measures = Measures()
    controller = Controller(registry, settings, measures, now)
    return Rig(registry, controller, DataPlane(controller, registry, measures, settings, tenants, now), measures)


def core_settings(data_dir: Path, **changes: Any) -> CoreSettings:
    """Settings of a core on free loopback ports; ``changes`` are sections or values."""
    tree: dict[str, Any] = {"data_dir": str(data_dir), "http": {"port": 0}, "grpc": {"port": 0}}
    for name, value in changes.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return msgspec.convert(tree, CoreSettings)


async def start_core(directory: Path, **changes: Any) -> Core:
    """A real core under ``directory`` that serves ``mlp:v1``, pushed over HTTP."""
    core = await Core.start(core_settings(directory / "core", **changes))
    layout = onnx_layout(directory, "v1")

    def send() -> None:
        token = changes["tenants"][0]["token"] if "tenants" in changes else ""
        with RegistryClient(f"http://127.0.0.1:{core.http_port}", token=token) as client:
            push(client, layout)

    await asyncio.to_thread(send)
    await soon(lambda: core.plane.model_state("mlp").state == "READY")
    return core


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until ``condition`` holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never became true")


async def soon(condition: Callable[[], bool]) -> None:
    """The same where sockets and threads are real and take their time."""
    await waiting.until("the condition", condition)


async def outcome(awaitable: Awaitable[T]) -> T | BaseException:
    """The result, or the error that was raised."""
    return (await asyncio.gather(awaitable, return_exceptions=True))[0]
