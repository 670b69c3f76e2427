"""Does it weigh separated modes? Posteriors whose modes have known weights, five samplers, equal numbers of gradients.

    python -m benchmarks.multimodal

The temperature is given, it is 1, and a constant one does not cross. Each sampler begins at draws of the prior and spends the
same number of gradients, warm-up and all, but that a population or a transition of NUTS is not cut short. One that has
something to set chooses it from four settings by runs of a quarter of that, by the errors of weights and means, added. Told
are the error of the modes' weights, of all chains together and of each alone; how many modes were found; the error of means
and squares; round trips between the posterior and the hottest temperature.

All chains together can be right although none of them crosses: where starts fall to the modes as often as these weigh. A chain
alone cannot.

`--truth` finds what the symmetries do not tell by long parallel tempering, and asks a large population of tempered SMC and
nested sampling for the same.
Runs are kept in a CSV, and only what it lacks is run.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks.harness import crossers, files, provenance, separated, summary, table
from benchmarks.harness.multimodal_run import KEY, SEEDS, Row
from ctld_optax import plotting

CSV = pathlib.Path(__file__).parent / "results" / "multimodal.csv"
BUDGET = 200_000
SMALL = 100_000
PILOT_SEED = 1_000
COLORS = {
    "CTLD": plotting.VERMILLION,
    "parallel tempering": plotting.BLUE,
    "tempered SMC": plotting.GREEN,
    "NUTS": plotting.PURPLE,
    "SGHMC": plotting.SKY,
}


def masses(target: separated.Problem, found: crossers.Found) -> np.ndarray:
    """The weight of each mode in each chain, not normalised, shape (chains, modes)."""
    labels = np.asarray(jax.jit(jax.vmap(jax.vmap(target.label)))(jnp.asarray(found.samples)))
    return np.stack([np.bincount(one, w, target.modes) for one, w in zip(labels, found.weights, strict=True)])


def score(target: separated.Problem, truth: separated.Truth, found: crossers.Found) -> dict[str, Any]:
    """What a row says of samples; those of a chain that left the numbers are no samples."""
    finite: Any = np.isfinite(found.samples).all(-1)
    samples, weights = np.where(finite[..., None], found.samples, 0.0), np.where(finite, found.weights, 0.0)
    if weights.sum() == 0.0:
        return (
            {"found": 0}
            | dict.fromkeys(("variation", "chain_variation", "worst"), 1.0)
            | dict.fromkeys(("error", "error_square"), math.inf)
        )
    mass = masses(target, found._replace(samples=samples, weights=weights))
    away = lambda one: 0.5 * float(np.abs(one / max(one.sum(), 1e-300) - truth.weights).sum())
    share, places = (weights / weights.sum()).ravel(), samples.reshape(-1, target.dim)
    squares = share @ np.square(places - truth.mean)
    return {
        "variation": away(mass.sum(0)),
        "worst": float(np.abs(mass.sum(0) / mass.sum() - truth.weights).max()),
        "chain_variation": float(np.mean([away(one) for one in mass])),
        "found": int(np.count_nonzero(mass.sum(0) >= 0.1 * mass.sum() * truth.weights)),
        "error": float(np.max(np.abs(share @ places - truth.mean) / truth.sd)),
        "error_square": float(np.max(np.abs(squares / np.square(truth.sd) - 1.0))),
    }


def measured(name: str, method: str, setting: crossers.Setting, stage: str, seed: int, budget: int) -> Row:
    target, how = separated.problem(name), crossers.METHODS[method]
    began = time.perf_counter()
    found = how.sample(target, jax.random.key(seed), budget, **setting)
    seconds = time.perf_counter() - began
    chains, draws = found.samples.shape[:2]
    return Row(
        problem=name,
        method=method,
        setting=json.dumps(setting),
        stage=stage,
        seed=seed,
        budget=budget,
        chains=chains,
        draws=draws,
        gradients=found.gradients,
        **{field: value for field, value in score(target, separated.truth(name), found).items() if field in Row._fields},
        modes=target.modes,
        round_trips=1_000.0 * found.round_trips / found.gradients,
        seconds=round(seconds, 2),
        by=f"{how.by} {importlib.metadata.version(how.by)}",
    )


def run(name: str, method: str, seeds: Sequence[int], budget: int, path: pathlib.Path, console: Console) -> None:
    """The pilots and then those seeds that the CSV does not hold."""
    table.add(path, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    done = {row.run: row for row in table.read(path, Row)}

    def once(setting: crossers.Setting, stage: str, seed: int, budget: int) -> Row:
        key = (name, method, json.dumps(setting), stage, seed)
        if key not in done:
            done[key] = measured(name, method, setting, stage, seed, budget)
            table.add(path, Row, [done[key]], key=KEY, varying=["seconds", "by"])
            told = f"weights wrong by {done[key].variation:.3f}, {done[key].seconds:.1f} s"
            console.print(f"{name}, {method}, {stage}, seed {seed}: {told}")
        return done[key]

    settings = crossers.METHODS[method].settings
    if len(settings) == 1:
        (best,) = settings
    else:
        pilots = [once(setting, "pilot", PILOT_SEED, budget // 4) for setting in settings]
        best = settings[int(np.argmin([row.variation + row.error for row in pilots]))]
    for seed in seeds:
        once(best, "report", seed, budget)


def median(rows: Sequence[Row], field: str) -> float:
    return float(np.median([getattr(row, field) for row in rows]))


def errors(rows: Sequence[Row]) -> Table:
    """Medians over the seeds."""
    made = Table(
        "posterior", "sampler", "set", "weights", "of a chain", "modes", "mean", "square", "round trips", "gradients", "s"
    )
    made.title = "errors; round trips per 1,000 gradients; medians over the seeds"
    for name in dict.fromkeys(row.problem for row in rows):
        for method in COLORS:
            own = [row for row in rows if (row.problem, row.method, row.stage) == (name, method, "report")]
            if own:
                fields = (
                    "variation",
                    "chain_variation",
                    "found",
                    "error",
                    "error_square",
                    "round_trips",
                    "gradients",
                    "seconds",
                )
                weights, alone, seen, error, square, trips, *spent = (median(own, field) for field in fields)
                setting = ", ".join(f"{one} {value}" for one, value in json.loads(own[0].setting).items())
                cells = [f"{weights:.3f}", f"{alone:.3f}", f"{seen:.0f} of {own[0].modes}", f"{error:.3f}", f"{square:.3f}"]
                cells += ["" if math.isnan(trips) else f"{trips:.2g}", *(f"{one:.0f}" for one in spent)]
                made.add_row(name, method, setting, *cells)
    return made


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """A panel a posterior: the error of the modes' weights, every seed a dot and the median a bar."""
    mpl.use("Agg")
    names = list(dict.fromkeys(row.problem for row in rows))
    methods = [name for name in COLORS if any(row.method == name for row in rows)]
    floor, across = 3e-3, min(len(names), 3)
    down = math.ceil(len(names) / across)
    with summary.styled():
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(2.9 * across + 1.8, 2.3 * down + 0.6),
            layout="constrained",
            sharey=True,
            sharex=True,
            squeeze=False,
        )
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
        for ax, name in zip(axes.flat, names, strict=False):
            for place, method in enumerate(reversed(methods)):
                own = [row for row in rows if (row.problem, row.method, row.stage) == (name, method, "report")]
                values = np.maximum([row.variation for row in own], floor)
                if own:
                    ax.plot(values, [place] * len(own), "o", color=COLORS[method], alpha=0.45, markersize=4, markeredgewidth=0)
                    ax.plot(np.median(values), place, "|", color=COLORS[method], markersize=14, markeredgewidth=2.5)
            ax.set(title=name.replace("_", " "), xscale="log", xlim=(floor / 1.3, 1.3), ylim=(-0.6, len(methods) - 0.4))
            ax.grid(visible=True, axis="x", alpha=0.3)
            ax.set_yticks(range(len(methods)), list(reversed(methods)))
        spent = f"by {BUDGET:,} gradients, or by one population or block if that takes more"
        figure.supxlabel(f"error of the modes' weights (total variation), {spent}", fontsize="medium")
        files.save_figure(figure, path, dpi=130)


