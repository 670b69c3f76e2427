"""Stacked denoising autoencoders, trained layer by layer: section 5.1 and Figure 2 of the paper.

    python -m benchmarks.sda            reduced widths and steps, about 20 minutes of one core with the tuning of all methods
    python -m benchmarks.sda --full     784-500-500-2000-10, 100,000 steps a layer

Each layer is trained to restore its own input, with the layers below it frozen and a fresh optimizer, so that a sampling method
samples in the first half of every layer's steps. The curves are the mean square error per pixel of the whole stack so far,
encoded up to the layer in training and decoded again: one unit for all layers, with a bump wherever an untrained layer joins.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
from flax import linen as nn
from matplotlib import pyplot as plt

from benchmarks.harness import data, files, methods, summary, sweep, training
from benchmarks.harness.sweep import Experiment, Method, Point, Range, Row
from ctld_optax import plotting

NAME = "sda"
WIDTHS = (784, 64, 64, 128, 10)  # the paper's hidden layers over 8 to 16: a trial takes some seconds
STEPS = 720  # a layer; all methods still gain from more
FULL_WIDTHS = (784, 500, 500, 2000, 10)
FULL_STEPS = 100_000  # the bumps of Figure 2 are 10^5 iterations apart
BATCH = 64
DROPOUT = 0.2  # of the input of every layer but the first and the last
HELD_OUT = 1_000  # images to validate on, as many to test on, and as many of the training set to measure on
POINTS = 6  # of a layer's curve
LAST_POINTS = 36  # of the last layer's, to show how 1/g(alpha) moves
# CTLD's, for the experiments that need them, before this one was run.
UNTUNED = {"learning_rate": 10.0, "temperature": 1e-6, "friction": 0.1}

# Per-pixel errors of sigmoid units have gradients of 1e-3 and less, hence the large rates of the heavy ball. Temperatures and
# variances go from where trials on a tuning seed began to gain by the noise to where it destroyed all. A variance v of the
# gradient's entries is the temperature v * learning_rate / 0.2, at first.
METHODS = methods.table(Range(1.0, 100.0), adaptive=Range(1e-3, 0.1), temperature=Range(5e-8, 5e-5), variance=Range(3e-9, 3e-6))


class Layer(NamedTuple):
    """An autoencoder of one layer: sigmoid units, so that every layer sees values in (0, 1)."""

    encoder: Any  # shape (inputs, units)
    encoder_bias: Any
    decoder: Any  # shape (units, inputs)
    decoder_bias: Any

    def encode(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(x @ self.encoder + self.encoder_bias)

    def decode(self, code: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(code @ self.decoder + self.decoder_bias)


def new_layer(key: Any, inputs: int, units: int) -> Layer:
    xavier = nn.initializers.xavier_uniform()
    up, down = jax.random.split(key)
    return Layer(xavier(up, (inputs, units)), jnp.zeros(units), xavier(down, (units, inputs)), jnp.zeros(inputs))


def encode(layers: Sequence[Layer], x: jax.Array) -> jax.Array:
    for layer in layers:
        x = layer.encode(x)
    return x


def reconstruction_error(layers: Sequence[Layer], images: jax.Array) -> jax.Array:
    """Mean square error per pixel of the whole stack."""
    restored = encode(layers, images)
    for layer in reversed(layers):
        restored = layer.decode(restored)
    return jnp.mean(jnp.square(restored - images))


def task(index: int, widths: Sequence[int], images: data.Split) -> training.Task:
    """Training of layer `index`; `frozen` are the layers below it."""
    inputs, units = widths[index : index + 2]
    is_corrupted = 0 < index < len(widths) - 2

    def loss(layer: Layer, memory: Any, images: Any, frozen: Any, _step: Any, key: Any) -> tuple[jax.Array, Any]:
        batch_key, dropout_key = jax.random.split(key)
        chosen = jax.random.randint(batch_key, (BATCH,), 0, len(images["train"]))
        clean = encode(frozen, images["train"][chosen])
        keep = jax.random.bernoulli(dropout_key, 1.0 - DROPOUT, clean.shape)
        corrupted = clean * keep / (1.0 - DROPOUT) if is_corrupted else clean
        return jnp.mean(jnp.square(layer.decode(layer.encode(corrupted)) - clean)), memory

    def evaluate(layer: Layer, images: Any, frozen: Any) -> list[jax.Array]:
        stack = (*frozen, layer)
        return [reconstruction_error(stack, images[part][:HELD_OUT]) for part in ("train", "validation", "test")]

    half = len(images.test_x) // 2
    return training.Task(
        init=lambda key: new_layer(jax.random.fold_in(key, index), inputs, units),
        begin=lambda _data: (),
        loss=loss,
        evaluate=evaluate,
        data={
            "train": jnp.asarray(images.train_x),
            "validation": jnp.asarray(images.test_x[:half]),
            "test": jnp.asarray(images.test_x[half:]),
        },
    )


def experiment(
    images: data.Split, widths: Sequence[int], steps: int, *, experiment_name: str = NAME, whole_curve: bool = True
) -> Experiment:
    """Measured along the way, or at the end of each layer only."""
    last = len(widths) - 2
    points = [POINTS] * last + [LAST_POINTS] if whole_curve else [1] * (last + 1)

    def prepare(method: Method) -> sweep.Trainer:
        fits = [
            training.Fit(task(index, widths, images), method, steps=steps, points=points[index]) for index in range(last + 1)
        ]

        def train(hyper: Mapping[str, jax.Array], seeds: jax.Array) -> list[Point]:
            layers: tuple[Any, ...] = ()
            curve: list[Point] = []
            for index, fit in enumerate(fits):
                layer, measured = fit(hyper, seeds, layers)
                layers = (*layers, layer)
                curve += [point._replace(step=point.step + index * steps) for point in measured]
            return curve

        return train

    config = {
        "widths": "-".join(map(str, widths)),
        "steps_a_layer": steps,
        "batch": BATCH,
        "images": len(images.train_x),
        "momentum": "tuned",
    }
    return Experiment(experiment_name, "mse", config, prepare, at_once=4, last_step=(last + 1) * steps)


def own_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    made = sweep.parser(prog, doc)
    made.add_argument("--widths", type=int, nargs=5, metavar="N", help="inputs and four layers (default: see the top)")
    return made


def load(options: argparse.Namespace) -> tuple[data.Split, Sequence[int], int]:
    """The images, the widths and the number of steps a layer that the command line asks for."""
    widths = options.widths or (FULL_WIDTHS if options.full else WIDTHS)
    return data.mnist(num_test=2 * HELD_OUT), widths, options.steps or (FULL_STEPS if options.full else STEPS)


def tuned(rows: Sequence[Row]) -> dict[str, float]:
    """What this experiment chose for CTLD."""
    return sweep.tuned(rows, NAME, "CTLD") or UNTUNED


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """Figure 2 and its table."""
    steps = max(row.step for row in rows)
    last = steps - steps // 4
    config = json.loads(rows[-1].config)
    with summary.styled():
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(1.4, 1))
        summary.draw_curves(left, rows, "train")
        for switch in range(steps // 4, steps, steps // 4):
            left.axvline(switch, color="0.8", linewidth=0.9, zorder=0)
        left.set(xlabel="step (grey: the next layer joins)", ylabel="square error per pixel, training set", yscale="log")
        summary.plain_ticks(left)
        left.legend(frameon=True, edgecolor="none", fontsize="small", ncols=2)
        for name in ("SGHMC", "CTLD"):
            if name in summary.names(rows):
                at, hot = summary.curves(rows, name, "temperature")
                final = at > last
                right.plot(at[final] - last, hot[0][final], color=summary.COLORS[name], linewidth=1.6, label=name)
        plotting.mark_switch((steps - last) // 2, ax=right)
        right.set(xlabel="step of the last layer", ylabel=r"noise $1/g(\alpha)$  [base temperature]", ylim=(-0.3, 7.2))
        right.set_title("first seed")
        right.legend(fontsize="small", loc="upper right")
        files.save_figure(figure, folder / "sda.png", dpi=150)
    return "\n\n".join(
        [
            "## Stacked denoising autoencoders (section 5.1, Figure 2)",
            f"Layers {config['widths']}, {config['steps_a_layer']} steps each, on MNIST: error per pixel of the whole stack.",
            summary.results_table(rows, ("train", "test")),
            "![Reconstruction error of every method, and the noise of the last layer](results/sda.png)",
            summary.claims(rows, early=steps // 16),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = own_parser("benchmarks.sda", __doc__)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    sweep.run_from_command_line(experiment(*load(options)), METHODS, options, summarize)


if __name__ == "__main__":
    main()
