"""The onnxruntime engine. The only module that imports onnxruntime to run models."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from penstock.artifact.manifests import EXECUTION_PROVIDERS
from penstock.errors import ArtifactError, Internal, InvalidInput, missing_extra
from penstock.policy.repeats import Repeats
from penstock.process.memory import TRIMMER
from penstock.process.telemetry import log
from penstock.runtime import EngineOptions
from penstock.runtime.arena import ArenaUse
from penstock.wire.tensors import Array, TensorSpec, bytes_elements, element_place, numpy_dtype

try:
    import onnxruntime as ort
except ImportError as error:  # the library is behind an extra
    raise missing_extra("onnxruntime", "agent", "running ONNX models") from error

VERSION: str = ort.__version__
"""Of the library, whichever of its packages brought it."""

_LOG = logging.getLogger(__name__)
_FATAL = 4
_SAID = Repeats(every_s=600.0, max_kinds=100)
_SAYING = threading.Lock()
_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(float16)": "FP16",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    **{f"tensor({kind}{bits})": f"{kind}{bits}".upper() for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_WHEELS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "qnn": "onnxruntime-qnn",
}
"""Which package of PyPI has a provider that onnxruntime's own has not; it takes the place of onnxruntime."""
_NUMBERED = frozenset({"cuda", "tensorrt"})
"""Providers that take the number of a device."""
_LOCALE = re.compile(r"Failed to construct locale with name:\s*([^\s:]+)")


_GIVE_BACK = ort.RunOptions()
_GIVE_BACK.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")


class OnnxEngine:
    """One onnxruntime session."""

    def __init__(self, session: ort.InferenceSession, *, usual_rows: int = 1) -> None:
        """``usual_rows``: a batch of so many never makes the session give memory back."""
        self._session: ort.InferenceSession | None = session
        self.inputs = tuple(_spec(arg) for arg in session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._arena = ArenaUse(sum(_row_bytes(spec) for spec in self.inputs) * usual_rows)
        self._text_inputs = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]
        self._text_outputs = frozenset(spec.name for spec in self.outputs if spec.datatype == "BYTES")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self._session is None:
            raise Internal("the engine is closed")
        names = self._output_names if outputs is None else list(outputs)
        if self._text_inputs:
            inputs = {**inputs, **{name: _decoded(name, inputs[name]) for name in self._text_inputs if name in inputs}}
        gives_back = self._arena.gives_back(sum([array.nbytes for array in inputs.values()]))
        try:
            answers = self._session.run(names, inputs, _GIVE_BACK if gives_back else None)
        except RUNTIME_ERRORS as error:
            raise _as_ours(error) from error
        finally:
            if gives_back:
                TRIMMER.ask()
        if self._text_outputs:
            answers = [_encoded(a) if name in self._text_outputs else a for name, a in zip(names, answers, strict=True)]
        return dict(zip(names, answers, strict=True))

    def close(self) -> None:
        self._session = None


def load(path: Path, options: EngineOptions) -> OnnxEngine:
    """Load an ONNX file.

    Raises:
        ArtifactError, InvalidInput: as :func:`open_session`.
    """
    # threads look out for work while a run lasts, and sleep between runs: the CPU is others' then
    entries = {"session.force_spinning_stop": "1"}
    session = open_session(path, options.provider, options.threads, entries, device_index=options.device_index)
    return OnnxEngine(session, usual_rows=options.usual_rows)


def open_session(
    path: Path, provider: str, threads: int, entries: Mapping[str, str], *, device_index: int = 0
) -> ort.InferenceSession:
    """Open an ONNX file with one of our names of providers, and entries of onnxruntime's session configuration.

    Args:
        device_index: of several devices of one kind; providers that know no such number run where they do.

    Raises:
        ArtifactError: not an ONNX model that this runtime accepts, or its provider is not in this onnxruntime or does
            not start. InvalidInput: unknown provider.
    """
    if provider not in EXECUTION_PROVIDERS:
        known = ", ".join(EXECUTION_PROVIDERS)
        raise InvalidInput(f"provider: unknown {provider!r}; known: {known}", field="provider")
    theirs = EXECUTION_PROVIDERS[provider]
    if not has_provider(provider):
        wheel = _WHEELS.get(provider)
        advice = f"; install {wheel} instead of onnxruntime" if wheel else ""
        raise ArtifactError(f"{path.name}: this onnxruntime {ort.__version__} has no {theirs}{advice}")
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = 1
    session_options.log_severity_level = _SEVERITY
    for key, value in entries.items():
        session_options.add_session_config_entry(key, value)
    try:
        asked = (theirs, {"device_id": str(device_index)}) if provider in _NUMBERED and device_index else theirs
        session = ort.InferenceSession(str(path), session_options, providers=[asked])
    except RUNTIME_ERRORS as error:
        reason = missing_locale(str(error)) or f"onnxruntime cannot load it: {str(error)[:500]}"
        raise ArtifactError(f"{path.name}: {reason}") from error
    if theirs not in session.get_providers():  # onnxruntime goes on with the CPU, and says so in its log alone
        raise ArtifactError(
            f"{path.name}: {theirs} did not start here, so that onnxruntime would run it on the CPU, where it was "
            "neither measured nor certified; its log says why (is there a driver for the device?)"
        )
    return session


