"""What an independent sample of a real posterior costs, in gradients: twelve posteriors of posteriordb, six samplers.

    python -m benchmarks.posteriordb

Each sampler starts where the others start and warms up by itself. Then, over all its chains: gradients an effective sample, for
the worst parameter, once of the parameters and once of their squares about the reference's mean; how far the means are from
those of the reference draws; R-hat. Gradients are counted as they are taken, whatever they lead to, those of the warm-up apart.
Everything is in float64. A run whose chains do not agree, or whose means are off, has no price.

Runs are kept in a CSV, and only what it lacks is run.
"""

import argparse
import functools
import importlib.metadata
import math
import pathlib
import time
from collections.abc import Sequence

import jax
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks.harness import files, peers, posteriors, summary, table
from benchmarks.harness.posterior_run import KEY, Row
from ctld_optax import plotting
from ctld_optax._arviz import arviz

CSV = pathlib.Path(__file__).parent / "results" / "posteriordb.csv"
EVERYTHING = (posteriors.NAMES, tuple(peers.METHODS), 4)
SMALL = (("arK-arK", "eight_schools-eight_schools_noncentered"), ("NUTS, dense",), 1)
COLORS = {
    "NUTS, dense": plotting.BLUE,
    "NUTS, diagonal": plotting.SKY,
    "MCLMC": plotting.ORANGE,
    "ChEES": plotting.GREEN,
    "MEADS": plotting.PURPLE,
    "CTLD": plotting.VERMILLION,
}


def score(target: posteriors.Posterior, samples: jax.Array) -> dict[str, float]:
    """What a row says of samples of shape (chains, draws, d), without constraints."""
    natural = np.asarray(jax.jit(jax.vmap(jax.vmap(target.constrain)))(samples))
    reference = target.reference
    if not np.isfinite(natural).all():
        return {"ess": 0.0, "ess_square": 0.0} | dict.fromkeys(("rhat", "error", "error_mc", "sd_ratio"), math.inf)
    az = arviz("posteriordb judges samples with ArviZ")
    found = az.convert_to_dataset({"x": natural, "square": np.square(natural - reference.mean)})
    with np.errstate(divide="ignore", invalid="ignore"):  # chains that stand still
        ess, rhat = az.ess(found, method="mean"), np.asarray(az.rhat(found)["x"])
    error, sd = np.abs(natural.mean((0, 1)) - reference.mean), natural.std((0, 1))
    mcse = np.hypot(sd / np.sqrt(np.asarray(ess["x"])), reference.mcse_mean)
    ratio = sd / reference.sd
    return {
        "ess": float(ess["x"].min()),
        "ess_square": float(ess["square"].min()),
        "rhat": float(np.nan_to_num(rhat, nan=math.inf).max()),  # NaN: all at one place
        "error": float((error / reference.sd).max()),
        "error_mc": float((error / mcse).max()),
        "sd_ratio": float(ratio[np.abs(np.log(np.maximum(ratio, 1e-300))).argmax()]),
    }