def find_truth(names: Sequence[str], path: pathlib.Path, console: Console) -> None:
    """Weights, means and standard deviations by three samplers, the first of which counts; the others are to agree."""
    long: dict[str, Any] = {"replicas": 12, "hottest": 0.003, "ladders": 16}
    wide: dict[str, Any] = {"particles": 10_000, "target_ess": 0.9}
    ways: dict[str, Callable[[separated.Problem], dict[str, Any]]] = {
        "parallel tempering": lambda target: told(target, crossers.parallel_tempering, 20_000_000, long),
        "tempered SMC": lambda target: told(target, crossers.tempered_smc, 1, wide),
        "nested sampling": nested,
    }
    known = truth_in(path)
    for name in names:
        for way, find in ways.items():
            if way not in known.get(name, {}):
                began = time.perf_counter()
                found = {**find(separated.problem(name)), "provenance": provenance.flat()}
                console.print(f"{name}, {way}: {time.perf_counter() - began:.0f} s")
                with files.alone(path):
                    known = truth_in(path)  # another process may have come first
                    known.setdefault(name, {}).setdefault(way, found)
                    files.replace(path, f"{json.dumps(known, indent=1)}\n".encode())
        first, *others = (known[name][way] for way in ways)
        for way, other in zip(list(ways)[1:], others, strict=True):
            apart = np.abs(np.subtract(first["mean"], other["mean"]) / first["sd"]).max()
            of_weights = 0.5 * np.abs(np.subtract(first["weights"], other["weights"])).sum()
            console.print(f"{name}, {way}: apart by {of_weights:.3f} in the weights, by {apart:.3f} deviations in a mean")


