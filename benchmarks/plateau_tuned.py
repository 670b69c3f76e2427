"""Which method gets a very deep network off its plateau, each tuned at the same budget.

    python -m benchmarks.plateau_tuned          scikit-learn's digits, 2,400 steps a trial, about 20 minutes on 2 cores
    python -m benchmarks.plateau_tuned --full   5,000 images of MNIST, 10,000 steps a trial

The network of benchmarks/deep_mlp.py starts on a plateau that SGD-M never leaves. The methods are those of
benchmarks/methods.py, with two differences. RMSprop has its eps outside the root: inside, Optax's default, it is 10^-4, far
above the gradients of the plateau. Santa has temperatures of its own, as wide a range but a thousand times as cold: it divides
its noise too by the root of the gradients. A run that diverges counts as one that did not learn.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import optax

from benchmarks import data, deep_mlp, methods, summary, sweep, training
from benchmarks.sweep import Experiment, Method, Range, Row

NAME = "plateau_tuned"
STEPS, FULL_STEPS = 2_400, 10_000
BATCH = 32
POINTS = 4  # of a curve; the second is the end of the sampling phase
SEEDS = 8  # reported; runs end at chance or far from it, so that four would say little
AT_ONCE = 8  # trials under one vmap; more are no faster on a CPU

# Around what trained in a few trials on a tuning seed. What moves the weights is the product of learning rate and temperature
# (AnnealSGD: of the learning rate squared and the variance), so that the ranges of both can be wide.
METHODS = methods.table(Range(3e-4, 0.1), adaptive=Range(1e-4, 0.1), temperature=Range(3e-6, 3e-3), variance=Range(1e-3, 10.0))
METHODS["RMSprop"] = Method(
    METHODS["RMSprop"].space,
    lambda hyper, _key, _steps: optax.rmsprop(hyper["learning_rate"], 1.0 - hyper["forgetting"], eps_in_sqrt=False),
)
METHODS["Santa"] = METHODS["Santa"]._replace(space={**METHODS["Santa"].space, "temperature": Range(3e-9, 3e-6)})


def task(images: data.Split) -> training.Task:
    half = len(images.test_y) // 2
    parts = {
        "train": (images.train_x, images.train_y),
        "validation": (images.test_x[:half], images.test_y[:half]),
        "test": (images.test_x[half:], images.test_y[half:]),
    }

    def loss(params: Any, memory: Any, arrays: Any, _frozen: Any, _step: Any, key: Any) -> tuple[jax.Array, Any]:
        return deep_mlp.minibatch_loss(params, key, *arrays["train"], size=BATCH), memory

    def evaluate(params: Any, arrays: Any, _frozen: Any) -> list[jax.Array]:
        diverged = ~jnp.isfinite(deep_mlp.loss(params, *arrays["validation"]))
        return [jnp.where(diverged, jnp.nan, deep_mlp.accuracy(params, *arrays[part])) for part in parts]

    return training.Task(
        init=lambda key: deep_mlp.MODEL.init(key, jnp.zeros((1, images.train_x.shape[1]))),
        begin=lambda _arrays: (),
        loss=loss,
        evaluate=evaluate,
        data=jax.tree.map(jnp.asarray, parts),
    )


def experiment(images: data.Split, name: str, steps: int) -> Experiment:
    prepare = training.curves_of(task(images), steps=steps, points=POINTS)
    config = {
        "data": name,
        "train_images": len(images.train_y),
        "steps": steps,
        "batch": BATCH,
        "hidden_layers": deep_mlp.HIDDEN_LAYERS,
        "width": deep_mlp.WIDTH,
        "sampling_share": methods.SAMPLING_SHARE,
    }
    return Experiment(NAME, "accuracy", config, prepare, AT_ONCE, maximize=True)


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    return summary.results_table(rows, ("train", "test"))


def load(options: Any) -> tuple[data.Split, str, int]:
    """The images, their name and the number of steps that the command line asks for."""
    if options.full:
        return data.mnist(), "mnist", options.steps or FULL_STEPS
    return data.digits(), "digits", options.steps or STEPS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.plateau_tuned", __doc__)
    parser.set_defaults(seeds=SEEDS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    sweep.run_from_command_line(experiment(*load(options)), METHODS, options, summarize)


if __name__ == "__main__":
    main()
