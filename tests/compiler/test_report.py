"""The page: self-contained, safe, complete, and the same on every run."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from compiler import pipeline, recipe, report
from compiler.evaluation import Evaluation


@pytest.fixture
def document(workspace: Path) -> Evaluation:
    parsed = recipe.load(workspace / "recipe.toml")
    return pipeline.compile_recipe(parsed, workspace / "out", say=lambda line: None).evaluation


def text_of(page: str) -> str:
    """What a reader sees, as one line."""
    visible: list[str] = []

    class Reader(HTMLParser):
        hidden = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.hidden += tag in ("style", "script", "title")

        def handle_endtag(self, tag: str) -> None:
            self.hidden -= tag in ("style", "script", "title")

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                visible.append(data)

    Reader().feed(page)
    return re.sub(r"\s+", " ", " ".join(visible))


def test_the_page_says_what_was_promised_and_measured(document: Evaluation) -> None:
    text = text_of(report.render(document))
    certificate, cascade = document.certificate, document.cascade
    assert certificate is not None
    assert cascade is not None
    assert "With 95% confidence" in text
    assert f"max_prob ≥ {certificate.threshold:.4f}" in text
    assert "at most 2 points of accuracy" in text
    for figures in document.variants:
        assert figures.name in text
        assert figures.accuracy is not None
        assert f"{100 * figures.accuracy.value:.1f}%" in text
    assert f"{100 * cascade.coverage.value:.1f}%" in text
    assert certificate.edge_digest in text
    assert "What was refused, and why" in text


def test_the_page_stands_alone(document: Evaluation) -> None:
    page = report.render(document)
    assert "<script" not in page
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)|url\(["']?(?!#)([^)]+)\)|@import""", page)
    assert fetched == []


def test_the_curve_follows_light_and_dark(document: Evaluation) -> None:
    page = report.render(document)
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert "prefers-color-scheme: dark" in page
    assert {"var(--ink)", "var(--accent)", "var(--bad)", "var(--second)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert "promised: at most 2" in svg


def test_same_figures_same_page(document: Evaluation) -> None:
    assert report.render(document) == report.render(document)


def test_text_from_outside_is_escaped(document: Evaluation) -> None:
    hostile = msgspec.structs.replace(
        document, machine=msgspec.structs.replace(document.machine, processor="<img src=x onerror=alert(1)>")
    )
    page = report.render(hostile)
    assert "<img" not in page
    assert "&lt;img" in page


def test_a_refused_certificate_is_the_headline(workspace: Path, edit_recipe: Callable[[str, str], Path]) -> None:
    parsed = recipe.load(edit_recipe("max_harm = 0.02", "max_harm = 0.001"))
    done = pipeline.compile_recipe(parsed, workspace / "out", require_certificate=False, say=lambda line: None)
    text = text_of(report.render(done.evaluation))
    assert "No certificate. Agents escalate every answer" in text
    assert "2995 are needed" in text
    assert "With 95% confidence" not in text


def test_products_left_in_float_are_named(document: Evaluation) -> None:
    assert document.quantization is not None
    partly = msgspec.structs.replace(
        document, quantization=msgspec.structs.replace(document.quantization, float_nodes={"Conv": 3})
    )
    assert "3 Conv stay in float" in text_of(report.render(partly))


def test_the_first_threshold_that_failed_is_named(document: Evaluation) -> None:
    stricter = msgspec.structs.replace(document.certificate, threshold=0.9) if document.certificate else None
    (what, why), *_ = report.refusals(msgspec.structs.replace(document, certificate=stricter))
    assert what == "Any threshold below 0.9000"
    assert why.startswith("At 0.8900, ")
    assert "of 600 certifying examples were harmful" in why


def test_nothing_was_refused_when_the_loosest_threshold_passed(document: Evaluation) -> None:
    loosest = msgspec.structs.replace(document.certificate, threshold=0.0) if document.certificate else None
    assert report.refusals(msgspec.structs.replace(document, certificate=loosest)) == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_050_774, "1.1 MB"), (25e9, "25.0 GB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert report.size(count) == text


@pytest.mark.parametrize(("value", "text"), [(0.01149, "0.011"), (1.234, "1.23"), (123.4, "123.4")])
def test_milliseconds_for_people(value: float, text: str) -> None:
    assert report.milliseconds(value) == text