def truth_in(path: pathlib.Path) -> dict[str, Any]:
    """What is known so far, by posterior and sampler."""
    return json.loads(path.read_text()) if path.exists() else {}


def told(target: separated.Problem, sampler: crossers.Sampler, budget: int, setting: crossers.Setting) -> dict[str, Any]:
    found = sampler(target, jax.random.key(2_026), budget, **setting)
    return {**figures(target, found), "gradients": found.gradients}


def figures(target: separated.Problem, found: crossers.Found) -> dict[str, list[float]]:
    """Of samples: weights of the modes and moments, over all images of each, by their densities.

    So little hangs on how often a symmetry was crossed.
    """

    @jax.jit
    @jax.vmap
    def orbit(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        images = target.images(x)
        return images, jax.vmap(target.label)(images), jax.nn.softmax(-jax.vmap(target.prior)(images))

    images, labels, densities = map(np.asarray, orbit(jnp.asarray(found.samples.reshape(-1, target.dim))))
    share = (densities * np.ravel(found.weights / np.sum(found.weights))[:, None]).ravel()
    places = images.reshape(-1, target.dim)
    mean = share @ places
    sd = np.sqrt(share @ np.square(places - mean))
    weights = np.bincount(labels.ravel(), share, target.modes)
    return {"weights": weights.tolist(), "mean": mean.tolist(), "sd": sd.tolist()}


def nested(target: separated.Problem) -> dict[str, Any]:
    """By dynesty, with random slices and 500 points."""
    import dynesty  # noqa: PLC0415 - slow to import, and only the truth needs it

    likelihood = jax.jit(lambda x: -target.likelihood(x))
    make: Any = dynesty.NestedSampler
    sampler = make(
        lambda x: float(likelihood(x)),
        lambda uniform: target.quantile(uniform[None])[0],
        target.dim,
        nlive=500,
        sample="rslice",
        rstate=np.random.default_rng(2_026),
    )
    sampler.run_nested(dlogz=0.05, print_progress=False)
    found = sampler.results
    weights = np.exp(found.logwt - found.logz[-1])
    chain = crossers.Found(np.asarray(found.samples)[None], weights[None], int(np.sum(found.ncall)))
    evidence = {
        "log_evidence": float(found.logz[-1]),
        "log_evidence_error": float(found.logzerr[-1]),
        "energies": chain.gradients,
    }
    return {**figures(target, chain), **evidence}


def parser_of(prog: str, description: str | None, csv: pathlib.Path) -> argparse.ArgumentParser:
    """What the commands over separated modes have in common: which of these posteriors and samplers, seeds and file."""
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=separated.NAMES, metavar="NAME", help="only these (default all)")
    parser.add_argument("--methods", nargs="+", choices=crossers.METHODS, metavar="NAME", help="only these (default all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds (default %(default)s)")
    parser.add_argument("--csv", type=pathlib.Path, default=csv, help="where results are kept (default %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("benchmarks.multimodal", __doc__, CSV)
    parser.add_argument("--small", action="store_true", help="one problem, parallel tempering, one seed, fewer gradients")
    parser.add_argument("--truth", action="store_true", help="find the truth, where its file lacks it, and nothing else")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder of the figure (default out)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    names, methods = options.problems or separated.NAMES, options.methods or tuple(crossers.METHODS)
    seeds, budget = options.seeds, BUDGET
    if options.small:
        names, methods, seeds, budget = names[:1], options.methods or ("parallel tempering",), 1, SMALL
    console = Console()
    try:
        with jax.enable_x64(True):
            if options.truth:
                find_truth(names, separated.TRUTH, console)
                return
            for name in names:
                for method in methods:
                    run(name, method, range(seeds), budget, options.csv, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    rows = [row for row in table.read(options.csv, Row) if row.problem in names]
    if rows:
        console.print(errors(rows))
        draw(rows, options.out / "multimodal.png")
        console.print(f"wrote {options.out / 'multimodal.png'}")


if __name__ == "__main__":
    main()
