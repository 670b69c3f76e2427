"""Character prediction with a three-layer LSTM of 64 units: section 5.2 and Figure 3 of the paper.

    python -m benchmarks.char_rnn                          War and Peace: about half an hour of one core, tuning included
    python -m benchmarks.char_rnn --text wikipedia --full  the paper's: the 100 MB Hutter Prize file, 50 passes
    python -m benchmarks.char_rnn --text shakespeare

The text is cut into BATCH lanes that are read side by side. A step reads the next LENGTH characters of each lane, from where
the last one stopped and with the LSTM's state that it left; at their end the lanes begin again. So a run of any length
streams through a file of any length. Perplexity is per character: exp of the mean of -log p, from a state of zeros, on the
first characters of each part.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import optax
from flax import linen as nn
from matplotlib import pyplot as plt

from benchmarks.harness import data, files, methods, summary, sweep, training
from benchmarks.harness.sweep import Experiment, Range, Row

NAME = "char_rnn"
LAYERS, UNITS = 3, 64  # the paper's
BATCH = 8  # lanes; few, for many steps in little time
LENGTH = 20  # characters of back-propagation through time
STEPS = 600  # about 100,000 characters: some seconds a trial on two cores
FULL_BATCH, FULL_LENGTH, FULL_PASSES = 100, 100, 50  # Karpathy, Johnson and Li (2015), whom the paper follows
MEASURED = 4_000  # characters of each part, in BATCH lanes; with --full as many as the test part has
POINTS = 12  # of a curve
# CTLD's, for the experiments that need them, before this one was run.
UNTUNED = {"learning_rate": 1.0, "temperature": 1e-5, "friction": 0.1}

# Temperatures and variances go from where trials on a tuning seed began to gain by the noise to where it destroyed all.
METHODS = methods.table(Range(0.1, 10.0), adaptive=Range(1e-3, 0.1), temperature=Range(5e-7, 2e-4), variance=Range(5e-7, 2e-4))


class CharRNN(nn.Module):
    """One-hot characters, shape (lanes, length) -> logits of the next ones, and the state to go on from."""

    vocabulary: int

    @nn.compact
    def __call__(self, memory: Any, characters: jax.Array) -> tuple[Any, jax.Array]:
        x = jax.nn.one_hot(characters, self.vocabulary)
        left: list[Any] = []
        for layer in memory:
            # Not orthogonal, Flax's default: many calls of LAPACK at once can stop XLA for good on two cores.
            cell: Any = nn.OptimizedLSTMCell(UNITS, recurrent_kernel_init=nn.initializers.xavier_uniform())
            carry, x = nn.RNN(cell, return_carry=True)(x, initial_carry=layer)
            left.append(carry)
        return tuple(left), nn.Dense(self.vocabulary)(x)


def blank(lanes: int) -> Any:
    """The state before the first character."""
    return tuple((jnp.zeros((lanes, UNITS)), jnp.zeros((lanes, UNITS))) for _ in range(LAYERS))


def in_lanes(characters: Any, lanes: int, length: int) -> jax.Array:
    """Shape (lanes, n * length + 1): the +1 is the last target."""
    width = (len(characters) - 1) // lanes // length * length
    if width < length:
        raise ValueError(f"{len(characters)} characters do not fill {lanes} lanes of {length} and one: take fewer lanes.")
    starts = jnp.arange(lanes)[:, None] * width
    return jnp.asarray(characters)[starts + jnp.arange(width + 1)]


def task(text: data.Text, lanes: int, length: int, measured: int) -> training.Task:
    model: Any = CharRNN(len(text.vocabulary))

    def losses(params: Any, memory: Any, characters: jax.Array, at: jax.Array) -> tuple[jax.Array, Any]:
        window = jax.lax.dynamic_slice_in_dim(characters, at * length, length + 1, axis=1).astype(jnp.int32)
        memory, logits = model.apply(params, memory, window[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]), memory

    def loss(params: Any, memory: Any, texts: Any, _frozen: Any, step: Any, _key: Any) -> tuple[jax.Array, Any]:
        windows = (texts["lanes"].shape[1] - 1) // length
        memory = jax.tree.map(lambda state: jnp.where(step % windows == 0, 0.0, state), memory)  # the lanes begin again
        found, memory = losses(params, memory, texts["lanes"], step % windows)
        return found.mean(), memory

    def evaluate(params: Any, texts: Any, _frozen: Any) -> jax.Array:
        parts = texts["parts"]  # side by side, in one loop

        def read(memory: Any, at: jax.Array) -> tuple[Any, jax.Array]:
            found, memory = losses(params, memory, parts, at)
            return memory, found.reshape(3, -1).mean(1)

        _, found = jax.lax.scan(read, blank(len(parts)), jnp.arange((parts.shape[1] - 1) // length))
        return jnp.exp(found.mean(0))

    sample = in_lanes(text.train, lanes, length)
    parts = [in_lanes(part[: measured + 1], lanes, length) for part in (text.train, text.validation, text.test)]
    return training.Task(
        init=lambda key: model.init(key, blank(lanes), sample[:, :1].astype(jnp.int32)),
        begin=lambda _data: blank(lanes),
        loss=loss,
        evaluate=evaluate,
        data={"lanes": sample, "parts": jnp.concatenate(parts)},
    )


def experiment(
    text: data.Text, name: str, steps: int, *, full: bool, experiment_name: str = NAME, points: int = POINTS
) -> Experiment:
    lanes, length = (FULL_BATCH, FULL_LENGTH) if full else (BATCH, LENGTH)
    what = task(text, lanes, length, min(len(text.validation), len(text.test)) - 1 if full else MEASURED)

    prepare = training.curves_of(what, steps=steps, points=min(points, steps))
    config = {
        "text": name,
        "steps": steps,
        "lanes": lanes,
        "length": length,
        "layers": LAYERS,
        "units": UNITS,
        "momentum": "tuned",
    }
    return Experiment(experiment_name, "perplexity", config, prepare, at_once=4, last_step=steps)


def load(options: Any) -> tuple[data.Text, int]:
    """The text and the number of steps that the command line asks for."""
    text = data.text(options.text)
    passes = FULL_PASSES * (len(text.train) // (FULL_BATCH * FULL_LENGTH)) // POINTS * POINTS
    return text, options.steps or (passes if options.full else STEPS)


def tuned(rows: Sequence[Row], text: str) -> dict[str, float]:
    """What this experiment chose for CTLD on this text."""
    return sweep.tuned(rows, NAME, "CTLD", text=text) or UNTUNED


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """Figure 3 and its table."""
    steps = max(row.step for row in rows)
    config = json.loads(rows[-1].config)
    read = config["steps"] * config["lanes"] * config["length"]
    with summary.styled():
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
        for ax, column in zip(axes, ("train", "test"), strict=True):
            summary.draw_curves(ax, rows, column)
            label = "hand-over of the samplers" if ax is axes[0] else None
            ax.axvline(methods.SAMPLING_SHARE * steps, color="0.25", linewidth=0.9, linestyle="--", label=label)
            ax.set(title=f"{column} set", ylabel="perplexity per character", yscale="log")
            summary.plain_ticks(ax)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize="small")
        files.save_figure(figure, folder / "char_rnn.png", dpi=150)
    return "\n\n".join(
        [
            "## Character-level LSTM (section 5.2, Figure 3)",
            f"Perplexity per character in the end. Every trial read {read:,} characters in {config['steps']} steps.",
            summary.results_table(rows, ("train", "test")),
            "![Perplexity of every method over the steps](results/char_rnn.png)",
            summary.claims(rows, early=steps // 6),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.char_rnn", __doc__)
    parser.add_argument("--text", choices=tuple(data.TEXTS), default="war_and_peace")
    options = parser.parse_args(arguments)
    mpl.use("agg")
    text, steps = load(options)
    made = experiment(text, options.text, steps, full=options.full)
    sweep.run_from_command_line(made, METHODS, options, summarize)


if __name__ == "__main__":
    main()
