"""A network that SGD with momentum cannot train: 20 hidden layers, plain N(0, 0.1^2) weights, handwritten digits.

Under this initialisation (Neelakantan et al. 2015) the signal shrinks by half in each layer, so that all gradients but the last
layer's are about 1e-6 of what they should be: SGD-M stays at chance at any learning rate. Noise moves all layers alike.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

HIDDEN_LAYERS = 20
WIDTH = 50  # with N(0, 0.1^2) weights a ReLU layer of 50 halves the signal
BATCH = 128


class DeepMLP(nn.Module):
    """20 hidden ReLU layers of equal width; weights N(0, 0.1^2), biases 0."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weights = nn.initializers.normal(stddev=0.1)
        for _ in range(HIDDEN_LAYERS):
            x = nn.relu(nn.Dense(WIDTH, kernel_init=weights)(x))
        return nn.Dense(10, kernel_init=weights)(x)


MODEL: Any = DeepMLP()


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(MODEL.apply(params, x), y).mean()


def accuracy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(MODEL.apply(params, x), -1) == y)


def minibatch_loss(params: Any, key: Any, x: jax.Array, y: jax.Array, size: int = BATCH) -> jax.Array:
    """The loss of `size` examples drawn with replacement."""
    index = jax.random.randint(key, (size,), 0, len(y))
    return loss(params, x[index], y[index])