def run(name: str, method: str, start: str, seeds: Sequence[int], path: pathlib.Path, console: Console) -> None:
    """Those seeds that the CSV does not hold; one compiled program serves all of them."""
    table.add(path, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    done = {row.run for row in table.read(path, Row)}
    missing = [seed for seed in seeds if (name, method, start, seed) not in done]
    if not missing:
        return
    target, (sample, chains, by, is_compilable) = posteriors.posterior(name), peers.METHODS[method]
    program = None
    for seed in missing:
        start_key, key = jax.random.split(jax.random.key(seed))
        begin = peers.STARTS[start](target, start_key, chains)
        if program is None:
            program = functools.partial(sample, target)
            program = jax.jit(program).lower(key, begin).compile() if is_compilable else program
        began = time.perf_counter()
        draws = jax.block_until_ready(program(key, begin))
        seconds = time.perf_counter() - began
        found = Row(
            name,
            method,
            start,
            seed,
            chains,
            draws.samples.shape[1],
            int(draws.gradients),
            int(draws.warmup_gradients),
            **score(target, draws.samples),
            seconds=round(seconds, 2),
            by=f"{by} {importlib.metadata.version(by)}",
        )
        table.add(path, Row, [found], key=KEY, varying=["seconds", "by"])
        told = f"{found.price:.3g} gradients an independent sample" if found.is_sound else "not sound"
        console.print(f"{name}, {method}, seed {seed}: {told}, {seconds:.1f} s")


def median(rows: Sequence[Row], field: str) -> float:
    return float(np.median([getattr(row, field) for row in rows]))


def cell(rows: Sequence[Row]) -> str:
    sound = [row for row in rows if row.is_sound]
    figures = "; ".join(f"{median(sound, field):.3g}" for field in ("price", "price_square")) if sound else "-"
    warmup = f"({median(rows, 'warmup_gradients') / 1000:.0f})"
    return " ".join([figures, warmup] + [f"\\[{len(sound)} of {len(rows)}]"] * (len(sound) < len(rows)))


def prices(rows: Sequence[Row]) -> Table:
    """Medians over the sound runs."""
    made = Table("posterior", *(name for name in COLORS if any(row.method == name for row in rows)))
    made.title = "gradients an independent sample of x; of x^2 (thousands of gradients to warm up) \\[sound runs, if not all]"
    for posterior in dict.fromkeys(row.posterior for row in rows):
        cells: list[str] = []
        for column in made.columns[1:]:
            own = [row for row in rows if row.posterior == posterior and row.method == column.header]
            cells.append(cell(own) if own else "")
        made.add_row(posterior.split("-")[0], *cells)
    return made


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """A line a posterior: the dearer of x and x^2, every seed a dot and their median a bar; a cross where no seed is sound."""
    mpl.use("Agg")
    names = list(dict.fromkeys(row.posterior for row in rows))
    methods = [name for name in COLORS if any(row.method == name for row in rows)]
    price = lambda row: max(row.price, row.price_square)
    names.sort(key=lambda name: -min(map(price, (row for row in rows if row.posterior == name))))
    right = 3.0 * max([one for one in map(price, rows) if math.isfinite(one)], default=1.0)
    with summary.styled():
        figure, ax = plt.subplots(figsize=(9, 0.55 * len(names) + 1.6), layout="constrained")
        for place, name in enumerate(names):
            ax.axhspan(place - 0.5, place + 0.5, color="0.96" if place % 2 else "1.0", linewidth=0, zorder=0)
            for level, method in enumerate(methods):
                values = [price(row) for row in rows if (row.posterior, row.method) == (name, method)]
                sound = [value for value in values if math.isfinite(value)]
                y = place + 0.7 * (0.5 - (level + 0.5) / len(methods))
                if sound:
                    ax.plot(sound, [y] * len(sound), ".", color=COLORS[method], alpha=0.5, markersize=5)
                    ax.plot(np.median(sound), y, "|", color=COLORS[method], markersize=8, markeredgewidth=2.5)
                elif values:
                    ax.plot(right, y, "x", color=COLORS[method], markersize=5)
        for method in methods:
            ax.plot([], [], "|", color=COLORS[method], label=method, markersize=10, markeredgewidth=2.5)
        ax.set(xscale="log", ylim=(-0.5, len(names) - 0.5), xlabel="gradients an independent sample (x: no sound run)")
        ax.set_yticks(range(len(names)), [name.split("-")[0] for name in names])
        figure.legend(loc="outside upper center", ncols=len(methods))
        files.save_figure(figure, path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.posteriordb", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--posteriors", nargs="+", choices=posteriors.NAMES, metavar="NAME", help="only these (default all)")
    parser.add_argument("--methods", nargs="+", choices=peers.METHODS, metavar="NAME", help="only these (default all)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 4)")
    parser.add_argument("--start", choices=peers.STARTS, default="wide", help="where chains begin (default %(default)s)")
    parser.add_argument("--small", action="store_true", help="two posteriors, NUTS and one seed, unless said otherwise")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder of the figure (default out)")
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        parser.error("--seeds must be at least 1")
    names, methods, seeds = SMALL if options.small else EVERYTHING
    names, methods = options.posteriors or names, options.methods or methods
    seeds = range(options.seeds or seeds)
    console = Console()
    try:
        with jax.enable_x64(True):
            for method in methods:
                for name in names:
                    run(name, method, options.start, seeds, options.csv, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    rows = [row for row in table.read(options.csv, Row) if row.start == options.start and row.posterior in names]
    if rows:
        console.print(prices(rows))
        draw(rows, options.out / "posteriordb.png")
        console.print(f"wrote {options.out / 'posteriordb.png'}")


if __name__ == "__main__":
    main()
