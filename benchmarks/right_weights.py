"""How many gradients until every seed has the weights of separated modes right? The posteriors and samplers of `multimodal`.

    python -m benchmarks.right_weights

Right is a run that has found all modes, each with at least a tenth of its weight, and no weight wrong by more than 0.05. Each
sampler goes through budgets that double, until one at which every seed is right: CTLD up to 32 times that of `multimodal`,
another up to what CTLD needs, for beyond that it needs more. At a seed that is wrong a budget is over. A sampler that has
something to set takes what its pilots in `multimodal` have chosen. CTLD runs whatever `--methods` names.
Runs are kept in a CSV, and only what it lacks is run.
"""

import importlib.metadata
import json
import pathlib
import time
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import multimodal
from benchmarks.harness import crossers, separated, table
from benchmarks.harness.multimodal_run import OURS, chosen
from benchmarks.harness.right_weights_run import KEY, Row, needed

CSV = pathlib.Path(__file__).parent / "results" / "right_weights.csv"
BUDGETS = tuple(multimodal.BUDGET * 2**doublings for doublings in range(6))


def measured(name: str, method: str, setting: crossers.Setting, seed: int, budget: int) -> Row:
    target, how = separated.problem(name), crossers.METHODS[method]
    began = time.perf_counter()
    found = how.sample(target, jax.random.key(seed), budget, **setting)
    seconds, score = time.perf_counter() - began, multimodal.score(target, separated.truth(name), found)
    return Row(
        problem=name,
        method=method,
        setting=json.dumps(setting),
        budget=budget,
        seed=seed,
        gradients=found.gradients,
        modes=target.modes,
        **{field: score[field] for field in ("found", "worst", "variation")},
        seconds=round(seconds, 2),
        by=f"{how.by} {importlib.metadata.version(how.by)}",
    )


def least(name: str, method: str, budgets: Sequence[int], seeds: int, path: pathlib.Path, console: Console) -> int | None:
    """The first of the budgets at which every seed is right; only the runs that the CSV lacks are made."""
    setting = chosen(table.read(multimodal.CSV, multimodal.Row), name, method, crossers.METHODS[method].settings)
    known = {row.run: row for row in table.read(path, Row)}
    for budget in budgets:
        for seed in range(seeds):
            row = known.get((name, method, json.dumps(setting), budget, seed))
            if row is None:
                row = measured(name, method, setting, seed, budget)
                table.add(path, Row, [row], key=KEY, varying=["seconds", "by"])
                told = f"{row.found} of {row.modes} modes, a weight wrong by {row.worst:.3f}, {row.seconds:.1f} s"
                console.print(f"{name}, {method}, {budget:,} gradients, seed {seed}: {told}")
            if not row.is_right:
                break
        else:
            return budget
    return None


def shown(rows: Sequence[Row], seeds: int) -> Table:
    methods = [method for method in crossers.METHODS if any(row.method == method for row in rows)]
    made = Table("posterior", *methods, title="budget at which every seed is right")
    for name in dict.fromkeys(row.problem for row in rows):
        made.add_row(name, *(needed(rows, name, method, seeds) for method in methods))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = multimodal.parser_of("benchmarks.right_weights", __doc__, CSV)
    doubled = "of gradients (default: 200,000, then doubled)"
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS, metavar="N", help=doubled)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    names, methods = options.problems or separated.NAMES, options.methods or tuple(crossers.METHODS)
    console = Console()
    table.add(options.csv, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    try:
        with jax.enable_x64(True):
            for name in names:
                budgets = sorted(options.budgets)
                ours = least(name, OURS, budgets, options.seeds, options.csv, console)
                worth = [budget for budget in budgets if ours is None or budget <= ours]
                for method in methods:
                    if method != OURS:
                        least(name, method, worth, options.seeds, options.csv, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    rows = [row for row in table.read(options.csv, Row) if row.problem in names]
    if rows:
        console.print(shown(rows, options.seeds))


if __name__ == "__main__":
    main()
