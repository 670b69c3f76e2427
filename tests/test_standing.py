"""The table that RESULTS.md opens with: its verdicts are computed, in either direction."""

import pathlib
import re

import pytest

from benchmarks import paper
from benchmarks.harness import standing, sweep

RESULTS = paper.PAGE.parent / "results"


def test_counts_and_means_that_leave_a_doubt_are_level():
    assert standing.by_counts(16, 10, 16) == standing.WINS
    assert standing.by_counts(16, 15, 16) == standing.LEVEL
    assert standing.by_counts(2, 12, 16) == standing.LOSES
    near, far = [1.0, 1.1, 0.9, 1.0], [2.0, 2.1, 1.9, 2.0]
    assert standing.by_means(near, far) == standing.WINS  # lower is better
    assert standing.by_means(far, near) == standing.LOSES
    assert standing.by_means(near, [1.05, 1.2, 0.8, 1.1]) == standing.LEVEL
    assert standing.by_means([float("nan"), *near], far) == standing.LOSES
    assert standing.by_means(near, [float("nan"), *far]) == standing.WINS
    assert standing.by_means([1.0], [5.0]) == standing.LEVEL  # one seed tells nothing


def test_the_page_opens_with_what_the_results_say():
    table = standing.text(sweep.read(sweep.CSV), RESULTS)
    assert paper.PAGE.read_text().startswith(f"{paper.HEADING}\n\n{table}\n"), "run python -m benchmarks.paper"


def test_every_line_leads_to_its_source():
    page = paper.PAGE.read_text()
    headings = {line.lstrip("# ").lower() for line in page.splitlines() if line.startswith("#")}
    slugs = {"".join(c for c in heading if c.isalnum() or c in " -").replace(" ", "-") for heading in headings}
    lines = [
        line for part in (standing.stuck_network, standing.wrong_labels, standing.real_posteriors) for line in part(RESULTS)
    ]
    lines += standing.of_the_paper(sweep.read(sweep.CSV), "sda", "", "#stacked-denoising-autoencoders-section-51-figure-2")
    assert len(lines) > 6
    for source in {line.source for line in lines} | set(_links(page)):
        assert (paper.PAGE.parent / source).is_file() or source.removeprefix("#") in slugs, source


def _links(page):
    opening = page.partition("## ")[0]
    return [part.partition(")")[0] for part in opening.split("](")[1:]]


@pytest.mark.parametrize("verdict", [standing.WINS, standing.LEVEL, standing.LOSES])
def test_each_verdict_is_counted(verdict):
    opening = paper.PAGE.read_text().partition("## ")[0]
    told = int(re.search(rf"(\d+) {re.escape(verdict)}[,)]", opening)[1])
    assert told == opening.count(f"| {verdict} |")


def test_nothing_is_told_of_an_experiment_that_was_not_run(tmp_path: pathlib.Path):
    assert standing.of_the_paper(sweep.read(tmp_path / "none.csv"), "sda", "", "") == []
