r"""The noise of the parameters: independent standard variates, one a parameter, fused into the update.

The random bits are what a Langevin step costs: drawn by `jax.random.normal` they take some twenty times as long as the whole
of `optax.sgd`. Here the key only seeds a *counter-based* generator that is a handful of elementwise integer operations,

.. math:: \text{word}_i = \mathrm{mix}(\mathrm{mix}(i \oplus k_0) + k_1),

where i is the index of the parameter in its leaf, (k_0, k_1) are 64 fresh bits for each leaf and step, drawn with the
user's own generator, and mix is a bijective 32-bit finalizer. XLA fuses it into the momentum update: no array of bits or
noise is ever in memory, any sharding of the parameters shards the noise with no communication, and the noise of a
parameter does not depend on the sharding.

A *source* turns one word into one variate. All draw in float32 whatever the parameters' dtype: noise drawn in bfloat16
has 128 values and the wrong kurtosis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax import _shards
from ctld_optax._validate import check_choice

Source = Callable[[jax.Array], jax.Array]


def gaussian(word: jax.Array) -> jax.Array:
    """Standard normal variates by inversion: sqrt(2) erf_inv(u), u on a symmetric grid of 2^23 points in (-1, 1).

    Moments: the mean and all odd moments are exactly 0, the others those of N(0, 1) to 1e-5; |eps| < 5.3.
    """
    # 23 random bits below the exponent of 1.0 give [1, 2); the odd offset makes the grid symmetric and leaves out -1.
    unit = jax.lax.bitcast_convert_type((word >> 9) | np.uint32(0x3F800000), jnp.float32)
    uniform = 2.0 * (unit - 1.0) - np.float32(1.0 - 2.0**-23)
    return np.float32(np.sqrt(2.0)) * jax.lax.erf_inv(uniform)


SOURCES: dict[str, Source] = {"gaussian": gaussian}


def check_source(name: str) -> Source:
    """The source of that name, or an error that lists those there are."""
    check_choice("noise", name, SOURCES)
    return SOURCES[name]


def draw(key: jax.Array, like: Any, source: Source, specs: Any = None) -> Any:
    """Independent standard variates.

    Args:
      key: a typed key, used up.
      like: a pytree of arrays whose shapes are to be had.
      source: turns uniform 32-bit words into variates.
      specs: inside `jax.shard_map`, how the whole arrays are cut; a pytree prefix of `PartitionSpec`.

    Returns:
      A pytree like `like`, float32 throughout.
    """
    leaves, treedef = jax.tree.flatten(like)
    if not leaves:
        return like
    seeds = jax.random.bits(key, (len(leaves), 2), jnp.uint32)
    leaf_specs = _shards.spec_leaves(specs, like)
    return treedef.unflatten(
        [source(random_words(seed, leaf, spec)) for seed, leaf, spec in zip(seeds, leaves, leaf_specs, strict=True)]
    )


def random_words(seed: jax.Array, like: jax.Array, spec: Any = None) -> jax.Array:
    """uint32 words in the shape of `like`, uniform for a uniform `seed` of shape (2,).

    The counter is the row-major index in the whole array, of which `like` is one block if there is a `spec`.
    """
    whole, offset = _shards.block(like.shape, spec)
    sharding = _shards.explicit_sharding(like)
    counter = jnp.zeros_like(like, jnp.uint32)
    stride = 1
    for dimension in reversed(range(like.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, like.shape, dimension, out_sharding=sharding)
        counter = counter + (index + jnp.asarray(offset[dimension], jnp.uint32)) * np.uint32(stride % 2**32)
        stride *= whole[dimension]
    if stride > 2**32:
        raise ValueError(f"a parameter of more than 2^32 elements ({whole}) is not supported; split it.")
    return _mix(_mix(counter ^ seed[0]) + seed[1])


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words with low avalanche bias (constants: C. Wellons and T. Ettinger, hash-prospector)."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
    return x ^ (x >> 15)
