"""Strategies and cases that the tests of both wires share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from penstock.wire.tensors import DATATYPES, Array, numpy_dtype


def arrays(*, text: bool) -> st.SearchStrategy[Array]:
    """Arrays of every datatype; with ``text`` only what JSON can say (finite numbers, UTF-8)."""
    shapes = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    elements = st.text(max_size=8).map(str.encode) if text else st.binary(max_size=8)

    def of(datatype: str) -> st.SearchStrategy[Array]:
        if datatype == "BYTES":
            return npst.arrays(np.dtype(object), shapes, elements=elements)
        dtype = numpy_dtype(datatype)
        if dtype.kind == "f":
            limits = {"allow_nan": not text, "allow_infinity": not text}
            return npst.arrays(dtype, shapes, elements=npst.from_dtype(dtype, **limits))
        return npst.arrays(dtype, shapes)

    return st.sampled_from(DATATYPES).flatmap(of)


def same(left: Array, right: Array) -> bool:
    """Equal in dtype, shape and every bit; NaN equals itself."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left.tolist() == right.tolist() if left.dtype.kind == "O" else left.tobytes() == right.tobytes()


def all_same(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    return list(left) == list(right) and all(same(left[name], right[name]) for name in left)


parameters = st.dictionaries(
    st.sampled_from(["priority", "explain", "note", "weight"]),
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    max_size=3,
)
