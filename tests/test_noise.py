"""The words and the variates of the noise.

Everything here is deterministic given the seeds, which are 0, 1, 2, ... and were not chosen. Bounds are 5 standard errors
of the statistic under independence (about 1 in 10^6 by chance); chi-squares are held to the 1e-6 tail.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import ctld_optax
from ctld_optax._arrays import noise as sources
from ctld_optax._arrays.noise import draw, gaussian, random_words

SIZE = 2**20
UPPER = np.uint32(0xFF000000)  # of a word: what decides nearly every comparison

each_hash = pytest.mark.parametrize("hashed", sorted(set(sources._HASHES.values()), key=lambda hashed: hashed.__name__))
each_source = pytest.mark.parametrize("source", sources.SOURCES.values(), ids=sources.SOURCES)


def words(seed, hashed, size=SIZE):
    key = jax.random.key(seed)
    return np.asarray(
        jax.jit(lambda k: random_words(jax.random.bits(k, (1, 2), jnp.uint32), jnp.zeros(size), None, hashed)[0])(key)
    )


def correlation(x, y):
    return np.mean(x * y) / np.sqrt(np.mean(x**2) * np.mean(y**2))


def with_squares(eps):
    """The variates and their squares about the mean, but for rademacher's, which are all alike."""
    return [eps] if np.ptp(eps**2) == 0.0 else [eps, eps**2 - 1.0]


def normal(seed, like, source=gaussian):
    """From a key that a split has made, as every key of a sampler is."""
    return jax.jit(lambda k: draw(jax.random.split(k)[0], like, source))(jax.random.key(seed))


def vector(seed, size=SIZE, source=gaussian):
    return np.asarray(normal(seed, jnp.zeros(size), source), np.float64)


# The variates, from words that go through all their range in equal steps.


@pytest.fixture(scope="module")
def spread_words():
    return (np.arange(2**22, dtype=np.uint32) << 10) + np.uint32(513)  # odd, since the lowest bit of the tail is always set


def test_gaussian_is_the_quantile_function(spread_words):
    edges = np.asarray([1, 3, 5, 101, 2**20 + 1, 2**31 - 2**20 + 1, 2**31 - 1], np.uint32)
    words = np.concatenate([spread_words, edges, edges | np.uint32(2**31)])
    tail = ((words & np.uint32(2**31 - 1)) | 1) / 2**31  # of both sides
    exact = np.where(words < 2**31, 1.0, -1.0) * scipy.stats.norm.isf(tail / 2)
    np.testing.assert_allclose(jax.jit(gaussian)(jnp.asarray(words)), exact, rtol=0.0, atol=5e-6)


def test_gaussian_moments(spread_words):
    eps = np.asarray(jax.jit(gaussian)(jnp.asarray(spread_words)), np.float64)
    np.testing.assert_array_equal(eps[: 2**21], -eps[2**21 :])  # all odd moments vanish
    for power, expected in {2: 1.0, 4: 3.0, 6: 15.0}.items():
        # A step of 2^10 words cannot resolve the tail beyond 5, which is worth more the higher the power.
        np.testing.assert_allclose(np.mean(eps**power), expected, rtol={2: 2e-5, 4: 2e-4, 6: 2e-3}[power])


def test_gaussian_is_finite_at_every_edge():
    words = jnp.asarray([0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1], jnp.uint32)
    eps = np.asarray(gaussian(words))
    assert np.all(np.isfinite(eps))
    np.testing.assert_array_equal(eps[:3], -eps[3:])
    assert 6.0 < eps[0] < 6.3


