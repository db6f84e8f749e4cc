"""Settings, flags, metrics and errors have words, and the pages in docs/ are what the code says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load() -> ModuleType:
    path = ROOT / "scripts" / "generate_docs.py"
    sys.path.append(str(path.parent))  # its sibling docs_writer, as when the script is run
    spec = importlib.util.spec_from_file_location("generate_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


docs = _load()
docs_writer = sys.modules["docs_writer"]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a section of settings looks like.

    Attributes:
        host, port: where to listen; port 0 takes
            a free one.
        max_rows: in one call. ``max_wait_s``: until it
            goes; see ``host``.
    """

    host: str = ""
    port: int = 0
    max_rows: int = 1
    max_wait_s: float = 0.0
    forgotten: int = 0


def test_attributes_are_read_in_both_forms() -> None:
    summary, words = docs_writer.attributes_of(Sample)
    assert summary == "What a section of settings looks like."
    assert words["host"] == words["port"] == "where to listen; port 0 takes a free one"
    assert words["max_rows"] == "in one call"
    assert words["max_wait_s"] == "until it goes; see `host`"
    assert "forgotten" not in words


def test_metrics_are_read_from_the_calls_that_make_them(tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(
        'A = Counter("penstock_a_total", "All of them.", ["model"])\n'
        'names = ["x", "y"]\n'
        'B = prometheus.GaugeMetricFamily("penstock_b", "", labels=[*names, "z"])\n'
        'D = CounterMetricFamily("penstock_d", "Of each.", value, labels=names)\n'
        'C = Counter("word")\n'
    )
    assert [(m.name, m.kind, m.words, m.labels) for m in docs.metrics_of(tmp_path)] == [
        ("penstock_a_total", "counter", "All of them", ("model",)),
        ("penstock_b", "gauge", "", ("x", "y", "z")),
        ("penstock_d_total", "counter", "Of each", ("x", "y")),
    ]


def test_a_name_of_labels_is_that_of_its_own_function(tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(
        "def a():\n"
        '    labels = ["model"]\n'
        '    yield Gauge("penstock_a", "What a is.", labels=labels)\n'
        "    labels = [one.name for one in others]\n"
        "def b():\n"
        '    labels = ["device"]\n'
        '    yield Gauge("penstock_b", "What b is.", labels=labels)\n'
    )
    assert [(m.name, m.labels) for m in docs.metrics_of(tmp_path)] == [
        ("penstock_a", ("model",)),
        ("penstock_b", ("device",)),
    ]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("", "says too little"),
        ("longest", "says too little"),
        ("with which chance they have to", "is cut off"),
        ("rows of a batch (at most", "is cut off"),
        ("Of these, that were not computed again", "leans on another"),
        ("the same while a rollout is under way", "leans on another"),
        ("Said of another setting too", "is said of something else"),
        ("rows that a batch may have", ""),
        ("who may call; empty lets everybody in", ""),
    ],
)
def test_words_that_do_not_stand_alone_are_found(words: str, fault: str) -> None:
    found = [one for one in docs_writer.faults({"x": words, "y": "Said of another setting too"}) if one.startswith("x")]
    assert len(found) == bool(fault)
    assert all(fault in one for one in found)


def test_the_command_behind_a_group_is_shown_with_its_flags() -> None:
    shown = docs.cli_page().text.partition("## `penstock compile`")[2].partition("\n## ")[0]
    assert "penstock compile [OPTIONS] RECIPE|MODEL" in shown
    assert "`--without-certificate`" in shown


@pytest.mark.parametrize("name", list(docs.PAGES))
def test_a_page_is_complete_and_fresh(name: str) -> None:
    page = docs.PAGES[name]()
    assert page.undocumented == []
    assert (docs.DOCS / name).read_text(encoding="utf-8") == page.text, "stale: run 'make docs'"
