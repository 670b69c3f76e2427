"""A network that SGD with momentum cannot train, on handwritten digits: 20 hidden layers, plain N(0, 0.1^2) weights.

    python -m benchmarks.digits

Trains the network of benchmarks/harness/deep_mlp.py with SGD-M, Adam, SGHMC (the same sampler at constant temperature) and
CTLD -> SGD-M for the same number of steps, prints accuracy and loss for every seed, and draws what happened.
"""

import argparse
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib import pyplot as plt
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.harness import data, deep_mlp, files, methods, provenance, summary, training
from benchmarks.harness.sweep import Hyperparameters, Method
from ctld_optax import diagnostics, plotting

CHUNK = 50  # steps between two evaluations, one compiled scan
FIXED = {"learning_rate": 0.01, "friction": 1.0 - methods.MOMENTUM}  # of all rows; SGD-M's own four trials are all at chance


class Knob(NamedTuple):
    """The one hyperparameter that a method was tuned by, the four values that were tried (`--tune`), and those in the table."""

    name: str
    label: str
    tried: tuple[float, float, float, float]
    chosen: tuple[float, ...]


METHODS: dict[str, tuple[Callable[..., Any], Knob]] = {
    "SGD-M": (methods.sgd_m, Knob("learning_rate", "lr", (1e-3, 1e-2, 1e-1, 1.0), (1e-2,))),
    "Adam": (methods.adam, Knob("learning_rate", "lr", (3e-4, 1e-3, 3e-3, 1e-2), (3e-3,))),
    # The sampler at constant temperature. Both at one cold temperature, and each at its best of the four.
    "SGHMC": (methods.sghmc, Knob("temperature", "T", (2e-5, 4e-5, 6e-5, 1.2e-4), (2.5e-5, 6e-5))),
    "CTLD": (methods.two_phases, Knob("temperature", "T", (1e-5, 2.5e-5, 4e-5, 6e-5), (2.5e-5, 4e-5))),
}
TRAINED = 0.9  # an accuracy that tells runs that got off the plateau from those that did not
TUNING_SEEDS = (100, 101)  # not reported


def jobs(tune: bool) -> dict[str, Method]:
    """Label -> method, for the chosen hyperparameters or for all that were tried."""
    return {
        f"{name}, {knob.label} = {value:g}": at({**FIXED, knob.name: value}, make)
        for name, (make, knob) in METHODS.items()
        for value in (knob.tried if tune else knob.chosen)
    }


def at(hyper: Hyperparameters, make: Callable[..., Any]) -> Method:
    """A method with nothing left to choose: its hyperparameters are constants of the program."""
    return Method({}, lambda _, key, steps: make(hyper, key, steps))


def task(split: data.Split) -> training.Task:
    """Measured: the loss on the training set and the accuracy on the test set. `frozen` has a key for each step's minibatch."""

    def loss(params: Any, memory: Any, arrays: Any, keys: Any, step: Any, _key: Any) -> tuple[jax.Array, Any]:
        return deep_mlp.minibatch_loss(params, keys[step], *arrays["train"]), memory

    def evaluate(params: Any, arrays: Any, _keys: Any) -> tuple[jax.Array, float, jax.Array]:
        return deep_mlp.loss(params, *arrays["train"]), math.nan, deep_mlp.accuracy(params, *arrays["test"])

    return training.Task(
        init=lambda key: deep_mlp.MODEL.init(key, jnp.zeros((1, split.train_x.shape[1]))),
        begin=lambda _arrays: (),
        loss=loss,
        evaluate=evaluate,
        data=jax.tree.map(jnp.asarray, {"train": (split.train_x, split.train_y), "test": (split.test_x, split.test_y)}),
    )


def minibatch_keys(seed: jax.Array, steps: int) -> jax.Array:
    """Shape (steps,), each split off the one before: not `training.Fit`'s own, but those of the runs in the README."""

    def split_off(key: Any, _: None) -> tuple[Any, Any]:
        key, minibatch_key = jax.random.split(key)
        return key, minibatch_key

    return jax.lax.scan(split_off, jax.random.fold_in(jax.random.key(seed), 2), length=steps)[1]


def trajectory(loss: jax.Array, opt_state: Any) -> dict[str, Any]:
    """What is kept of every step."""
    tempered = optax.tree.get(opt_state, "alpha") is not None
    return {"minibatch_loss": loss, **(diagnostics.snapshot(opt_state)._asdict() if tempered else {})}


