r"""The noise of the parameters: independent standard variates, one a parameter, fused into the update.

The random bits are what a Langevin step costs: drawn by `jax.random.normal` they take some twenty times as long as the whole
of `optax.sgd`. Here the key only seeds a *counter-based* generator that is a handful of elementwise integer operations: a
bijective hash of i, the index of the parameter in its leaf, keyed by 64 fresh bits a step, from the user's own generator, plus
64 constant bits a leaf. How deep a hash must be hangs on the source: one that only compares the word with constants hears its
upper bits alone, the tail of `gaussian` hangs on all of them. XLA fuses it into the momentum update: no array of bits or noise
is ever in memory, any sharding of the parameters shards the noise with no communication, and the noise of a parameter does not
depend on the sharding.

A *source* turns one 32-bit word into one variate with mean 0 and variance 1. All draw in float32 whatever the parameters'
dtype: noise drawn in bfloat16 has 128 values and the wrong kurtosis. Packing several variates into a word would save nothing:
the words are not stored, and sharing one between neighbours would tie the noise to the memory layout.

What a discrete source changes: the momentum adds up the noise of about 1/(1 - momentum) steps, so the parameters see an almost
Gaussian sum in any case. With moments matched up to order 2p + 1 the weak error of the source is of order p in the step
(Kloeden and Platen, 1992, section 14), which is no more than that of the integrator for p >= 2. Measured at constant
temperature, in per cent of the exact mean, discretisation included:

=====================================================  ========  ==========  ===========  ==========
target, mean of                                        gaussian  irwin_hall  three_point  rademacher
=====================================================  ========  ==========  ===========  ==========
x^4/4, T 1, x^2; momentum 0.9, learning rate 0.02        -0.1       -0.1        -0.1         +0.6
the same; momentum 0, 0.05                               -0.1       -0.0        -0.1         +0.7
the same; momentum 0, 0.2                                -0.8       -0.8        -0.8         +2.3
1.3 (x^2-1)^2 + x/4, T 0.37, x; momentum 0.9, 0.02       +1.6       +1.6        +1.0        +11.5
the same; momentum 0.9, 0.04                             +3.1       +3.1        +3.1        +13.6
the same; momentum 0, 0.05                               +0.4       +0.3        +1.7        +27.4
=====================================================  ========  ==========  ===========  ==========

with a standard error of 0.03 on the quartic, of 0.3 on the double well (BAOAB; in the paper's order the figures of the first
three are +0.3, +0.7 and +6.1).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax._arrays import compat, shards

Source = Callable[[jax.Array], jax.Array]
Hash = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_SIGN = np.uint32(0x80000000)
_ONE = np.uint32(0x3F800000)  # the bits of 1.0

# log2(1 + x) = x + x (1 - x) poly(x) on [0, 1), exact at both ends; absolute error 2.3e-6.
_LOG2 = (0.4425449381857446, -0.2756002463334264, 0.18194863244366175, -0.09595609659790391, 0.025841271487464623)
# |z| = L P(s) / Q(s) with s = sqrt(L), L = -log2 of the two-sided tail probability in [2^-31, 1]; absolute error 1.6e-6.
_QUANTILE_P = (0.8693612138879953, 1.130189077001151, 1.0591521863500106, 0.37094681139814945)
_QUANTILE_Q = (1.0, 1.3085327100950688, 1.5379237322836965, 0.9239531135605421, 0.3144063927536376)


def gaussian(word: jax.Array) -> jax.Array:
    """Standard normal variates by inversion of the word: 31 bits of tail probability and a sign.

    Moments: odd ones exactly 0, the others those of N(0, 1) to 1e-5 relative up to the eighth; |z| < 6.3.
    Cost: about 2.7 times `optax.sgd(momentum=...)` a step on a CPU, two variates a step (BAOAB).

    The quantile is a rational function of sqrt(-log2 p), off by at most 5e-6 in z, at half the cost of `lax.erf_inv` and
    with more of the tail: XLA's has 23 bits.
    """
    tail = ((word & ~_SIGN) | 1).astype(jnp.int32).astype(jnp.float32)  # in units of 2^-31, never 0
    bits = jax.lax.bitcast_convert_type(tail, jnp.int32)
    exponent = ((bits >> 23) - (127 + 31)).astype(jnp.float32)
    x = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | _ONE.astype(np.int32), jnp.float32) - 1.0
    log2 = exponent + x + x * (1.0 - x) * _polynomial(_LOG2, x)
    length = jnp.maximum(-log2, 0.0)
    s = jnp.sqrt(length)
    magnitude = length * _polynomial(_QUANTILE_P, s) / _polynomial(_QUANTILE_Q, s)
    return _with_sign_of(word, magnitude)


# x (c0 + c1 x^2 + c2 x^4) on the sum x of four uniform bytes makes the moments 2, 4 and 6 those of N(0, 1): 1, 3 and 15.
_BYTE_SUM_SD = 147.80054127099805
_CORNISH_FISHER = (0.9715085084419621, 0.0008807519388841013, 0.0023316916058923258)


def irwin_hall(word: jax.Array) -> jax.Array:
    """The sum of four uniform bytes (Irwin-Hall), bent by an odd polynomial so that its moments are Gaussian.

    Moments: exactly those of N(0, 1) up to the seventh (1021 values, |z| <= 4.53; the eighth is 103.2 where N(0, 1) has 105):
    weak order 3, beyond any integrator here. Cost: about 1.6 times `optax.sgd(momentum=...)` a step on a CPU, likewise.
    Its bias on the quartic and the double well above cannot be told from that of `gaussian`.

    For posteriors: it uses all 32 bits, without a logarithm. The polynomial is a Cornish-Fisher expansion with its coefficients
    fitted to the discrete sum.
    """
    pairs = (word & np.uint32(0x00FF00FF)) + ((word >> 8) & np.uint32(0x00FF00FF))
    total = (pairs & np.uint32(0xFFFF)) + (pairs >> 16)
    x = (total.astype(jnp.int32) - 510).astype(jnp.float32) * np.float32(1.0 / _BYTE_SUM_SD)
    return x * _polynomial(_CORNISH_FISHER, x * x)


def three_point(word: jax.Array) -> jax.Array:
    """+-sqrt(3) with probability 1/6 each, else 0: moments of N(0, 1) up to the fifth (to 2^-32), weak order 2.

    Kloeden and Platen, 1992, section 14.2. Cost: about 1.3 times `optax.sgd(momentum=...)` a step on a CPU. Bias: that of
    `gaussian` at momentum 0.9; without momentum another one, no larger, of the same order in the step. The default where one
    trains: its order in the step is that of BAOAB.
    """
    sixth = round(2**32 / 6)
    up, down = word < np.uint32(sixth), word >= np.uint32(2**32 - sixth)
    root = np.float32(np.sqrt(3.0))
    return jnp.where(up, root, jnp.where(down, -root, np.float32(0.0)))


def rademacher(word: jax.Array) -> jax.Array:
    """+-1 with probability 1/2 each: moments of N(0, 1) up to the third (the fourth is 1, not 3), weak order 1.

    Cost: about 1.3 times `optax.sgd(momentum=...)` a step on a CPU. Bias: several times that of `gaussian`; in the double well
    the mean moved by 10 % (above), since the crossing of a barrier hangs on the tails. For exploring, not for posteriors.
    """
    return jax.lax.bitcast_convert_type((word & _SIGN) | _ONE, jnp.float32)


SourceName = Literal["gaussian", "irwin_hall", "three_point", "rademacher"]
SOURCES: dict[str, Source] = {
    "gaussian": gaussian,
    "irwin_hall": irwin_hall,
    "three_point": three_point,
    "rademacher": rademacher,
}


def draw(key: jax.Array, like: Any, source: Source, specs: Any = None) -> Any:
    """Independent standard variates.

    Args:
      key: a typed key fresh from `jax.random.split` or `fold_in`, used up; or the words of one (:func:`words_of`), to draw
        the same again; or those of k keys, of shape (k, 2), which costs half as much to compile as k draws.
      like: a pytree of arrays whose shapes are to be had.
      source: turns uniform 32-bit words into variates.
      specs: inside `jax.shard_map`, how the whole arrays are cut; a pytree prefix of `PartitionSpec`.

    Returns:
      A pytree like `like`, float32 throughout; of k keys, with a leading axis of length k.
    """
    leaves, treedef = jax.tree.flatten(like)
    if not leaves:
        return like
    words = words_of(key)
    if words.ndim == 1:
        return jax.tree.map(lambda drawn: drawn[0], draw(words[None], like, source, specs))
    # One draw for all leaves, set apart by constants. As arrays of their own, not as numbers or rows of a table, the constants
    # stay outside the compiled loops, and leaves of one shape share one: 400 leaves compile in seconds, not in minutes.
    offsets = np.random.Philox(key=0).random_raw(len(leaves)).view(np.uint32).reshape(-1, 1, 2)
    seeds = [words + jnp.asarray(row) for row in offsets]
    leaf_specs = shards.spec_leaves(specs, like)
    return treedef.unflatten(
        [_draw_leaf(seed, leaf, spec, source) for seed, leaf, spec in zip(seeds, leaves, leaf_specs, strict=True)]
    )


def standard_normal(key: jax.Array, dtype: Any) -> jax.Array:
    """One standard normal variate, shape (); `key` as in :func:`draw`."""
    return gaussian(random_words(words_of(key)[None], jnp.zeros(()), None, _double_hash))[0].astype(dtype)


def words_of(key: jax.Array) -> jax.Array:
    """64 uniform bits, shape (2,): those of the key itself, which splitting has just drawn. Drawing more would cost more.

    Words stay as they are.
    """
    return jax.random.key_data(key).reshape(-1)[:2] if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


@functools.partial(jax.jit, static_argnames=("spec", "source"))  # so that leaves of one shape are traced once
def _draw_leaf(seeds: jax.Array, like: jax.Array, spec: Any, source: Source) -> jax.Array:
    return source(random_words(seeds, like, spec, _HASHES.get(source, _double_hash)))


def random_words(seeds: jax.Array, like: jax.Array, spec: Any, hashed: Hash) -> jax.Array:
    """uint32 words of shape (k, *like.shape), uniform for uniform `seeds` of shape (k, 2).

    The counter is the row-major index in the whole array, of which `like` is one block if there is a `spec`.
    """
    whole, offset = shards.block(like.shape, spec)
    shape, sharding = (len(seeds), *like.shape), compat.explicit_sharding(like, leading=1)
    counter: jax.Array = jnp.zeros((), jnp.uint32)
    stride = 1
    for dimension in reversed(range(like.ndim)):
        index = compat.iota(jnp.uint32, shape, 1 + dimension, sharding)
        # Zeros and ones are left out where they can be: over 400 leaves their operations cost a second of compilation.
        if spec is not None:
            index = index + jnp.asarray(offset[dimension], jnp.uint32)
        counter = index if stride == 1 else counter + index * _of_this_turn(stride % 2**32, seeds)
        stride *= whole[dimension]
    if stride > 2**32:
        raise ValueError(f"a parameter of more than 2^32 elements, here {whole}, has no noise of its own; split it.")
    first, second = (jax.lax.expand_dims(seeds[:, half], range(1, len(shape))) for half in (0, 1))
    return hashed(counter, first, second)


def _of_this_turn(stride: int, seeds: jax.Array) -> jax.Array:
    """The stride, made to hang on the seeds.

    Else XLA makes the counters of a leaf of several dimensions in front of a loop around the step, in a buffer of twice the
    leaf, and of a loop that takes no turn too. It cannot know that 32 bits have fewer than 64 ones.
    """
    return np.uint32(stride) + (jax.lax.population_count(seeds[0, 0]) >> 6)


def _upper_hash(counter: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """A bijection of the counter, keyed by 64 bits, of which the upper bits are well mixed. No source hears the others.

    The key comes first: XLA would take what hangs on the counter alone out of a training loop, as an array in memory. With a
    round less, differences of 2^12 and of 2^31 + 2^15 show in pairs of variates.
    """
    x = (counter ^ first) * np.uint32(0xED5AD4BB) + second
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    return (x ^ (x >> 15)) * np.uint32(0xD35A2D97)


def _hash(counter: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """The same, good in all its bits (constants: C. Wellons' triple32)."""
    x = counter ^ first
    x = (x ^ (x >> 17)) * np.uint32(0xED5AD4BB) + second
    x = (x ^ (x >> 11)) * np.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * np.uint32(0x31848BAB)
    return x ^ (x >> 14)


def _double_hash(counter: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """The same at a third more operations, such that every bit of the counter and of the key turns half of the word's."""
    return _mix(_mix(counter ^ first) + second)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words with low avalanche bias (constants: C. Wellons and T. Ettinger, hash-prospector)."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
    return x ^ (x >> 15)


_HASHES: dict[Source, Hash] = {
    three_point: _upper_hash,
    rademacher: _upper_hash,
    irwin_hall: _hash,
    gaussian: _double_hash,
}


def _polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    result = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + np.float32(coefficient)
    return result


def _with_sign_of(word: jax.Array, magnitude: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(magnitude, jnp.uint32)
    return jax.lax.bitcast_convert_type(bits | (word & _SIGN), jnp.float32)
