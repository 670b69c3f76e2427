"""Small networks of the kinds that people train, with the learning rates of their SGD-M, for questions to all of them."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks import char_rnn
from benchmarks.harness import data, training

BATCH = 64


class Network(NamedTuple):
    """A task, at the learning rate and for the number of steps of its SGD-M. `metric` is what is measured on the test set."""

    task: training.Task
    learning_rate: float
    steps: int
    metric: str


class CNN(nn.Module):
    """Two convolutions of 3 x 3 with ReLU, each with 2 x 2 pooling, and a dense layer, for images of 8 x 8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(-1, 8, 8, 1)
        for channels in (8, 16):
            x = nn.avg_pool(nn.relu(nn.Conv(channels, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Transformer(nn.Module):
    """Two pre-norm blocks of 32 units and 2 heads, which read an image row by row."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, 8, 8)
        x = nn.Dense(32)(rows) + self.param("places", nn.initializers.normal(0.1), (8, 32))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)(nn.LayerNorm()(x))
            x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=-2))


def images_task(model: Any, images: data.Split, batch: int = BATCH) -> training.Task:
    """Measured: the loss on the training set, that on the test set, the accuracy on the test set."""

    def cross_entropy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

    def loss(params: Any, memory: Any, arrays: Any, _frozen: Any, _step: Any, key: Any) -> tuple[jax.Array, Any]:
        x, y = arrays["train"]
        index = jax.random.randint(key, (batch,), 0, len(y))
        return cross_entropy(params, x[index], y[index]), memory

    def evaluate(params: Any, arrays: Any, _frozen: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, y = arrays["test"]
        accuracy = jnp.mean(jnp.argmax(model.apply(params, x), -1) == y)
        return cross_entropy(params, *arrays["train"]), cross_entropy(params, x, y), accuracy

    return training.Task(
        init=lambda key: model.init(key, jnp.zeros((1, images.train_x.shape[1]))),
        begin=lambda _arrays: (),
        loss=loss,
        evaluate=evaluate,
        data=jax.tree.map(jnp.asarray, {"train": (images.train_x, images.train_y), "test": (images.test_x, images.test_y)}),
    )


def cnn() -> Network:
    return Network(images_task(CNN(), data.digits()), 0.05, 4_000, "accuracy")


def transformer() -> Network:
    return Network(images_task(Transformer(), data.digits()), 0.02, 4_000, "accuracy")


def lstm() -> Network:
    """That of the paper's section 5.2, at the learning rate that was chosen for CTLD there."""
    return Network(
        char_rnn.task(data.text("war_and_peace"), char_rnn.BATCH, char_rnn.LENGTH, char_rnn.MEASURED), 2.6, 2_400, "perplexity"
    )