def train(
    method: Method,
    split: data.Split,
    seeds: Sequence[int],
    steps: int,
    on_chunk: Callable[[int], None],
    curves: dict[str, list[np.ndarray]],
) -> None:
    """Trains one replica a seed, all at once; appends one entry a chunk to each of `curves`."""
    points = steps // CHUNK
    # Not compiled, as in the README's runs: a method on the edge trains or fails by the last digit of its weights.
    fit = training.Fit(task(split), method, steps=steps, points=points, record=trajectory, compile_start=False)
    replicas = jnp.asarray(seeds)
    keys = jax.vmap(functools.partial(minibatch_keys, steps=steps))(replicas)
    for _, point, recorded in fit.follow({}, replicas, keys):
        entries = {**jax.device_get(recorded), "train_loss": point.train, "test_accuracy": point.test}
        for name, values in entries.items():
            curves.setdefault(name, []).append(values)
        on_chunk(point.step)


def run(wanted: dict[str, Method], seeds: Sequence[int], steps: int, console: Console) -> dict[str, dict[str, Any]]:
    """All methods, one after the other. Ctrl-C ends it early, with what is done so far."""
    split = data.digits()
    results: dict[str, dict[str, Any]] = {}
    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for name, method in wanted.items():
            bar = progress.add_task(name, total=steps)
            curves: dict[str, list[np.ndarray]] = {}
            began = time.perf_counter()
            try:
                train(method, split, seeds, steps, lambda done, bar=bar: progress.update(bar, completed=done), curves)
            except KeyboardInterrupt:
                console.print(f"Interrupted in {name}; what is done so far is written.")
                break
            finally:
                if curves:
                    results[name] = _summary(curves, time.perf_counter() - began)
    return results


def _summary(curves: dict[str, list[np.ndarray]], seconds: float) -> dict[str, Any]:
    per_chunk = ("train_loss", "test_accuracy")
    arrays = {
        name: np.stack(values, -1) if name in per_chunk else np.concatenate(values, -1) for name, values in curves.items()
    }
    return {"seconds": seconds, "steps": CHUNK * len(curves["train_loss"]), **arrays}


