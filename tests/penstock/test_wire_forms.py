from __future__ import annotations

import pytest

from tests.penstock.wire_forms import GOLDEN, documents


@pytest.mark.parametrize("name", sorted(documents()))
def test_wire_form_has_not_changed(name: str) -> None:
    assert documents()[name] == (GOLDEN / name).read_bytes()


def test_every_golden_file_is_checked() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == set(documents())
