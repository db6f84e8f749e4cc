"""The page: self-contained, safe, complete, and the same on every run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler.artifact import plots, report
from compiler.artifact.evaluation import CandidateFigures, Evaluation, TargetEvaluation
from compiler.cache.steps import StepCache, default_root
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock import wording
from penstock.artifact.caveats import Caveat
from penstock.artifact.certificates import Certificate

pytestmark = pytest.mark.usefixtures("warm")
QUIET = Lines(lambda line: None)


KEPT: dict[str, Evaluation] = {}  # documents do not change, and one compilation takes longer than all that is drawn


@pytest.fixture
def document(request: pytest.FixtureRequest) -> Evaluation:
    if "document" not in KEPT:
        workspace: Path = request.getfixturevalue("workspace")
        parsed = recipes.load(workspace / "recipe.toml")
        cache = StepCache(default_root())
        done = compilation.compile_recipe(parsed, workspace / "out", cache=cache, watcher=QUIET)
        KEPT["document"] = done.evaluation
    return KEPT["document"]


def with_first(document: Evaluation, **changes: object) -> Evaluation:
    """The document with its first target changed."""
    first = msgspec.structs.replace(document.targets[0], **changes)
    return msgspec.structs.replace(document, targets=(first, *document.targets[1:]))


def certificate_of(document: Evaluation) -> Certificate:
    cascade = document.targets[0].cascade
    assert cascade is not None
    assert cascade.certificate is not None
    return cascade.certificate


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


def test_the_page_says_what_ships_what_was_promised_and_measured(document: Evaluation) -> None:
    text = text_of(report.render(document))
    (target,) = document.targets
    assert target.cascade is not None
    assert target.cascade.figures is not None
    certificate = certificate_of(document)
    assert f"edge on {target.target}: {target.chosen} ships" in text
    assert "With 95% confidence" in text
    assert f"{certificate.score} ≥ {certificate.threshold:.4f}" in text
    assert "at most 2 points of accuracy" in text
    for line in target.candidates:
        assert line.name in text
        assert line.verdict in text
        assert line.quality is not None
        assert f"{100 * line.quality.value:.1f}%" in text
    assert f"{100 * target.cascade.figures.coverage.value:.1f}%" in text
    for share in (target.variant.quality, target.cascade.figures.accuracy, document.cloud.quality):
        assert share is not None
        cells = (wording.percent(share), wording.count(share), wording.interval(share))
        assert " ".join(cells) in text, "both models and the cascade, with counts and intervals"
    assert certificate.edge_digest in text
    assert "What really runs in integers" in text


def test_every_picture_is_there(document: Evaluation) -> None:
    page = report.render(document)
    assert page.count("<svg") == 4
    text = text_of(page)
    for words in ("quality budget", "signal to quantization noise", "promised: at most 2", "how often it is right"):
        assert words in text


def test_many_candidates_in_one_place_do_not_write_over_each_other(document: Evaluation) -> None:
    (target,) = document.targets
    first = target.candidates[0]
    crowd = tuple(msgspec.structs.replace(first, name=f"crowded {n}", ships=n == 7) for n in range(30))
    picture = plots.pareto(msgspec.structs.replace(target, candidates=crowd))
    labels = re.findall(r">(crowded \d+)<", picture)
    assert labels[0] == "crowded 7"  # what ships is always named
    assert 1 < len(labels) < 6
    assert len(set(re.findall(r"<text[^>]*transform=\"([^\"]*)\"[^>]*>crowded", picture))) == len(labels)


def test_operators_sent_back_to_float_are_told(document: Evaluation) -> None:
    (target,) = document.targets
    kept = (target.sensitivity[0].node,)
    lines = tuple(msgspec.structs.replace(c, kept_float=kept) if c.ships else c for c in target.candidates)
    page = report.render(with_first(document, candidates=lines))
    assert "Red: sent back to float so that the budget is kept (1 of 2)" in text_of(page)


def test_a_target_that_was_not_measured_says_so_and_shows_no_time(document: Evaluation) -> None:
    lines = tuple(msgspec.structs.replace(c, speed=None) for c in document.targets[0].candidates)
    changed = with_first(document, candidates=lines, cascade=None, not_measured="this machine cannot run arm64")
    text = text_of(report.render(changed))
    assert "Nothing was timed or certified: this machine cannot run arm64" in text
    assert text.count("not measured here") == len(lines)
    assert "not timed on this machine" in text
    assert "With 95% confidence" not in text


def with_caveat(document: Evaluation, caveat: Caveat | None) -> Evaluation:
    return with_certificate(document, caveat=caveat)


def with_certificate(document: Evaluation, **changes: Any) -> Evaluation:
    cascade = document.targets[0].cascade
    assert cascade is not None
    certificate = msgspec.structs.replace(certificate_of(document), **changes)
    return with_first(document, cascade=msgspec.structs.replace(cascade, certificate=certificate))


def test_an_escalation_that_gains_nothing_is_said_before_the_promise(document: Evaluation) -> None:
    caveat = Caveat(kind="cloud-no-better", n=600, edge_right=570, cloud_right=571, guess_right=210)
    text = text_of(report.render(with_caveat(document, caveat)))
    assert "Escalating gains nothing that these examples show" in text
    assert "(right: edge 570, cloud 571)" in text
    assert text.index("Escalating gains nothing") < text.index("With 95% confidence")
    assert "Escalating gains nothing" not in text_of(report.render(with_caveat(document, None)))


def test_a_promise_by_the_prompt_says_when_it_is_decided(document: Evaluation) -> None:
    text = text_of(report.render(with_certificate(document, score="prompt_max_prob")))
    assert ", decided before generation, costs at most" in " ".join(text.split())


def test_a_cloud_that_guesses_is_said_before_the_promise(document: Evaluation) -> None:
    caveat = Caveat(kind="cloud-guesses", n=600, edge_right=10, cloud_right=3, guess_right=210)
    text = text_of(report.render(with_caveat(document, caveat)))
    assert "This promise says nothing: the cloud is not shown to be better than guessing: right in 3 of 600" in text


def test_the_bound_of_the_audit_is_explained_beside_the_promise(document: Evaluation) -> None:
    text = text_of(report.render(document))
    bound = f"{wording.points(certificate_of(document).audit_max_harm)} in a hundred requests"
    assert f"They test against {bound}, which is more than the 2 promised" in text
    assert text.index(bound) < text.index("Candidates, and what was found of each")


def test_a_noisy_clock_is_told_and_a_quiet_one_too(document: Evaluation) -> None:
    noisy = text_of(report.render(with_first(document, clock_noise=1.21)))
    assert "The clock of this machine was noisy: the float model, loaded and timed twice, seemed up to 1.21" in noisy
    quiet = text_of(report.render(with_first(document, clock_noise=1.01)))
    assert "noisy" not in quiet
    assert "seemed up to 1.01 times as fast as itself" in quiet


def test_points_of_the_reliability_picture_have_intervals_and_counts(document: Evaluation) -> None:
    cascade = document.targets[0].cascade
    assert cascade is not None
    picture = plots.reliability(cascade)
    for part in cascade.reliability:
        assert part.low < part.accuracy <= part.high or part.low <= part.accuracy < part.high
        assert f">{part.rows}<" in picture


def test_on_a_telephone_every_cell_carries_its_heading(document: Evaluation) -> None:
    """Rows become cards there: what the head of a table says has to stand in each of them."""
    page = report.render(document)
    for table in re.findall(r"<table>.*?</table>", page, flags=re.S):
        columns = len(re.findall(r"<th\b", table))
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table[table.index("<tbody>") :], flags=re.S):
            cells = re.findall(r"<td([^>]*)>", row)
            named = [cell for cell in cells[1:] if "data-label=" in cell or 'class="words"' in cell]
            assert len(named) == len(cells) - 1
            assert len(cells) == columns


def test_every_target_has_a_part_of_its_own(document: Evaluation) -> None:
    twice = msgspec.structs.replace(
        document, targets=(*document.targets, msgspec.structs.replace(document.targets[0], role="gateway"))
    )
    page = report.render(twice)
    assert f'href="#gateway-{document.targets[0].target}"' in page
    assert page.count("<section") == 2


def test_the_page_stands_alone(document: Evaluation) -> None:
    page = report.render(document)
    assert "<script" not in page
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)|url\(["']?(?!#)([^)]+)\)|@import""", page)
    assert fetched == []


