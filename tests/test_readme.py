"""The README's code runs as it stands."""

import csv
import math
import pathlib
import re
import tomllib

import pytest

from benchmarks.harness import summary, sweep

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_quick_start_runs_and_learns(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    quick_start = next(block for block in blocks if block.startswith("import jax"))
    lines = [line for line in quick_start.splitlines() if line.strip()]
    assert len(lines) <= 20
    exec(compile(quick_start, str(README), "exec"), {})  # noqa: S102 - our own text
    loss = float(capsys.readouterr().out.split()[-1])
    assert loss < 0.01  # y has variance 0.5; at the saddle the loss stays there


def test_the_install_line_names_the_bounds():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    bounds = dict(line.split(">=") for line in project["dependencies"])
    pythons = [line.rsplit(" ", 1)[1] for line in project["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    (line,) = re.findall(r"^pip install \. +# (.*)$", README.read_text(), flags=re.MULTILINE)
    assert line.startswith(
        f"Python {pythons[0]} to {pythons[-1]}, JAX {bounds['jax']} or newer, Optax {bounds['optax']} or newer"
    )


# A row's link: the experiment.
PAPER = {"#character-level-lstm": "char_rnn", "#stacked-denoising-autoencoders": "sda"}


def test_the_papers_experiments_are_told_as_they_came_out():
    """A mean to the two digits of its interval."""
    table = README.read_text().partition("| lower is better |")[2].partition("\n\n")[0]
    header, _, *lines = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines())
    assert len(lines) == len(PAPER)
    for first, *cells in lines:
        (name,) = (name for anchor, name in PAPER.items() if anchor in first)
        rows = sweep.newest(sweep.read(), name)
        for method, cell in zip(header, cells, strict=True):
            ended = summary.interval(summary.final(rows, method, "test"))
            digits = 1 - math.floor(math.log10(ended.half))
            assert cell == f"{ended.mean:.{digits}f} ± {ended.half:.{digits}f}", (name, method)


# How the pages name a variant of benchmarks.step_cost in the first cell of a row of their tables.
COSTS = {
    "default noise": "CTLD three_point",
    '"three_point"': "CTLD three_point",
    '"irwin_hall"': "CTLD irwin_hall",
    '"gaussian"': "CTLD gaussian",
    '"rademacher"': "CTLD rademacher",
    "sampling inside": "switch, sampling",
    "after the switch to Adam": "switch to Adam, after",
    "after the switch": "switch, after",
    "Adam, for comparison": "Adam",
    "noisy_sgd": "noisy_sgd",
}


@pytest.mark.parametrize(
    ("page", "heading", "rows"), [("README.md", "What it costs", 6), ("docs/faq.md", "What does a step cost?", 9)]
)
def test_what_a_step_costs_is_what_was_measured(page, heading, rows):
    with (README.parent / "benchmarks/results/step_cost.csv").open() as file:
        measured = {row["variant"]: row for row in csv.DictReader(file) if row["layout"] == "one leaf, 1e7"}
    section = (README.parent / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = 0
    for cells in (line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")):
        variant = next((variant for words, variant in COSTS.items() if words in cells[0]), None)
        if variant is not None:
            found += 1
            middle, low, high = (f"{float(measured[variant][name]):.2g}" for name in ("ratio", "ratio_q1", "ratio_q3"))
            assert cells[1:] == [middle, f"{low} to {high}"][: len(cells) - 1], variant
    assert found == rows