def test_irwin_hall_moments_are_exact_up_to_the_seventh():
    # The law of the sum of four uniform bytes, and the source at one word for each sum.
    byte = np.full(256, 1.0 / 256.0)
    probability = np.convolve(np.convolve(byte, byte), np.convolve(byte, byte))
    sums = np.arange(1021)
    bytes_of = np.stack([np.clip(sums - 255 * place, 0, 255) for place in range(4)]).astype(np.uint32)
    words = sum(part << np.uint32(8 * place) for place, part in enumerate(bytes_of))
    eps = np.asarray(jax.jit(sources.irwin_hall)(jnp.asarray(words)), np.float64)
    assert np.all(np.diff(eps) > 0.0)
    for power, expected in {1: 0.0, 2: 1.0, 3: 0.0, 4: 3.0, 5: 0.0, 6: 15.0, 7: 0.0}.items():
        np.testing.assert_allclose(probability @ eps**power, expected, rtol=2e-6, atol=1e-5)  # float32
    np.testing.assert_allclose(probability @ eps**8, 103.16, rtol=1e-3)  # as documented; N(0, 1) has 105


def test_three_point_and_rademacher_change_value_where_they_should():
    sixth = 715827883  # 2^32 / 6
    words = jnp.asarray([0, sixth - 1, sixth, 2**31, 2**32 - sixth - 1, 2**32 - sixth, 2**32 - 1], jnp.uint32)
    root = np.float32(np.sqrt(3.0))
    np.testing.assert_array_equal(sources.three_point(words), np.asarray([root, root, 0, 0, 0, -root, -root], np.float32))
    words = jnp.asarray([0, 2**31 - 1, 2**31, 2**32 - 1], jnp.uint32)
    np.testing.assert_array_equal(sources.rademacher(words), np.asarray([1, 1, -1, -1], np.float32))


# The words.


def test_mix_is_a_bijection():
    # On 2^20 arguments spread over the whole range: no two words alike. (By chance 2^20 random words would share 128 pairs.)
    arguments = jnp.arange(2**20, dtype=jnp.uint32) * jnp.uint32(4093)
    mixed = np.asarray(jax.jit(sources._mix)(arguments))
    assert np.unique(mixed).size == 2**20


@each_hash
def test_hash_is_a_bijection(hashed):
    seed = jnp.asarray([3_141_592_653, 589_793_238], jnp.uint32)
    arguments = jnp.arange(2**20, dtype=jnp.uint32) * jnp.uint32(4093)
    assert np.unique(np.asarray(jax.jit(hashed)(arguments, *seed))).size == 2**20


@each_hash
@pytest.mark.parametrize("seed", range(3))
def test_bytes_are_uniform(seed, hashed):
    for place in range(4):
        counts = np.bincount((words(seed, hashed) >> (8 * place)) & 0xFF, minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > 1e-6, place


@each_hash
def test_bytes_are_uniform_over_seeds(hashed):
    # The same parameter over many steps: fresh seeds, one counter.
    seeds = jax.random.bits(jax.random.key(0), (2**17, 2), jnp.uint32)
    at_index = jax.jit(lambda seeds: random_words(seeds, jnp.zeros(3), None, hashed))(seeds)
    for index in range(3):
        for place in range(4):
            counts = np.bincount((np.asarray(at_index[:, index]) >> (8 * place)) & 0xFF, minlength=256)
            assert scipy.stats.chisquare(counts).pvalue > 1e-6


@each_hash
def test_pairs_of_neighbours_are_uniform(hashed):
    # Serial test: the top four bits of two neighbouring words, 256 cells.
    top = words(0, hashed) >> 28
    assert scipy.stats.chisquare(np.bincount(top[0::2] * 16 + top[1::2], minlength=256)).pvalue > 1e-6


@each_hash
def test_every_bit_of_the_seed_and_the_counter_turns_half_of_the_bits(hashed):
    """All but `_double_hash` mix the second half of the seed less.

    Seeds that differ in that alone do not occur: a split draws both anew.
    """
    seeds = np.asarray(jax.random.bits(jax.random.key(1), (4096, 2), jnp.uint32))
    at = jax.jit(lambda seeds: random_words(seeds, jnp.zeros(2), None, hashed))
    base = np.asarray(at(seeds))

    heard = UPPER if hashed is sources._upper_hash else np.uint32(2**32 - 1)  # by a source
    bits = int(np.bitwise_count(heard))

    def share_of_ones(difference):
        return np.sum(np.bitwise_count(difference & heard)) / (bits * difference.size)

    bound = 5.0 * 0.5 / np.sqrt(4096 * bits)
    for half in (0, 1) if hashed is sources._double_hash else (0,):
        for bit in range(32):
            flipped = seeds.copy()
            flipped[:, half] ^= np.uint32(1 << bit)
            assert abs(share_of_ones(base[:, 0] ^ np.asarray(at(flipped))[:, 0]) - 0.5) < bound, (half, bit)
    assert abs(share_of_ones(base[:, 0] ^ base[:, 1]) - 0.5) < bound


# Independence of the variates.


@each_source
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 64, 256, 1024, 4096, 65_536])
def test_no_correlation_within_a_leaf(lag, source):
    eps = vector(0, source=source)
    for x in with_squares(eps):
        assert abs(correlation(x[:-lag], x[lag:])) < 5.0 / np.sqrt(SIZE - lag)


