"""Is one run worth an ensemble? Images with wrong labels: one sampler's mean beside networks, ensembles and early stopping.

    python -m benchmarks.ensembles                 5,000 images of MNIST, about an hour of one core
    python -m benchmarks.ensembles --data digits --steps 2000 --trials 2 --seeds 2

A share of the labels is wrong, the network is an MLP of 100 hidden units, and every method takes the same number of gradients:
an ensemble of four trains each network for a quarter of the steps. Every method has three hyperparameters, a weight decay among
them, and the same trials, of which the accuracy on images apart chooses one, *with labels that are as wrong*: who has wrong
labels to train on has no others to choose by. The same labels stop early what is stopped early. Test labels are right.

A mean over the second half is read off SGD-M's runs, too, so that what noise adds to averaging can be told. CTLD's is over
the steps in its window, where it is at its own temperature, and over all, each counting alike: `posterior.log_weights` is for
couplings that are exact, and a network of this size moves alpha by the standardized one.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from rich.console import Console

import ctld_optax
from benchmarks.harness import data, files, label_noise, methods, summary, sweep, table
from benchmarks.harness.sweep import Method, Range, Stage
from ctld_optax import baselines, plotting

CSV = pathlib.Path(__file__).parent / "results" / "ensembles.csv"
WRONG = (0.3, 0.2, 0.0)  # shares of labels, in this order
STEPS = 10_000
TRIALS = 16
TUNING_SEEDS = (1000,)
SEEDS, REPORT_SEED = 4, 10  # how many, from which on
MEMBERS = 4
KEY = ("config", "method", "stage", "hyperparameters", "seed")

RATE, ADAPTIVE = Range(3e-3, 0.3), Range(1e-4, 1e-2)  # learning rates
L2 = Range(1e-4, 3e-2)
DECAY = Range(0.03, 10.0)  # of AdamW, which multiplies it by the learning rate
TEMPERATURE = Range(1e-6, 3e-4)
POINT = {"learning_rate": RATE, "friction": methods.FRICTION, "l2": L2}
SAMPLER = {"learning_rate": RATE, "temperature": TEMPERATURE, "l2": L2}


def cosine(hyper: Mapping[str, Any], steps: int) -> Any:
    return optax.cosine_decay_schedule(hyper["learning_rate"], steps)


def sgd_m_cosine(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    return optax.sgd(cosine(hyper, steps), 1.0 - hyper["friction"])


def adamw(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    return optax.adamw(cosine(hyper, steps), 1.0 - hyper["friction"], weight_decay=hyper["weight_decay"])


def dropout(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    return optax.sgd(cosine(hyper, steps), methods.MOMENTUM)


def cyclical_sghmc(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """Noise at the end of each cosine: Zhang et al., "Cyclical Stochastic Gradient MCMC ...", ICLR 2020."""
    rate = lambda step: hyper["learning_rate"] * 0.5 * (1.0 + jnp.cos(jnp.pi * label_noise.cycle(step, steps)))
    heat = lambda step: jnp.where(label_noise.cycle(step, steps) <= label_noise.EXPLORING, 0.0, hyper["temperature"])
    return baselines.sghmc(rate, heat, methods.MOMENTUM, key=key)


def sghmc(hyper: Mapping[str, Any], key: Any, _steps: int) -> Any:
    return baselines.sghmc(hyper["learning_rate"], hyper["temperature"], methods.MOMENTUM, key=key)


def ctld(hyper: Mapping[str, Any], key: Any, _steps: int) -> Any:
    return ctld_optax.ctld(hyper["learning_rate"], hyper["temperature"], methods.MOMENTUM, key=key)


class Way(NamedTuple):
    """How to train, and in how many runs that share the steps."""

    method: Method
    members: int = 1


WAYS = {
    "sgd": Way(Method(POINT, methods.sgd_m)),
    "cosine": Way(Method(POINT, sgd_m_cosine)),
    "adamw": Way(Method({"learning_rate": ADAPTIVE, "friction": methods.FRICTION, "weight_decay": DECAY}, adamw)),
    "ensemble": Way(Method(POINT, sgd_m_cosine), MEMBERS),
    "dropout": Way(Method({"learning_rate": RATE, "dropout": Range(0.1, 0.7), "l2": L2}, dropout)),
    "cyclical": Way(Method(SAMPLER, cyclical_sghmc)),
    "sghmc": Way(Method(SAMPLER, sghmc)),
    "ctld": Way(Method(SAMPLER, ctld)),
}


class Kind(NamedTuple):
    """Methods that answer one question when CTLD is held against them."""

    name: str
    color: str


ONE = Kind("one network", "#4d4d4d")
SEVERAL = Kind("several networks", plotting.BLUE)
QUIET = Kind("one run averaged, without noise", plotting.GREEN)
NOISY = Kind("one run averaged, constant temperature or cycles", plotting.SKY)
TEMPERED = Kind("one run averaged, continuously tempered", plotting.VERMILLION)


class Reading(NamedTuple):
    """A method: a way to train, and what is read off its runs."""

    way: str
    reading: str
    kind: Kind


WINDOW, ALL = "CTLD, window", "CTLD, all steps"
METHODS = {
    "SGD-M": Reading("sgd", "last", ONE),
    "SGD-M, cosine": Reading("cosine", "last", ONE),
    "AdamW, cosine": Reading("adamw", "last", ONE),
    "early stopping": Reading("sgd", "stopped", ONE),
    "MC dropout": Reading("dropout", "passes", SEVERAL),
    "ensemble of 4": Reading("ensemble", "last", SEVERAL),
    "ensemble of 4, stopped": Reading("ensemble", "stopped", SEVERAL),
    "SWA": Reading("sgd", "weights", QUIET),
    "SGD-M, averaged": Reading("sgd", "mean", QUIET),
    "cyclical SGHMC": Reading("cyclical", "cycles", NOISY),
    "SGHMC, averaged": Reading("sghmc", "mean", NOISY),
    WINDOW: Reading("ctld", "window", TEMPERED),
    ALL: Reading("ctld", "mean", TEMPERED),
}
# Not a method: it stops where the test set says, at the setting of `early stopping`.
ORACLE, ORACLE_OF = "early stopping by an oracle", "early stopping"


class Row(NamedTuple):
    """One line of the CSV: a reading of a run. While tuning nothing is known but the accuracy on the validation set."""

    config: str  # JSON
    method: str
    stage: str
    hyperparameters: str  # JSON
    seed: int
    validation: float  # accuracy against labels that are as wrong as those to train on
    accuracy: float
    nll: float
    ece: float
    entropy: float
    entropy_out: float
    detection: float
    seconds: float

    @property
    def wrong(self) -> float:
        return json.loads(self.config)["wrong"]


def best_setting(rows: Sequence[Row]) -> str:
    """Of the best mean over the tuning seeds; a run that diverged is the worst of all."""
    scored: dict[str, list[float]] = {}
    for row in rows:
        scored.setdefault(row.hyperparameters, []).append(row.validation if math.isfinite(row.validation) else -1.0)
    return max(scored, key=lambda setting: float(np.mean(scored[setting])))


class Study:
    """One share of wrong labels: what it runs, and where its rows are."""

    def __init__(self, found: label_noise.Parts, config: Mapping[str, Any], path: pathlib.Path, console: Console) -> None:
        self.found, self.config, self.path, self.console = found, sweep.as_json(config), path, console
        self.wrong = float(config["wrong"])

    def rows(self, stage: Stage) -> list[Row]:
        return [row for row in table.read(self.path, Row) if (row.config, row.stage) == (self.config, stage)]

    def run(self, train: Any, names: Sequence[str], stage: Stage, hyper: Mapping[str, float], seed: int) -> None:
        """One run, and a row for each method of `names`, which are read off it; nothing if the CSV has them."""
        setting = sweep.as_json(hyper)
        there = {row.method for row in self.rows(stage) if (row.hyperparameters, row.seed) == (setting, seed)}
        if not set(names) - there:
            return
        images = label_noise.with_wrong_labels(self.found, self.wrong, seed, with_test=stage == "report")
        began = time.perf_counter()
        read = jax.device_get(train(jax.tree.map(jnp.float32, dict(hyper)), jnp.asarray(seed), images))
        seconds = round(time.perf_counter() - began, 2)
        rows: list[Row] = []
        for name in names:
            predictions = read["oracle" if name == ORACLE else METHODS[name].reading]
            validation = label_noise.validation_accuracy(predictions, images)
            scored = label_noise.scores(predictions, self.found.test_y) if stage == "report" else label_noise.UNKNOWN
            rows.append(Row(self.config, name, stage, setting, seed, validation, *scored, seconds=seconds))
        table.add(self.path, Row, rows, key=KEY, varying=["seconds"])
        told = ", ".join(f"{row.method} {row.validation if stage == 'tune' else row.accuracy:.3f}" for row in rows)
        self.console.print(f"{self.wrong:.0%} wrong, {stage}, seed {seed}, {seconds:.0f} s: {told}")

    def chosen(self, name: str, tried: Sequence[Mapping[str, float]]) -> str:
        settings = {sweep.as_json(hyper) for hyper in tried}
        return best_setting([row for row in self.rows("tune") if row.method == name and row.hyperparameters in settings])

    def sweep(self, way: Way, train: Any, names: Sequence[str], trials: int, seeds: Sequence[int]) -> None:
        """Tunes these methods, which share their runs, and reports each at its own best."""
        tried = sweep.settings(way.method, trials)
        for hyper in tried:
            for seed in TUNING_SEEDS:
                self.run(train, names, "tune", hyper, seed)
        best = {name: self.chosen(name, tried) for name in names}
        if ORACLE_OF in best:
            best[ORACLE] = best[ORACLE_OF]
        for setting in dict.fromkeys(best.values()):
            for seed in seeds:
                own = [name for name, chosen in best.items() if chosen == setting]
                self.run(train, own, "report", json.loads(setting), seed)


# What the rows say.


def newest(rows: Sequence[Row]) -> list[Row]:
    """Those of the study that was written last, all its shares of wrong labels."""
    study = lambda row: {**json.loads(row.config), "wrong": None}
    return [row for row in rows if study(row) == study(rows[-1])]


class Told:
    """What was reported at one share of wrong labels. Methods are compared seed by seed: a seed has one set of wrong labels."""

    def __init__(self, rows: Sequence[Row], wrong: float) -> None:
        self.wrong = wrong
        self.tuned = [row for row in rows if (row.wrong, row.stage) == (wrong, "tune")]
        reported = [row for row in rows if (row.wrong, row.stage) == (wrong, "report")]
        tried = {row.method for row in self.tuned}
        best = {name: best_setting([row for row in self.tuned if row.method == name]) for name in METHODS if name in tried}
        best[ORACLE] = best.get(ORACLE_OF, "")
        # Not what was reported before more settings were tried.
        own = lambda name: [row for row in reported if (row.method, row.hyperparameters) == (name, best.get(name))]
        self.by_seed = {name: {row.seed: row for row in own(name)} for name in (*METHODS, ORACLE)}
        self.names = [name for name in METHODS if self.by_seed[name]]

    def values(self, name: str, column: str) -> np.ndarray:
        return np.asarray([getattr(row, column) for row in self.by_seed[name].values()])

    def figure(self, name: str, column: str) -> str:
        """Mean and half the 95 % t-interval over the seeds."""
        found = summary.interval(self.values(name, column))
        return f"{found.mean:.3f} ± {found.half:.3f}" if math.isfinite(found.mean) else "diverged"

    def gain(self, over: str, name: str = WINDOW) -> summary.Interval:
        """What `name` is ahead by, in accuracy, on the seeds that both have."""
        ours, theirs = self.by_seed[name], self.by_seed[over]
        return summary.interval([ours[seed].accuracy - theirs[seed].accuracy for seed in ours if seed in theirs])

    def chosen(self, name: str) -> str:
        row = next(iter(self.by_seed[name].values()))
        tried = [json.loads(one.hyperparameters) for one in self.tuned if one.method == name]
        setting = json.loads(row.hyperparameters)
        ends = [key for key, value in setting.items() if value in (f([one[key] for one in tried]) for f in (min, max))]
        return summary.in_words(setting, ends if len(tried) > 2 else ())

    def tried(self, name: str) -> float:
        """Median over the settings of the validation accuracy; 0 for those that diverged."""
        return float(np.median(np.nan_to_num([row.validation for row in self.tuned if row.method == name])))

    def accuracies(self) -> str:
        """The oracle among the methods, and by how much CTLD is ahead."""
        lines: list[list[str]] = []
        for name in [*self.names, *([ORACLE] if self.by_seed[ORACLE] else [])]:
            ahead = ["" if name == own or own not in self.names else in_points(self.gain(name, own)) for own in (WINDOW, ALL)]
            lines.append([name, self.figure(name, "accuracy"), *ahead])
        return summary.markdown(["method", "test accuracy", *(f"{name} is ahead by" for name in (WINDOW, ALL))], lines)

    def others(self) -> str:
        """What else was measured, and what the tuning chose."""
        columns = {"nll": "NLL", "ece": "calibration error", "detection": "shuffled told"}
        lines = [
            [name, *(self.figure(name, column) for column in columns), f"{self.tried(name):.3f}", self.chosen(name)]
            for name in self.names
        ]
        return summary.markdown(["method", *columns.values(), "median setting", "chosen (* edge of the range)"], lines)

    def budget(self) -> str:
        """What every method was given, counted."""
        tried = sorted({len({row.hyperparameters for row in self.tuned if row.method == name}) for name in self.names})
        seeds = sorted({len(self.by_seed[name]) for name in self.names})
        on = len({row.seed for row in self.tuned})
        unequal = "**Unequal budgets.** " if len(tried) > 1 or len(seeds) > 1 else ""
        each, new = (" or ".join(map(str, found)) for found in (tried, seeds))
        return f"{unequal}{each} settings of each method on {on} seed{'s' * (on > 1)}, the best one on {new} new seeds."

    def answers(self) -> str:
        """CTLD against each kind of method, as it came out."""
        if WINDOW not in self.names:
            return "CTLD is not in the CSV yet."
        lines: list[str] = []
        for kind in dict.fromkeys(reading.kind for reading in METHODS.values()):
            others = [name for name in self.names if METHODS[name].kind == kind and name != WINDOW]
            said = {name: verdict(self.gain(name)) for name in others}
            parts = [
                f"{word} {listed([f'{name} ({in_points(self.gain(name))})' for name in others if said[name] == word])}"
                for word in dict.fromkeys(said.values())
            ]
            lines += [f"- **{kind.name}**: {WINDOW}, is {'; '.join(parts)}."] if parts else []
        return "\n".join(lines)

    def best(self) -> str:
        """Which method leads, and which others cannot be told from it."""
        order = sorted(self.names, key=lambda name: -float(np.nan_to_num(self.values(name, "accuracy").mean())))
        level = [name for name in order[1:] if verdict(self.gain(name, order[0])) == LEVEL]
        rest = f"; not to be told from it: {listed(level)}" if level else "; beyond the spread of the seeds"
        return f"Best at {self.wrong:.0%} wrong labels: {order[0]}, {self.figure(order[0], 'accuracy')}{rest}."


BETTER, LEVEL, WORSE, UNKNOWN = "better than", "not to be told from", "**worse** than", "not to be compared with"


def verdict(gain: summary.Interval) -> str:
    if math.isnan(gain.mean):
        return UNKNOWN
    return BETTER if gain.mean - gain.half > 0.0 else WORSE if gain.mean + gain.half < 0.0 else LEVEL


def in_points(gain: summary.Interval) -> str:
    """Of accuracy, in per cent."""
    return f"{100 * gain.mean:+.2f} ± {100 * gain.half:.2f}" if math.isfinite(gain.mean) else "diverged"


def listed(found: Sequence[str]) -> str:
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def told(rows: Sequence[Row]) -> list[Told]:
    """One for each share of wrong labels that was reported, the largest first."""
    return [Told(rows, wrong) for wrong in sorted({row.wrong for row in rows if row.stage == "report"}, reverse=True)]


def section(rows: Sequence[Row]) -> str:
    """Tables and answers, every number from the rows."""
    rows = newest(rows)
    config = json.loads(rows[-1].config)
    panels = told(rows)
    introduction = (
        f"{config['train_images']:,} images, {config['steps']:,} gradients a method; ± is half the 95 % t-interval over seeds. "
        "A difference is of accuracy, in per cent, seed by seed: a seed has the same wrong labels for all methods."
    )
    parts = [introduction]
    for each in panels:
        parts += [
            f"## {each.wrong:.0%} wrong labels",
            each.budget(),
            each.accuracies(),
            each.best(),
            each.answers(),
            each.others(),
        ]
    return "\n\n".join(parts)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Test accuracy, a line a method, a panel a share of wrong labels: every seed a dot, their mean a bar."""
    panels = told(newest(rows))
    names = [name for name in reversed(METHODS) if any(name in each.names for each in panels)]
    with summary.styled():
        size = (max(9.0, 3.0 + 3.2 * len(panels)), 0.36 * len(names) + 1.8)
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
        for ax, each in zip(axes[0], panels, strict=True):
            for place, name in enumerate(names):
                if name in each.names:
                    values, color = each.values(name, "accuracy"), METHODS[name].kind.color
                    ax.plot(values, place + np.linspace(-0.15, 0.15, len(values)), "o", color=color, markersize=4, alpha=0.6)
                    ax.plot(values.mean(), place, "|", color=color, markersize=16, markeredgewidth=2.5)
            if each.by_seed[ORACLE]:
                ax.axvline(each.values(ORACLE, "accuracy").mean(), color="0.3", linewidth=1.2, linestyle="--", zorder=0)
            ax.set(title=f"{each.wrong:.0%} wrong labels", xlabel="test accuracy")
            ax.xaxis.set_major_locator(MaxNLocator(4))
        axes[0][0].set_yticks(range(len(names)), names)
        for kind in dict.fromkeys(METHODS[name].kind for name in reversed(names)):
            axes[0][0].plot([], [], "o", color=kind.color, label=kind.name)
        axes[0][0].plot([], [], color="0.3", linewidth=1.2, linestyle="--", label="early stopping by the test labels")
        figure.legend(loc="outside lower center", ncols=2, fontsize="small")
        files.save_figure(figure, path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.ensembles", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist", help="the images (default %(default)s)")
    parser.add_argument(
        "--wrong", nargs="+", type=float, default=WRONG, metavar="SHARE", help="of the labels (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="gradients a method may take (default %(default)s)")
    parser.add_argument("--trials", type=int, default=TRIALS, help="settings a method may try (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds reported (default %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help="only these (default all)")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder of the figure (default out)")
    options = parser.parse_args(arguments)
    mpl.use("agg")
    console = Console()
    images = label_noise.parts(data.mnist() if options.data == "mnist" else data.digits(test_share=0.5))
    base = {
        "data": options.data,
        "train_images": len(images.train_y),
        "steps": options.steps,
        "batch": label_noise.BATCH,
        "hidden": label_noise.HIDDEN,
    }
    table.add(options.csv, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    trainers: dict[str, Any] = {name: label_noise.trainer(way.method, options.steps, way.members) for name, way in WAYS.items()}
    try:
        for wrong in options.wrong:
            config = {**base, "wrong": wrong}
            study = Study(images, config, options.csv, console)
            for name, way in WAYS.items():
                names = [m for m, reading in METHODS.items() if reading.way == name and m in (options.methods or METHODS)]
                if names:
                    study.sweep(way, trainers[name], names, options.trials, range(REPORT_SEED, REPORT_SEED + options.seeds))
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    rows = [row for row in table.read(options.csv, Row) if {**json.loads(row.config), "wrong": None} == {**base, "wrong": None}]
    if any(row.stage == "report" for row in rows):
        console.print(section(rows), markup=False, soft_wrap=True)
        draw(rows, options.out / "ensembles.png")
        console.print(f"wrote {options.out / 'ensembles.png'}")


if __name__ == "__main__":
    main()