def test_the_curve_follows_light_and_dark(document: Evaluation) -> None:
    page = report.render(document)
    svg = page[page.index("<svg") : page.rindex("</svg>")]
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
    parsed = recipes.load(edit_recipe("max_harm = 0.02", "max_harm = 0.001"))
    cache = StepCache(default_root())
    done = compilation.compile_recipe(parsed, workspace / "out", cache=cache, watcher=QUIET, require_certificate=False)
    text = text_of(report.render(done.evaluation))
    assert "No certificate. Agents escalate every answer" in text
    assert "2995 are needed" in text
    assert "With 95% confidence" not in text


def test_products_left_in_float_are_named(document: Evaluation) -> None:
    def partly(line: CandidateFigures) -> CandidateFigures:
        if line.coverage is None:
            return line
        return msgspec.structs.replace(line, coverage=msgspec.structs.replace(line.coverage, float_nodes={"Conv": 3}))

    lines = tuple(partly(line) for line in document.targets[0].candidates)
    assert "left in float: 3 Conv" in text_of(report.render(with_first(document, candidates=lines)))


def with_threshold(document: Evaluation, threshold: float) -> TargetEvaluation:
    (target,) = document.targets
    assert target.cascade is not None
    certificate = msgspec.structs.replace(certificate_of(document), threshold=threshold)
    return msgspec.structs.replace(target, cascade=msgspec.structs.replace(target.cascade, certificate=certificate))


def test_a_promise_over_clusters_says_so_in_its_first_line_and_counts_clusters(document: Evaluation) -> None:
    cascade = document.targets[0].cascade
    assert cascade is not None
    over = msgspec.structs.replace(
        certificate_of(document), over="clusters", cluster_by="patient", n=200, harm_count=3, kept_count=190, rows=1000
    )
    changed = with_first(document, cascade=msgspec.structs.replace(cascade, certificate=over))
    said = "3,000 rows in 500 clusters by 'patient', certified as wholes"
    text = text_of(report.render(msgspec.structs.replace(changed, repeats=said)))
    assert "always asking the cloud, on average over clusters by 'patient', each counted once." in text
    assert "3 of 200 clusters (of 1000 examples) harmful in part, 190 kept" in text
    assert said in text
    assert "because 200 clusters only bound the true harm" in text


def test_the_first_threshold_that_failed_is_named(document: Evaluation) -> None:
    (what, why), *_ = report.refusals(with_threshold(document, 0.9))
    assert what == "Any threshold below 0.9000"
    assert why.startswith("At 0.")
    assert "of 600 certifying examples were harmful" in why


def test_nothing_was_refused_when_the_loosest_threshold_passed(document: Evaluation) -> None:
    assert report.refusals(with_threshold(document, 0.0)) == []


def test_matplotlib_is_loaded_by_the_first_picture_and_not_for_a_recipe_that_is_refused() -> None:
    code = "import sys; from compiler.pipeline import compilation; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