def show(results: dict[str, dict[str, Any]], seeds: Sequence[int], steps: int, console: Console) -> None:
    console.print(f"\n20 hidden layers, weights N(0, 0.1²), scikit-learn digits, {steps} steps.")
    console.print(
        "Sampling methods sample for half the steps, then run SGD-M. Seconds: all seeds at once, compilation included.\n"
    )
    for heading, curve in (("test accuracy", "test_accuracy"), ("training loss [nats]", "train_loss")):
        table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("method", no_wrap=True)
        for column in (*(f"seed {seed}" for seed in seeds), "mean", "seconds"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, result in results.items():
            last = result[curve][:, -1]
            label = name if result["steps"] == steps else f"{name} (step {result['steps']})"
            table.add_row(label, *(f"{x:.3f}" for x in last), f"{last.mean():.3f}", f"{result['seconds']:.0f}")
        console.print(table)


def write_json(path: pathlib.Path, results: dict[str, dict[str, Any]], seeds: Sequence[int], steps: int) -> None:
    config = {
        "steps": steps,
        "seeds": list(seeds),
        "sampling_steps": methods.sampling_steps(steps),
        "batch": deep_mlp.BATCH,
        "hidden_layers": deep_mlp.HIDDEN_LAYERS,
        "width": deep_mlp.WIDTH,
        "learning_rate": FIXED["learning_rate"],
        "momentum": methods.MOMENTUM,
        "trials": {name: {knob.label: knob.tried} for name, (_, knob) in METHODS.items()},
    }
    rows = {
        name: {
            "steps": result["steps"],
            "test_accuracy": [round(float(a), 4) for a in result["test_accuracy"][:, -1]],
            "train_loss": [round(float(x), 5) if np.isfinite(x) else None for x in result["train_loss"][:, -1]],
            "seconds": round(result["seconds"], 1),
        }
        for name, result in results.items()
    }
    report = {"provenance": provenance.nested(), "config": config, "results": rows}
    files.put(path, f"{json.dumps(report, indent=1)}\n".encode())


def draw(path: pathlib.Path, results: dict[str, dict[str, Any]], steps: int) -> None:
    colors = (plotting.BLUE, plotting.GREEN, plotting.SKY, plotting.PURPLE, plotting.VERMILLION, plotting.ORANGE)
    style = dict(zip(jobs(tune=False), colors, strict=True))
    switch = methods.sampling_steps(steps)
    with summary.styled():
        figure = plt.figure(figsize=(12, 7.2), layout="constrained")
        axes = figure.subplot_mosaic([["loss", "accuracy"], ["temperature", "alpha"]], width_ratios=(1.35, 1))
        for name, result in results.items():
            at = np.arange(1, result["train_loss"].shape[1] + 1) * CHUNK
            for curve, ax in (("train_loss", axes["loss"]), ("test_accuracy", axes["accuracy"])):
                ax.plot(at, result[curve].T, color=style[name], linewidth=0.7, alpha=0.45)
                ax.plot(at, result[curve].mean(0), color=style[name], linewidth=2.0, label=name)
        axes["loss"].set(
            xlabel="step", ylabel="training loss  [nats]", yscale="log", title="Training loss: mean and every seed"
        )
        axes["accuracy"].set(xlabel="step", ylabel="test accuracy", ylim=(0, 1.02), title="Test accuracy")
        figure.legend(*axes["accuracy"].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small")
        for ax in (axes["loss"], axes["accuracy"]):
            ax.set_xlim(0, steps)
            ax.axvline(switch, color="0.25", linewidth=0.9, linestyle="--")
        tempered = next((result for name, result in results.items() if name.startswith("CTLD")), None)
        if tempered is None:
            axes["temperature"].set_axis_off()
            axes["alpha"].set_axis_off()
        else:
            plotting.temperature_trajectory(tempered["beta"][0], switch_step=switch, ax=axes["temperature"])
            axes["temperature"].set(title="CTLD's temperature, first seed", xlim=(0, steps))
            plotting.alpha_occupation(tempered["alpha"][:, :switch], ax=axes["alpha"])
            axes["alpha"].set_title(r"Where $\alpha$ was while sampling, all seeds")
            axes["alpha"].legend(loc="upper center", ncols=3, fontsize="small")
        files.save_figure(figure, path, dpi=150)


def draw_ends(path: pathlib.Path, results: dict[str, dict[str, Any]]) -> None:
    """Where every run ended, a dot each: one row a method, with the share of runs above `TRAINED`."""
    with summary.styled():
        figure, ax = plt.subplots(figsize=(8.4, 0.52 * len(results) + 1.3), layout="constrained")
        rng = np.random.default_rng(0)
        for row, (name, result) in enumerate(results.items()):
            ends = np.nan_to_num(result["test_accuracy"][:, -1])
            color = plotting.VERMILLION if name.startswith("CTLD") else plotting.BLUE
            scatter = row + rng.uniform(-0.16, 0.16, ends.size)  # so that equal ones are seen
            ax.plot(ends, scatter, "o", color=color, markersize=6, alpha=0.6, markeredgewidth=0)
            count = f"{np.count_nonzero(ends > TRAINED)} of {ends.size}"
            ax.text(1.04, row, count, va="center", color=color, fontweight="bold")
        ax.axvline(TRAINED, color="0.6", linewidth=0.9, linestyle=":")
        ax.text(1.04, -0.75, f"above {TRAINED}", va="center", color="0.3", fontsize="small")
        ax.set(xlabel="test accuracy in the end, every run a dot", xlim=(0.0, 1.02), ylim=(len(results) - 0.5, -0.6))
        ax.set_yticks(range(len(results)), results)
        ax.tick_params(axis="y", length=0)
        files.save_figure(figure, path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits", description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--steps", type=int, default=4_000, help="gradient steps for every method (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds, 0, 1, 2, ... (default %(default)s)")
    parser.add_argument("--tune", action="store_true", help="run the four trials of every method on two other seeds instead")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for the figure and the figures' data"
    )
    options = parser.parse_args(arguments)
    if options.steps < CHUNK or options.steps % CHUNK:
        parser.error(f"--steps must be a multiple of {CHUNK}, got {options.steps}")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    mpl.use("agg")
    seeds = TUNING_SEEDS if options.tune else tuple(range(options.seeds))
    console = Console(
        width=max(50 + 9 * len(seeds), Console().width)
    )  # the tables need it, also where the output is no terminal
    results = run(jobs(options.tune), seeds, options.steps, console)
    if not results:
        return
    show(results, seeds, options.steps, console)
    if options.tune:
        write_json(options.out / "digits-tuning.json", results, seeds, options.steps)
        return
    write_json(options.out / "digits.json", results, seeds, options.steps)
    draw(options.out / "digits.png", results, options.steps)
    draw_ends(options.out / "digits_ends.png", results)
    console.print(f"Wrote {options.out / 'digits.png'}, {options.out / 'digits_ends.png'} and {options.out / 'digits.json'}")


if __name__ == "__main__":
    main()
