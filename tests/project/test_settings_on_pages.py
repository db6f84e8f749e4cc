"""TOML on pages is what recipes, cores and agents take: every key is there, every value has its type."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_core.settings import CoreSettings
from compiler.recipe.recipes import RecipeFile
from edge_agent.settings import AgentSettings
from tests.project.test_documents import PAGES, ROOT

_TOML = re.compile(r"^```toml\n(.*?)^```[ ]*$", re.M | re.S)
_NEEDED: Mapping[str, Mapping[str, Any]] = {  # what a page need not repeat for each of its examples
    "model": {"name": "m"},
    "edge": {"model": "m.onnx"},
    "data": {"source": "d.npz"},
}


def _blocks() -> list[Any]:
    found = []
    for page in PAGES:
        where = page.relative_to(ROOT)
        if where.parts[:2] == ("docs", "adr") or where.name == "CHANGELOG.md":
            continue  # what was written then
        texts = _TOML.findall(page.read_text(encoding="utf-8"))
        found += [pytest.param(text, id=f"{where}-{number}") for number, text in enumerate(texts, 1)]
    return found


def problem_of(text: str) -> str:
    """Say why nobody takes these settings; "" where a recipe, a core or an agent does."""
    document = tomllib.loads(text)
    recipe = {
        **document,
        **{name: {**needed, **document.get(name, {})} for name, needed in _NEEDED.items()},
    }
    reasons = []
    for kind, given in ((RecipeFile, recipe), (CoreSettings, document), (AgentSettings, document)):
        try:
            msgspec.convert(given, kind)
        except msgspec.ValidationError as error:
            reasons.append(f"{kind.__name__}: {error}")
        else:
            return ""
    return "; ".join(reasons)


@pytest.mark.parametrize("text", _blocks())
def test_settings_on_a_page_are_taken(text: str) -> None:
    assert problem_of(text) == ""


def test_a_key_that_nobody_knows_is_found() -> None:
    assert "lable" in problem_of('[data]\nlable = "y"\n')


def test_there_are_settings_on_pages() -> None:
    assert len(_blocks()) >= 30
    assert Path("docs/operations.md") in {Path(block.id.rsplit("-", 1)[0]) for block in _blocks()}
