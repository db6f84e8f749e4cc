"""Rows at other sizes: cut or begun again, in all inputs that share the dimension, and without labels."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from compiler.data import Split, buckets, calls
from compiler.recipe.shapes_section import Dimension
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec

LENGTH = Dimension(name="length", sizes=(2, 3, 5), axes=(("ids", 1), ("mask", 1)))
SPECS = [TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("ids", "mask")]


def split() -> Split:
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    return Split(name="tune", inputs={"ids": ids, "mask": ids % 2}, labels=np.array([0, 1]), dimensions=(LENGTH,))


def test_rows_are_cut_or_begin_again_in_all_inputs_at_once() -> None:
    (shorter, short), (longer, long) = buckets.others(split())
    assert (shorter, longer) == ("length 2", "length 5")
    assert short.inputs["ids"].tolist() == [[1, 2], [4, 5]]
    assert long.inputs["ids"].tolist() == [[1, 2, 3, 1, 2], [4, 5, 6, 4, 5]]
    assert (long.inputs["mask"] == long.inputs["ids"] % 2).all()
    assert long.labels is None


def test_every_batch_comes_at_every_size_its_own_first() -> None:
    seen = [batch["ids"].shape for batch in calls.at_each_size(split(), 1, SPECS)]
    assert seen == [(1, 3), (1, 2), (1, 5)] * 2


def test_rows_without_such_dimensions_have_no_other_size() -> None:
    plain = Split(name="tune", inputs=split().inputs, labels=None)
    assert list(buckets.others(plain)) == []
    assert plain.digest != split().digest


def test_sizes_that_make_the_rows_too_large_are_refused_before_any_is_made() -> None:
    huge = replace(split(), dimensions=(replace_sizes(LENGTH, (3, 2**63)),))
    with pytest.raises(InvalidInput, match=r"2 examples of length 9223372036854775808 are .* at most 4.3 GB"):
        buckets.check_room(huge, 4 * 1024**3)
    buckets.check_room(split(), 2 * 2 * 5 * 8)
    with pytest.raises(InvalidInput, match=r"are 160 B, at most 159 B \(data.limits.max_bytes\)"):
        buckets.check_room(split(), 2 * 2 * 5 * 8 - 1)
    buckets.check_room(replace(split(), dimensions=()), 1)


def replace_sizes(dimension: Dimension, sizes: tuple[int, ...]) -> Dimension:
    return msgspec.structs.replace(dimension, sizes=sizes)


def test_specs_say_the_sizes_of_the_dimensions_that_have_some() -> None:
    ids, rate = buckets.with_sizes([SPECS[0], TensorSpec(name="rate", datatype="FP32", shape=())], [LENGTH])
    assert ids.sizes == ((), (2, 3, 5))
    assert not rate.sizes
