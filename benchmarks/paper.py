"""Writes RESULTS.md and every figure of the paper's experiments, from the CSV; its first table is of all results.

    python -m benchmarks.paper

Run the experiments first (`python -m benchmarks.sda`, then `.sda_phases`, `.char_rnn`, `.phases`, `.sensitivity`,
`.plateau_tuned`, `.plateau_rates`, `.plateau`), here or on a larger machine: a longer run only has to replace
benchmarks/results/experiments.csv. No number in RESULTS.md is typed by hand.
"""

import argparse
import collections
import importlib
import pathlib
from collections.abc import Sequence

import matplotlib as mpl

from benchmarks import transformer
from benchmarks.harness import files, standing, sweep
from benchmarks.harness.sweep import Row

EXPERIMENTS = ("sda", "sda_phases", "char_rnn", "phases", "sensitivity", "plateau_tuned", "plateau_rates", "plateau")
PAGE = pathlib.Path(__file__).parent / "RESULTS.md"

HEADING = "# Results"
INTRODUCTION = """## The paper's experiments

Section 5 of "Langevin Dynamics with Continuous Tempering for Training Deep Neural Networks" (Ye, Zhu and Mantiuk, NIPS 2017),
at equal budgets. `python -m benchmarks.paper` writes this page from [results/experiments.csv](results/experiments.csv), one
row a measurement, with the configuration, the seed, the commit, the versions and the machine of each.

Every method tries the same number of settings: log-uniform points of one quasi-random (Halton) sequence over its
hyperparameters, momentum among them, in ranges that methods of a kind share. Settings are compared on the validation set, with
seeds that are not used again, and the best is trained on new seeds and measured on the test set. Figures are means over those
seeds ± half the 95 % t-interval.
"""


def budget(rows: Sequence[Row]) -> dict[str, int]:
    """Settings that each method has tried, counted in the CSV."""
    tried: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        if row.stage == "tune":
            tried[row.method].add(row.hyperparameters)
    return {method: len(found) for method, found in tried.items()}


def budget_in_words(rows: Sequence[Row]) -> str:
    counts = budget(rows)
    if not counts:
        return "Nothing was tuned here."
    trials = {(row.method, row.hyperparameters, row.seed) for row in rows if row.stage == "tune"}
    seeds = collections.Counter((method, hyper) for method, hyper, _ in trials)  # of each setting
    on = {name: sorted({number for (method, _), number in seeds.items() if method == name}) for name in counts}
    each = [f"{count} settings on {' or '.join(map(str, on[name]))} seeds" for name, count in counts.items()]
    if len(set(each)) == 1 and len(next(iter(on.values()))) == 1:
        return f"Budget, counted in the CSV: {each[0]} for each of {len(counts)} methods."
    return "**The budgets are not equal**: " + ", ".join(map(" ".join, zip(counts, each, strict=True))) + "."


def origin(rows: Sequence[Row]) -> str:
    minutes = sum({row.trial: row.seconds for row in rows}.values()) / 60
    trials = len({row.trial for row in rows})
    return f"Configuration `{rows[-1].config}`; {trials} trials, {minutes:.0f} minutes of a shared machine in all."


def section(rows: Sequence[Row], name: str, folder: pathlib.Path) -> str:
    module = importlib.import_module(f"benchmarks.{name}")
    own = sweep.newest(rows, name)
    return f"{module.summarize(own, folder).rstrip()}\n\n{budget_in_words(own)} {origin(own)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--csv", type=pathlib.Path, default=sweep.CSV, help="the results (default %(default)s)")
    parser.add_argument("--page", type=pathlib.Path, default=PAGE, help="the page (default %(default)s)")
    options = parser.parse_args(arguments)
    mpl.use("agg")
    rows = sweep.read(options.csv)
    folder = options.page.parent / "results"
    present = {row.experiment for row in rows if row.stage == "report"}
    sections = [section(rows, name, folder) for name in EXPERIMENTS if name in present]
    missing = [name for name in EXPERIMENTS if name not in present]
    if missing:
        sections.append(f"Not in the CSV yet: {', '.join(missing)}.\n")
    opening = f"{HEADING}\n\n{standing.text(rows, PAGE.parent / 'results')}\n"
    of_a_transformer = transformer.rows()
    beyond = [f"{transformer.section(of_a_transformer)}\n"] if of_a_transformer else []
    page = "\n".join([opening, *beyond, INTRODUCTION, *sections])
    files.put(options.page, page.encode(), is_own=lambda old: old.startswith(HEADING.encode()))
    print(f"Wrote {options.page} and the figures in {folder}")


if __name__ == "__main__":
    main()