@each_source
def test_no_correlation_across_neighbouring_int_keys(source):
    draws = [vector(seed, source=source) for seed in range(6)]
    for first, second in itertools.pairwise(draws):
        for x, y in zip(with_squares(first), with_squares(second), strict=True):
            assert abs(correlation(x, y)) < 5.0 / np.sqrt(SIZE)


@each_source
def test_no_correlation_across_leaves_of_equal_shape(source):
    leaves = [np.asarray(x, np.float64) for x in normal(0, [jnp.zeros(SIZE // 4)] * 4, source)]
    for i in range(4):
        for j in range(i):
            for shift in (0, 1):
                x, y = leaves[i][shift:], leaves[j][: SIZE // 4 - shift]
                assert abs(correlation(x, y)) < 5.0 / np.sqrt(SIZE // 4 - shift)


@each_source
def test_no_correlation_of_two_parameters_over_many_steps(source):
    """Any two of 20 parameters, 2^17 steps: over fresh seeds even what the counters have in common must not show."""
    seeds = jax.random.bits(jax.random.key(2), (2**17, 2), jnp.uint32)
    hashed = sources._HASHES[source]
    counters = [0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 255, 256, 2**10, 2**15, 2**16, 2**16 + 1, 2**20, 2**24, 2**31]
    series = jax.jit(jax.vmap(lambda counter: source(hashed(counter, *seeds.T))))
    eps = np.asarray(series(jnp.asarray(counters, jnp.uint32)), np.float64)
    for rows in with_squares(eps):
        pairs = np.corrcoef(rows)[np.triu_indices(20, 1)]
        assert np.max(np.abs(pairs)) < 5.0 / np.sqrt(2**17)


def noise_of_steps(key, num_steps, size):
    """The noise that `ctld` itself adds: with no gradient, momentum 0 and lr = 2, T = 1 the buffer is minus the noise."""
    transformation = ctld_optax.ctld(2.0, 1.0, 0.0, key=key, tempering=None, noise="irwin_hall", integrator="euler")
    params = jnp.zeros(size)

    def step(state, _):
        updates, state = transformation.update(params, state, params)
        return state, 0.5 * updates

    return np.asarray(jax.jit(lambda s: jax.lax.scan(step, s, None, num_steps)[1])(transformation.init(params)), np.float64)


def test_no_correlation_across_consecutive_steps():
    steps = noise_of_steps(0, 6, SIZE // 4)
    bound = 5.0 / np.sqrt(SIZE // 4)
    for t in range(1, 6):
        for earlier in range(t):
            assert abs(correlation(steps[t], steps[earlier])) < bound
            assert abs(correlation(steps[t] ** 2 - 1, steps[earlier] ** 2 - 1)) < bound
            assert abs(correlation(steps[t][1:], steps[earlier][:-1])) < bound


def test_one_parameter_over_many_steps_is_white_and_normal():
    eps = noise_of_steps(1, 40_000, 2)
    for series in eps.T:
        assert scipy.stats.kstest(series, "norm").pvalue > 1e-6
        for lag in (1, 2, 3, 10):
            assert abs(correlation(series[lag:], series[:-lag])) < 5.0 / np.sqrt(40_000 - lag)
    assert abs(correlation(*eps.T)) < 5.0 / np.sqrt(40_000)


def test_moments_of_a_draw():
    eps = vector(3, 2**22)
    # Standard errors of the sample moments of n normals: sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n).
    for power, expected, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(np.mean(eps**power) - expected) < 5.0 * np.sqrt(variance / 2**22), power
    assert scipy.stats.kstest(eps[: 2**18], "norm").pvalue > 1e-6


def test_the_bounds_see_a_weak_generator():
    """Negative control: the same counter without the mixing fails the bounds above by far."""
    weak = np.asarray(gaussian(jnp.arange(SIZE, dtype=jnp.uint32) * jnp.uint32(2654435761)), np.float64)
    assert max(abs(correlation(weak[:-lag], weak[lag:])) for lag in (1, 2, 3, 4, 8)) > 50.0 / np.sqrt(SIZE)


# Shapes.


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1), (5,), (2, 3, 4), (7, 1, 3)])
def test_shapes(shape):
    eps = normal(0, {"x": jnp.zeros(shape), "y": jnp.zeros(2)})
    assert eps["x"].shape == shape
    assert np.all(np.isfinite(eps["x"]))
    assert np.unique(eps["x"]).size == np.asarray(eps["x"]).size


@each_hash
def test_index_is_row_major(hashed):
    seed = jnp.asarray([17, 4], jnp.uint32)
    flat, cube = (random_words(seed[None], jnp.zeros(shape), None, hashed) for shape in ((24,), (2, 3, 4)))
    np.testing.assert_array_equal(cube.ravel(), flat.ravel())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_noise_is_float32_whatever_the_parameters(dtype):
    eps = normal(0, jnp.zeros(1000, dtype))
    assert eps.dtype == jnp.float32
    np.testing.assert_array_equal(eps, normal(0, jnp.zeros(1000)))
    assert np.unique(eps).size == 1000  # bfloat16 would leave some hundred values


def test_empty_tree_draws_nothing():
    assert normal(0, {}) == {}


def of_shape(*shape):
    return lambda seed: random_words(seed, jax.ShapeDtypeStruct(shape, jnp.float32), None, sources._hash)


def test_more_elements_than_words_are_refused():
    with pytest.raises(ValueError, match=r"more than 2\^32 elements"):
        jax.eval_shape(of_shape(2**17, 2**16), jnp.zeros((1, 2), jnp.uint32))


def test_full_counter_is_allowed():
    assert jax.eval_shape(of_shape(2**16, 2**16), jnp.zeros((1, 2), jnp.uint32)).shape == (1, 2**16, 2**16)


def test_replicas_are_independent():
    like = jnp.zeros(SIZE // 16)
    keys = jax.random.split(jax.random.key(0), 4)
    eps = np.asarray(jax.jit(jax.vmap(lambda k: draw(k, like, gaussian)))(keys), np.float64)
    for i in range(4):
        np.testing.assert_array_equal(eps[i], draw(keys[i], like, gaussian))
        for j in range(i):
            assert abs(correlation(eps[i], eps[j])) < 5.0 / np.sqrt(SIZE // 16)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_any_key_implementation_will_do(impl):
    eps = np.asarray(draw(jax.random.key(0, impl=impl), jnp.zeros(10_000), gaussian))
    assert scipy.stats.kstest(eps, "norm").pvalue > 1e-6


def test_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r"noise must be 'gaussian'.*, got 'cauchy'"):
        ctld_optax.ctld(0.1, 0.1, key=0, noise="cauchy")
