"""What the two TensorRT runners share: parse an ONNX file, build an engine, and say what went wrong in a user's words.

``trt`` is the module: ``tensorrt`` or ``tensorrt_rtx_bindings``, whose interfaces are the same as far as this goes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from protocol import InputError, progress

_MAX_ERRORS_KEPT = 20
_MAX_ERROR_CHARS = 600
_BUILDING_FROM = 0.05  # before it: reading and parsing
_REPORT_STEP = 0.01

_PLACE = re.compile(r"\.? In \w+ at \S+?:\d+\)?")
_WRAPPING = re.compile(r"^.*?Error Code \d+: [\w ]+ \(")
_INT32_BIAS = re.compile(r"input has type Int32 but must have type")
_NO_FP32_ON_TURING = re.compile(r"Turing \(SM75\): FP32 GEMM")


def build(trt: Any, job: dict[str, Any], configure: Any) -> dict[str, Any]:
    """Build ``job["source"]`` into ``job["engine"]``.

    ``configure(builder, config)`` sets what only one of the two has; what it returns is called with the configuration
    after the build and adds to the facts.

    Raises:
        InputError: the model cannot be built; the message names the node and the operator.
    """
    words = job["words"]
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    config.builder_optimization_level = job["optimization_level"]
    finish = configure(builder, config)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    progress(0.0, "parsing")
    if not parser.parse_from_file(job["source"]):
        raise InputError(_parser_message([parser.get_error(i) for i in range(parser.num_errors)], words))
    _set_profile(builder, config, network, job["profiles"], words)
    config.progress_monitor = monitor = make_monitor(trt)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(_build_message(logger.errors, words))
    data = bytes(plan)
    Path(job["engine"]).write_bytes(data)
    del monitor
    return {
        "version": trt.__version__,
        "layers": network.num_layers,
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "flags": _flags(trt, config),
        "diagnostics": _diagnostics(trt, logger, data),
        **finish(config),
    }


def make_logger(trt: Any) -> Any:
    """Make a logger that keeps errors for the message, and writes warnings and errors to the log."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                sys.stderr.write(message + "\n")
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors = [*self.errors, message][-_MAX_ERRORS_KEPT:]

    return Logger()


def make_monitor(trt: Any) -> Any:
    """Make a monitor that reports the builder's nested phases as one share; a build of a large model takes minutes."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.phases = Phases()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, steps)

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)

        def step_complete(self, name: str, step: int) -> bool:
            self.phases.step(name, step)
            return True

    return Monitor()


class Phases:
    """Phases under way, the outermost first: what share of the whole is done. It never goes back."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int]] = {}  # name: steps done, steps
        self._reported = 0.0

    def start(self, name: str, steps: int) -> None:
        self._open[name] = (0, max(1, steps))

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    def step(self, name: str, step: int) -> None:
        if name in self._open:
            self._open[name] = (step + 1, self._open[name][1])
        share = _BUILDING_FROM + (1 - _BUILDING_FROM) * self.share()
        if share >= self._reported + _REPORT_STEP:
            self._reported = share
            progress(share, name.lower())

    def share(self) -> float:
        """Return the share that is done: each phase fills the step of the phase around it that is under way."""
        share, width = 0.0, 1.0
        for done, steps in self._open.values():
            width /= steps
            share += done * width
        return min(1.0, share)


def _strongly_typed(trt: Any) -> int:
    """Return the flag that keeps the model's types, so that the builder chooses none; newer versions know nothing
    else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_profile(builder: Any, config: Any, network: Any, profiles: dict[str, Any], words: str) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise InputError(
                f"input {tensor.name!r} decides about shapes, which {words} cannot build an engine for; export the "
                "model with that input as a constant"
            )
        least, best, most = profiles[tensor.name]
        profile.set_shape(tensor.name, least, best, most)
    if config.add_optimization_profile(profile) < 0:
        raise InputError(f"{words} refuses the shapes {profiles}; check the options batch and dims")


def _parser_message(errors: list[Any], words: str) -> str:
    """Return the first error that names a node; the others follow from it, or wrap it."""
    error = next((error for error in errors if error.node() >= 0), errors[0] if errors else None)
    if error is None:
        return f"{words} cannot read the model, and does not say why"
    if error.node() < 0:
        return f"{words} cannot read the model: {_plain(error.desc())}"
    operator = error.node_operator()
    name = error.node_name() or str(error.node())
    where = f"node {name!r} ({operator})"
    if error.code().name == "UNSUPPORTED_NODE":
        return f"{where}: {words} has no such operator, or not with these types and attributes; use another target"
    hint = ""
    if operator == "DequantizeLinear" and _INT32_BIAS.search(error.desc()):
        hint = f"; biases must stay in float for {words}: quantize for this target, not for a CPU"
    return f"{where}: {_plain(error.desc()).removeprefix(f'{name}: ')}{hint}"


def _build_message(errors: list[str], words: str) -> str:
    if not errors:
        return f"{words} could not build the engine, and does not say why"
    if any(_NO_FP32_ON_TURING.search(error) for error in errors):
        return (
            f"{words} multiplies float32 matrices on compute capability 8.0 and later only; leave 7.5 out of "
            "compute_capabilities, or build from an fp16 model"
        )
    return f"{words} could not build the engine: {_plain(errors[0])}"


def _plain(text: str) -> str:
    """Remove the library's own source lines, and what wraps the sentence that counts."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.startswith(("Invalid Node", "[checkMacros"))
    ]
    line = _PLACE.sub("", lines[0]) if lines else text
    return _WRAPPING.sub("", line).strip()[:_MAX_ERROR_CHARS]


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name.lower(), "shape": list(tensor.shape)}


def _flags(trt: Any, config: Any) -> list[str]:
    return sorted(name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag))


def _diagnostics(trt: Any, logger: Any, data: bytes) -> list[str]:
    """Say what the runtime has against the engine. Without a GPU it calls every engine invalid, and gives no reason."""
    runtime = trt.Runtime(logger)
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(data)
    return sorted(name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(found) & int(bit))
