"""Parts of pages that are made, not typed: tables from the CSV of the benchmarks, texts of modules without a public name."""

import csv
import inspect
import pathlib
import re
import statistics
from typing import Any

from benchmarks import ensembles, round_trips, temperature_range
from benchmarks.harness import multimodal_run, right_weights_run, table
from benchmarks.harness.posterior_run import Row
from ctld_optax import _batches, _exact, _heat, _warmup
from ctld_optax._arrays import noise as sources
from ctld_optax._dynamics import integrators

RESULTS = pathlib.Path(__file__).parent.parent / "benchmarks" / "results"
PAGES = pathlib.Path(__file__).parent / "measured"
METHODS = ("CTLD", "NUTS, dense", "NUTS, diagonal", "MCLMC", "ChEES", "MEADS")
CROSSERS = ("CTLD", "parallel tempering", "tempered SMC", "NUTS", "SGHMC")


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(header: list[str], lines: list[list[str]]) -> str:
    return "".join(
        f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines]
    )


def efficiency() -> str:
    """Gradients an independent sample of each posterior, one column a method, medians over the sound runs."""
    found = [
        run for run in table.read(RESULTS / "posteriordb.csv", Row) if run.start == "wide"
    ]
    methods = [method for method in METHODS if any(run.method == method for run in found)]
    lines: list[list[str]] = []
    for posterior in sorted({run.posterior for run in found}):
        cells = [f"`{posterior}`"]
        for method in methods:
            own = [run for run in found if (run.posterior, run.method) == (posterior, method)]
            sound = [run for run in own if run.is_sound]
            if not own:
                cells.append("not run")
            elif not sound:
                cells.append("none sound")
            else:
                counted = "" if len(sound) == len(own) else f" ({len(sound)} of {len(own)})"
                middle, square = (
                    statistics.median(getattr(run, size) for run in sound)
                    for size in ("price", "price_square")
                )
                cells.append(f"{middle:.3g}; {square:.3g}{counted}")
        lines.append(cells)
    return markdown(["posterior", *methods], lines)


def crossings() -> dict[str, dict[str, list[multimodal_run.Row]]]:
    """The reported runs over separated modes: posterior, sampler, seeds."""
    return multimodal_run.reported(table.read(RESULTS / "multimodal.csv", multimodal_run.Row))


def separated_modes() -> str:
    """Errors of weights, of all chains and of a chain alone, and of means; one column a method, medians over the seeds."""
    found = crossings()
    methods = [method for method in CROSSERS if any(method in each for each in found.values())]
    lines: list[list[str]] = []
    for problem, each in found.items():
        cells = [f"{problem.replace('_', ' ')}"]
        for method in methods:
            own = each.get(method, [])
            sampled = [run for run in own if run.draws]
            figures = (
                statistics.median(getattr(run, field) for run in sampled or own)
                for field in ("variation", "chain_variation", "error")
            )
            counted = "" if len(sampled) == len(own) else f" ({len(sampled)} of {len(own)})"
            told = (
                "; ".join(f"{figure:.2g}" for figure in figures) if sampled else "no samples"
            )
            cells.append(f"{told}{counted}" if own else "not run")
        lines.append(cells)
    return markdown(["posterior", *methods], lines)


def who_weighs_best() -> str:
    """A line a posterior: who errs least in the weights, and where CTLD as it comes stands."""
    lines: list[str] = []
    for problem, each in crossings().items():
        found = multimodal_run.beside_the_best(each)
        standing = (
            f"CTLD and {found.peer} are level"
            if found.better is None
            else f"**{found.better} errs less**"
        )
        standing += f" ({found.told})."
        trips = [
            f"{method} {statistics.median(run.round_trips for run in each[method]):.2g}"
            for method in ("CTLD", "parallel tempering")
            if method in each
        ]
        standing += f" Round trips per 1,000 gradients: {', '.join(trips)}."
        lines.append(f"- *{problem.replace('_', ' ')}*: {standing}\n")
    return "".join(lines)


def couplings() -> str:
    """Round trips and crossings in 1,000 gradients, by what drives alpha and how its temperatures are spaced."""
    lines = [
        [
            str(row.dimensions),
            row.coupling,
            row.tempering,
            f"{1.0 / (1.0 - row.strength):.0f}",
            f"{row.round_trips:.2f}",
            f"{row.crossings:.2f}",
            f"{row.weight:.3f} ± {row.weight_error:.3f}",
        ]
        for row in table.read(RESULTS / "round_trips.csv", round_trips.Row)
    ]
    header = ["d", "coupling", "temperatures", "hottest", "round trips", "crossings"]
    return markdown([*header, f"weight, {round_trips.WEIGHT} in truth"], lines)


STARTS = {
    "wide": "as above",
    "mode": "all chains in the mode",
    "far": "two and a half times as wide",
    "flat": "a hundred standard deviations off, along the flattest direction",
}


def starts() -> str:
    """How many runs of CTLD are sound, by where they begin, and which are not."""
    found = [
        run for run in table.read(RESULTS / "posteriordb.csv", Row) if run.method == "CTLD"
    ]
    lines: list[list[str]] = []
    for start, words in STARTS.items():
        own = [run for run in found if run.start == start]
        lost = [f"`{run.posterior}`, seed {run.seed}" for run in own if not run.is_sound]
        sound = f"{len(own) - len(lost)} of {len(own)}"
        lines.append([words, sound, "; ".join(lost) or "none"])
    return markdown(["start", "sound runs", "not sound"], lines)


