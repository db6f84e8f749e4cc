"""The table [edge.source]: nothing is required, and wrong values are refused by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from compiler.recipe import source_section
from compiler.recipe.source_section import SourceSection
from penstock.errors import ConfigError


def test_nothing_is_required() -> None:
    source_section.check(msgspec.convert({}, SourceSection), field="edge.source")
    text = {"inputs": {"x": {"shape": [-1, 1], "datatype": "BYTES"}}}
    source_section.check(msgspec.convert(text, SourceSection), field="edge.source")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"opset": 9}, "edge.source.opset: 9 given, expected 13 to 64"),
        ({"tolerance": 0}, "edge.source.tolerance: 0 given, expected above 0"),
        ({"tolerance": 2}, "edge.source.tolerance: 2 given"),
        ({"inputs": {"x": {"shape": [2, 3]}}}, r"edge.source.inputs.x.shape: \[2, 3\] given; the first dimension"),
        ({"inputs": {"x": {"shape": []}}}, "the first dimension is the batch and must be -1"),
        ({"inputs": {"x": {"shape": [-1, 0]}}}, "dimensions are 1 or more, or -1"),
        ({"inputs": {"x": {"shape": [-1], "datatype": "FLOAT"}}}, "unknown datatype 'FLOAT'"),
        ({"inputs": {"x": {"shape": [-1], "datatype": "BYTES", "low": 1}}}, "low and high are for numbers"),
        ({"inputs": {"x": {"shape": [-1], "low": 3, "high": 3}}}, "low 3 is not below high 3"),
        ({"max_new_tokens": -1}, "edge.source.max_new_tokens: -1 given, expected 0 to 4096"),
        ({"max_new_tokens": 5000}, "expected 0 to 4096"),
        ({"prompt": [3, -1]}, r"edge.source.prompt: \[3, -1\] given, expected at most 64 tokens"),
        ({"prompt": [1] * 65}, "expected at most 64 tokens"),
        ({"dynamic": {"x": [0]}}, "count from 1, dimension 0 is always free"),
    ],
)
def test_values_out_of_range(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_section.check(msgspec.convert(table, SourceSection), field="edge.source")
