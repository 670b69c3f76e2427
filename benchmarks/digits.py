"""A network that SGD with momentum cannot train, on handwritten digits: 20 hidden layers, plain N(0, 0.1^2) weights.

    python -m benchmarks.digits

Trains the network of benchmarks/harness/deep_mlp.py with SGD-M, Adam, SGHMC (the same sampler at constant temperature) and
CTLD -> SGD-M for the same number of steps, prints accuracy and loss for every seed, and draws what happened.
"""

import argparse
import functools
import json
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

import ctld_optax
from benchmarks.harness import data, deep_mlp, provenance, summary
from ctld_optax import diagnostics, plotting

CHUNK = 50  # steps between two evaluations, one compiled scan
LEARNING_RATE = 0.01  # of SGD-M in every row; SGD-M's own four trials are all at chance
MOMENTUM = 0.9

Factory = Callable[[Any, int], optax.GradientTransformation]


class Method(NamedTuple):
    """A way to train, its one tuned hyperparameter and the four values that were tried (`--tune`)."""

    knob: str
    trials: tuple[float, float, float, float]
    chosen: tuple[float, ...]
    make: Callable[[float, Any, int], optax.GradientTransformation]  # (hyperparameter, key, steps)


def _two_phases(temperature: float, key: Any, steps: int, **options: Any) -> optax.GradientTransformation:
    """Half the steps sampling, half SGD-M."""
    sampler = ctld_optax.ctld(LEARNING_RATE, temperature, MOMENTUM, key=key, **options)
    return ctld_optax.phase_switch(sampler, optax.sgd(LEARNING_RATE, MOMENTUM), steps // 2)


METHODS = {
    "SGD-M": Method("lr", (1e-3, 1e-2, 1e-1, 1.0), (1e-2,), lambda lr, _key, _steps: optax.sgd(lr, MOMENTUM)),
    "Adam": Method("lr", (3e-4, 1e-3, 3e-3, 1e-2), (3e-3,), lambda lr, _key, _steps: optax.adam(lr)),
    # The sampler at constant temperature. Both at one cold temperature, and each at its best of the four.
    "SGHMC": Method("T", (2e-5, 4e-5, 6e-5, 1.2e-4), (2.5e-5, 6e-5), functools.partial(_two_phases, tempering=None)),
    "CTLD": Method("T", (1e-5, 2.5e-5, 4e-5, 6e-5), (2.5e-5, 4e-5), _two_phases),
}
TUNING_SEEDS = (100, 101)  # not reported


def jobs(tune: bool) -> dict[str, Factory]:
    """Label -> (key, steps) -> transformation, for the chosen hyperparameters or for all that were tried."""
    return {
        f"{name}, {method.knob} = {value:g}": functools.partial(method.make, value)
        for name, method in METHODS.items()
        for value in (method.trials if tune else method.chosen)
    }


def train(
    factory: Factory,
    split: data.Split,
    seeds: Sequence[int],
    steps: int,
    on_chunk: Callable[[int], None],
    curves: dict[str, list[np.ndarray]],
) -> None:
    """Trains one replica a seed, all at once under `vmap`; appends one entry a chunk to each of `curves`.

    The replicas share nothing: each has its own weights, minibatches and noise, all from its seed.
    """
    train_x, train_y, test_x, test_y = (jnp.asarray(array) for array in split)

    def start(seed: jax.Array) -> tuple[Any, Any, Any]:
        params_key, noise_key, batch_key = jax.random.split(jax.random.key(seed), 3)
        params = deep_mlp.MODEL.init(params_key, train_x[:1])
        return params, factory(noise_key, steps).init(params), batch_key

    tx = optax.with_extra_args_support(factory(0, steps))  # `update` takes its key from the state

    def step(carry: tuple[Any, Any, Any], _: None) -> tuple[tuple[Any, Any, Any], Any]:
        params, opt_state, key = carry
        key, batch_key = jax.random.split(key)
        loss, grads = jax.value_and_grad(deep_mlp.minibatch_loss)(params, batch_key, train_x, train_y)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        tempered = optax.tree.get(opt_state, "alpha") is not None
        trajectory = diagnostics.snapshot(opt_state)._asdict() if tempered else {}
        return (optax.apply_updates(params, updates), opt_state, key), {"minibatch_loss": loss, **trajectory}

    @functools.partial(jax.jit, donate_argnums=0)
    @jax.vmap
    def chunk(carry: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], Any]:
        carry, recorded = jax.lax.scan(step, carry, None, length=CHUNK)
        params = carry[0]
        recorded["train_loss"] = deep_mlp.loss(params, train_x, train_y)
        recorded["test_accuracy"] = deep_mlp.accuracy(params, test_x, test_y)
        return carry, recorded

    carry = jax.vmap(start)(jnp.asarray(seeds))
    for done in range(CHUNK, steps + 1, CHUNK):
        carry, recorded = chunk(carry)
        for name, values in jax.device_get(recorded).items():
            curves.setdefault(name, []).append(values)
        on_chunk(done)


def run(factories: dict[str, Factory], seeds: Sequence[int], steps: int, console: Console) -> dict[str, dict[str, Any]]:
    """All methods, one after the other. Ctrl-C ends it early, with what is done so far."""
    split = data.digits()
    results: dict[str, dict[str, Any]] = {}
    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for name, factory in factories.items():
            task = progress.add_task(name, total=steps)
            curves: dict[str, list[np.ndarray]] = {}
            began = time.perf_counter()
            try:
                train(factory, split, seeds, steps, lambda done, task=task: progress.update(task, completed=done), curves)
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
        "sampling_steps": steps // 2,
        "batch": deep_mlp.BATCH,
        "hidden_layers": deep_mlp.HIDDEN_LAYERS,
        "width": deep_mlp.WIDTH,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "trials": {name: {method.knob: method.trials} for name, method in METHODS.items()},
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
    path.write_text(json.dumps({"provenance": provenance.nested(), "config": config, "results": rows}, indent=1) + "\n")


def draw(path: pathlib.Path, results: dict[str, dict[str, Any]], steps: int) -> None:
    colors = (plotting.BLUE, plotting.GREEN, plotting.SKY, plotting.PURPLE, plotting.VERMILLION, plotting.ORANGE)
    style = dict(zip(jobs(tune=False), colors, strict=True))
    switch = steps // 2
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
        figure.savefig(path, dpi=150)
        plt.close(figure)


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
    console = Console()
    seeds = TUNING_SEEDS if options.tune else tuple(range(options.seeds))
    results = run(jobs(options.tune), seeds, options.steps, console)
    if not results:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    show(results, seeds, options.steps, console)
    if options.tune:
        write_json(options.out / "digits-tuning.json", results, seeds, options.steps)
        return
    write_json(options.out / "digits.json", results, seeds, options.steps)
    draw(options.out / "digits.png", results, options.steps)
    console.print(f"Wrote {options.out / 'digits.png'} and {options.out / 'digits.json'}")


if __name__ == "__main__":
    main()
