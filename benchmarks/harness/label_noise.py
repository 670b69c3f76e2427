"""Training on images of which some have a wrong label: the data, the network, one run with all that is read off it, the scores.

A run is read in several ways at once: its last network, the one that validation would have stopped at, means over its second
half. So one budget of trials serves several methods, and what they differ by is no other luck.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

import ctld_optax
from benchmarks.harness import data
from benchmarks.harness.sweep import Method
from ctld_optax import posterior

CLASSES = 10
HIDDEN = 100
BATCH = 64
EVERY = 100  # steps between two looks at the network: about one pass over 5,000 images
BURN_IN = 0.5  # of the steps, before anything is averaged
PASSES = 32  # of dropout, averaged
BINS = 15  # of the calibration error
CYCLES, EXPLORING = 4, 0.8  # of cyclical SGHMC; the share of a cycle without noise, before samples are taken


class Images(NamedTuple):
    """What a run may look at: labels of `train` and `validation` are partly wrong.

    `looks` are the sets that are predicted, by name: "validation" while tuning, "test" and "out" too in what is reported.
    """

    train_x: jax.Array
    train_y: jax.Array
    looks: Mapping[str, jax.Array]
    validation_y: jax.Array
    test_y: jax.Array  # right, and read by the oracle alone


class Parts(NamedTuple):
    """All images, with right labels."""

    train_x: np.ndarray
    train_y: np.ndarray
    validation_x: np.ndarray
    validation_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    out_x: np.ndarray  # the first 1,000 of the test set, their pixels shuffled, all by one permutation


def parts(images: data.Split, share: float = 0.4) -> Parts:
    """That share of the test images for validation, which no test figure sees."""
    cut = round(share * len(images.test_y))
    test_x = images.test_x[cut:]
    out_x = test_x[:1_000, np.random.default_rng(0).permutation(test_x.shape[1])]
    return Parts(*images[:2], images.test_x[:cut], images.test_y[:cut], test_x, images.test_y[cut:], out_x)


def with_wrong_labels(found: Parts, wrong: float, seed: int, *, with_test: bool) -> Images:
    """A share of the labels becomes another class, all nine alike. It is the same images for every method with this seed."""
    rng = np.random.default_rng([seed, 2017])

    def spoilt(y: np.ndarray) -> jax.Array:
        is_wrong = rng.permutation(len(y)) < round(wrong * len(y))
        return jnp.asarray(np.where(is_wrong, (y + rng.integers(1, CLASSES, len(y))) % CLASSES, y).astype(np.int32))

    looks = {"validation": found.validation_x} | ({"test": found.test_x, "out": found.out_x} if with_test else {})
    train_y, validation_y = spoilt(found.train_y), spoilt(found.validation_y)
    return Images(
        jnp.asarray(found.train_x), train_y, jax.tree.map(jnp.asarray, looks), validation_y, jnp.asarray(found.test_y)
    )


class MLP(nn.Module):
    """One hidden ReLU layer; `keep`, if given, multiplies it."""

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | float = 1.0) -> jax.Array:
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(HIDDEN)(x)) * keep)


MODEL: Any = MLP()


def probabilities(params: Any, x: jax.Array, keep: jax.Array | float = 1.0) -> jax.Array:
    return jax.nn.softmax(MODEL.apply(params, x, keep))


def kept(key: Any, rate: Any, size: int) -> jax.Array:
    """A mask of dropout for each of `size` images, of mean 1."""
    return jax.random.bernoulli(key, 1.0 - rate, (size, HIDDEN)) / (1.0 - rate)


def loss(params: Any, key: Any, images: Images, hyper: Mapping[str, Any]) -> jax.Array:
    """Mean cross-entropy of a minibatch and `l2` times half the squared weights, the prior of a sampler over N."""
    index = jax.random.randint(key, (BATCH,), 0, len(images.train_y))
    keep = kept(jax.random.fold_in(key, 1), hyper["dropout"], BATCH) if "dropout" in hyper else 1.0
    logits = MODEL.apply(params, images.train_x[index], keep)
    value = optax.softmax_cross_entropy_with_integer_labels(logits, images.train_y[index]).mean()
    return value + 0.5 * hyper["l2"] * optax.tree.norm(params, squared=True) if "l2" in hyper else value


class Look(NamedTuple):
    """Where a run stands when its network is looked at."""

    step: jax.Array
    steps: int
    alpha: jax.Array  # of a sampler; 0 for what has none

    @property
    def is_late(self) -> jax.Array:
        return self.step >= BURN_IN * self.steps


def cycle(step: Any, steps: int) -> Any:
    """How far a cycle of cyclical SGHMC has come, in [0, 1)."""
    length = steps / CYCLES
    return (step % length) / length


# Weights of a look in a mean over predictions.
MEANS: dict[str, Callable[[Look], jax.Array]] = {
    "mean": lambda look: look.is_late,
    "window": lambda look: look.is_late & posterior.in_window(look.alpha),
    "cycles": lambda look: cycle(look.step, look.steps) > EXPLORING,
}


class Stopped(NamedTuple):
    """The predictions of the look with the best accuracy on some labels."""

    accuracy: jax.Array
    predictions: dict[str, jax.Array]

    def after(self, predictions: dict[str, jax.Array], accuracy: jax.Array) -> "Stopped":
        better = accuracy > self.accuracy
        select = lambda new, old: jnp.where(better, new, old)
        return Stopped(select(accuracy, self.accuracy), jax.tree.map(select, predictions, self.predictions))


def hits(predictions: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(predictions, -1) == labels)


def run(method: Method, hyper: Mapping[str, Any], key: Any, images: Images, steps: int) -> dict[str, dict[str, jax.Array]]:
    """One run of `steps`, a multiple of `EVERY`: the probabilities on each look, by the reading that gives them."""
    init_key, method_key, batch_key, dropout_key = jax.random.split(key, 4)
    tx = optax.with_extra_args_support(method.make(hyper, method_key, steps))
    params = MODEL.init(init_key, images.train_x[:1])
    average = posterior.RunningMean()

    def predict(params: Any) -> dict[str, jax.Array]:
        return {name: probabilities(params, x) for name, x in images.looks.items()}

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(batch_key, index), images, hyper)
        updates, state = tx.update(grads, state, params, value=value)
        alpha = state.alpha if isinstance(state, ctld_optax.CTLDState) else jnp.zeros(())
        return (optax.apply_updates(params, updates), state), alpha

    def look(carry: Any, first: jax.Array) -> tuple[Any, None]:
        params, state, means, weights, stopped = carry
        predictions = predict(params)
        (after, state), alpha = jax.lax.scan(step, (params, state), first + jnp.arange(EVERY))
        at = Look(first, steps, alpha[0])  # alpha after the first update: that of the parameters before it
        means = {name: average.update(means[name], weight(at), predictions) for name, weight in MEANS.items()}
        weights = average.update(weights, at.is_late, params)
        labels = {"stopped": images.validation_y} | ({"oracle": images.test_y} if "test" in images.looks else {})
        judged = {"stopped": "validation", "oracle": "test"}
        stopped = {name: stopped[name].after(predictions, hits(predictions[judged[name]], y)) for name, y in labels.items()}
        return (after, state, means, weights, stopped), None

    blank = jax.tree.map(jnp.zeros_like, predict(params))
    begin = (
        params,
        tx.init(params),
        {name: average.init(blank) for name in MEANS},
        average.init(params),
        {name: Stopped(-jnp.ones(()), blank) for name in ("stopped", "oracle")[: 2 if "test" in images.looks else 1]},
    )
    (params, _, means, weights, stopped), _ = jax.lax.scan(look, begin, jnp.arange(0, steps, EVERY))
    found = {"last": predict(params), "weights": predict(weights.mean)}
    if "dropout" in hyper:
        masks = jax.random.split(dropout_key, PASSES)
        dropped = lambda x: jax.lax.map(lambda k: probabilities(params, x, kept(k, hyper["dropout"], len(x))), masks).mean(0)
        found["passes"] = {name: dropped(x) for name, x in images.looks.items()}
    return found | {name: mean.mean for name, mean in means.items()} | {name: one.predictions for name, one in stopped.items()}


def trainer(method: Method, steps: int, members: int = 1) -> Callable[..., dict[str, dict[str, jax.Array]]]:
    """A compiled `(hyper, seed, images)` -> probabilities by reading, the mean of `members` runs that share the steps."""

    def train(hyper: Mapping[str, jax.Array], seed: jax.Array, images: Images) -> dict[str, dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.key(seed), members)
        found = jax.lax.map(lambda key: run(method, hyper, key, images, steps // members), keys)
        return jax.tree.map(lambda each: each.mean(0), found)

    return jax.jit(train)


class Scores(NamedTuple):
    """Of predictions on the test set, and on images that are none of its kind."""

    accuracy: float
    nll: float  # mean of -log p(label), nats
    ece: float  # expected calibration error: |confidence - accuracy| over 15 bins of equal width
    entropy: float  # mean, nats
    entropy_out: float  # the same on the shuffled images
    detection: float  # chance that a shuffled image has the higher entropy of a pair


UNKNOWN = Scores(*[float("nan")] * len(Scores._fields))


def scores(predictions: Mapping[str, np.ndarray], labels: np.ndarray) -> Scores:
    """Unknown for a run that diverged."""
    test, out = (np.asarray(predictions[name], np.float64) for name in ("test", "out"))
    if not (np.isfinite(test).all() and np.isfinite(out).all()):
        return UNKNOWN
    right, confidence = test.argmax(-1) == labels, test.max(-1)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, confidence - right, minlength=BINS))
    inside, outside = entropy(test), entropy(out)
    with np.errstate(divide="ignore"):
        nll = -np.log(test[np.arange(len(labels)), labels]).mean()
    pairs: Any = stats.mannwhitneyu(outside, inside).statistic / (len(inside) * len(outside))
    return Scores(*map(float, (right.mean(), nll, gaps.sum() / len(labels), inside.mean(), outside.mean(), pairs)))


def entropy(predictions: np.ndarray) -> np.ndarray:
    return -np.sum(np.where(predictions > 0.0, predictions * np.log(np.maximum(predictions, 1e-300)), 0.0), -1)


def validation_accuracy(predictions: Mapping[str, jax.Array], images: Images) -> float:
    """Against labels that are as wrong as those to train on; NaN for a run that diverged."""
    found = predictions["validation"]
    return float(hits(found, images.validation_y)) if bool(jnp.isfinite(found).all()) else float("nan")
