"""onnx and onnxruntime, which the extra ``compile`` brings: every module that works on graphs takes them from here.

Owns the error for an installation without them, and how quiet a session is. What only one pass needs (quantizers,
onnxslim) is imported there.
"""

from __future__ import annotations

import penstock.runtime  # noqa: F401  # says how quiet onnxruntime is, before it is imported
from penstock.errors import missing_extra

try:
    import onnx
    import onnxruntime as ort
    from google.protobuf.message import DecodeError, EncodeError
    from onnx import AttributeProto, TensorProto, helper, numpy_helper
except ImportError as error:  # the libraries are behind an extra
    raise missing_extra("onnx and onnxruntime", "compile", "compiling models") from error

__all__ = [
    "AttributeProto", "DecodeError", "EncodeError", "TensorProto", "helper", "numpy_helper", "onnx", "ort",
    "session_options",
]  # fmt: skip


def session_options(level: ort.GraphOptimizationLevel) -> ort.SessionOptions:
    """Return options of a session that writes no warnings and optimizes the graph as far as ``level``.

    Its threads wait instead of spinning: a compilation opens sessions by the hundred for a call or two each, and what
    their threads burn between calls is taken from whatever else runs here.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    options.graph_optimization_level = level
    return options