def suggested_temperatures() -> str:
    """What ramps speak for, beside what a grid of temperatures finds."""
    found = temperature_range.show(
        table.read(RESULTS / "temperature_range.csv", temperature_range.Row)
    )
    return markdown(
        [str(column.header) for column in found.columns],
        list(zip(*(list(column.cells) for column in found.columns), strict=True)),
    )


def step_costs() -> dict[tuple[str, str], dict[str, str]]:
    """What was measured of each variant, by layout and variant."""
    return {(row["layout"], row["variant"]): row for row in rows("step_cost.csv")}


def costs(layouts: dict[str, str], form: str = ".2g") -> str:
    """Median and quartiles of the ratio to SGD-M's step, one column a layout that was measured."""
    found = step_costs()
    measured = {layout for layout, _ in found}
    layouts = {name: words for name, words in layouts.items() if name in measured}
    lines: list[list[str]] = []
    for variant in dict.fromkeys(variant for _, variant in found):
        cells = [variant]
        for layout in layouts:
            middle, low, high = (
                float(found[layout, variant][name])
                for name in ("ratio", "ratio_q1", "ratio_q3")
            )
            cells.append(f"{middle:{form}}&nbsp;({low:{form}}&ndash;{high:{form}})")
        lines.append(cells)
    return markdown(["step", *layouts.values()], lines)


def costs_of_updates() -> str:
    return costs(
        {
            "one leaf, 1e5": "one array of 10⁵",
            "one leaf, 1e7": "one array of 10⁷",
            "400 leaves, 1e7": "400 arrays, 10⁷",
            "ResNet-18, 11.7M": "ResNet-18, 11.7 M",
            "GPT, 124M": "GPT, 124 M",
        }
    )


def costs_of_training() -> str:
    names = dict.fromkeys(
        row["layout"] for row in rows("step_cost.csv") if "batch" in row["layout"]
    )
    return costs(
        {
            name: name.replace("269322", "269,322")
            .replace("20490", "20,490")
            .replace("110295", "110,295")
            for name in names
        },
        ".2f",
    )


def cost_of_a_metric() -> str:
    """Steps in each metric, beside Adam's, and what compiling 400 leaves takes; ratios to SGD-M, then to Adam."""
    found = step_costs()
    one, many = "one leaf, 1e7", "400 leaves, 1e7"
    variants = [name for layout, name in found if layout == one and " in " in name]
    lines: list[list[str]] = []
    for variant in ["Adam", "CTLD three_point", *variants]:
        ratio = float(found[one, variant]["ratio"])
        lines.append(
            [
                variant,
                f"{ratio:.2g}",
                f"{ratio / float(found[one, 'Adam']['ratio']):.2f}",
                f"{float(found[many, variant]['compile_ratio']):.2g}",
            ]
        )
    return markdown(["step", "of SGD-M", "of Adam", "compiling 400 arrays, of SGD-M"], lines)


def right_weights() -> str:
    """The budget at which every seed has all weights right, one column a sampler."""
    found = table.read(RESULTS / "right_weights.csv", right_weights_run.Row)
    methods = [name for name in CROSSERS if any(row.method == name for row in found)]
    lines = [
        [
            problem.replace("_", " "),
            *(right_weights_run.needed(found, problem, name) for name in methods),
        ]
        for problem in dict.fromkeys(row.problem for row in found)
    ]
    return markdown(["posterior", *methods], lines)


def label_noise() -> str:
    """Tables and answers of the benchmark of ensembles."""
    return ensembles.section(table.read(ensembles.CSV, ensembles.Row)) + "\n"


def plain(text: str) -> str:
    """Where |z| names a substitution in reStructuredText, here it is an absolute value; lines with a backslash are formulas."""
    return "\n".join(
        line if "\\" in line else re.sub(r"\|(\w+)\|", r"\\|\1\\|", line)
        for line in text.split("\n")
    )


def docstring(found: Any) -> str:
    return plain(inspect.getdoc(found) or "")


def noise() -> str:
    """The module's text, then each source under the name by which it is given."""
    parts = [
        f"`{name}`\n{'~' * (len(name) + 2)}\n\n{docstring(source)}"
        for name, source in sources.SOURCES.items()
    ]
    return "\n\n".join([docstring(sources), *parts]) + "\n"


def integrator() -> str:
    return docstring(integrators) + "\n"


def warmup() -> str:
    return docstring(_warmup) + "\n"


def heat() -> str:
    return docstring(_heat) + "\n"


def exact() -> str:
    return docstring(_exact) + "\n"


def batches() -> str:
    return docstring(_batches) + "\n"


def write() -> None:
    PAGES.mkdir(exist_ok=True)
    pages = (
        efficiency,
        starts,
        separated_modes,
        who_weighs_best,
        right_weights,
        couplings,
        suggested_temperatures,
        costs_of_updates,
        costs_of_training,
        cost_of_a_metric,
        label_noise,
        noise,
        integrator,
        warmup,
        heat,
        exact,
        batches,
    )
    for made in pages:
        path, text = PAGES / f"{made.__name__}.txt", made()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