def has_provider(name: str) -> bool:
    """Say whether this onnxruntime was built with an execution provider; its device may be missing all the same."""
    return EXECUTION_PROVIDERS.get(name) in ort.get_available_providers()


def missing_locale(text: str) -> str:
    """Say what to do where onnxruntime's error is about a locale that this machine has not; "" for any other error."""
    found = _LOCALE.search(text)
    if found is None:
        return ""
    return (
        f"its operator StringNormalizer wants the locale {found[1]!r}, which this machine does not have. Export the "
        'model with locale = "C.UTF-8", which Linux machines have without installing anything (skl2onnx: '
        'options={id(vectorizer): {"locale": "C.UTF-8"}}; "C" would lower ASCII letters only), or install '
        f"{found[1]} here and on every device"
    )


def _row_bytes(spec: TensorSpec) -> int:
    """Count the bytes of a row; a free dimension counts as 1, the least that may come."""
    return numpy_dtype(spec.datatype).itemsize * prod(abs(dim) for dim in spec.shape)


def _say(severity: int, category: str, log_id: str, where: str, text: str) -> None:
    """Log what onnxruntime says, in whatever thread. What fails is raised as well: none of this is an error of ours."""
    with _SAYING:
        kept_back = _SAID.heard(where, time.monotonic())
    if kept_back is not None:
        level = logging.ERROR if severity >= _FATAL else logging.INFO
        log(_LOG, level, "onnxruntime says", where=where, text=text, kept_back=kept_back)


if hasattr(ort, "set_default_logger_callback"):
    ort.set_default_logger_callback(_say)
    _SEVERITY = 2  # warnings
else:  # before 1.32 it wrote to stderr and nowhere else, where a client's errors must not fill the log
    _SEVERITY = _FATAL


def _decoded(name: str, array: Array) -> Array:
    """Make text of bytes: onnxruntime would take the ``b'...'`` that Python prints for the text.

    Raises:
        InvalidInput: an element is not UTF-8, or neither text nor bytes.
    """
    field = f"inputs.{name}"
    decoded = np.empty(array.size, dtype=object)
    for at, element in enumerate(bytes_elements(array, field=field)):
        try:
            decoded[at] = element.decode()
        except UnicodeDecodeError as error:
            place = element_place(field, at, array.shape)
            raise InvalidInput(
                f"{place}: byte {error.start} is {element[error.start]:#04x}, which is not UTF-8; the model takes "
                "text, encode it as UTF-8",
                field=place,
            ) from None
    return decoded.reshape(array.shape)


def _encoded(array: Array) -> Array:
    encoded = np.empty(array.shape, dtype=object)
    encoded.ravel()[:] = [str(item).encode() for item in array.ravel()]
    return encoded


def _as_ours(error: Exception) -> InvalidInput | Internal:
    text = str(error)[:500]
    # a ValueError is its Python layer's word for an input that is missing or that it cannot convert
    is_about_inputs = isinstance(error, ValueError) or "InvalidArgument" in type(error).__name__
    if is_about_inputs or "INVALID_ARGUMENT" in text:
        return InvalidInput(f"inputs: the model refuses them: {text}", field="inputs")
    return Internal(f"the model failed: {text}")


def _spec(arg: ort.NodeArg) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in arg.shape)
    if arg.type not in _DATATYPES:
        advice = '; it comes from a ZipMap: export without (skl2onnx: options={id(model): {"zipmap": False}})'
        raise ArtifactError(
            f"tensor {arg.name!r} has type {arg.type}, which cannot be served{advice if 'map(' in arg.type else ''}"
        )
    return TensorSpec(name=arg.name, datatype=_DATATYPES[arg.type], shape=shape)


# onnxruntime's exceptions share no base below Exception, and ValueError/RuntimeError come from its Python layer
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(ort.capi.onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    ValueError,
    RuntimeError,
)
