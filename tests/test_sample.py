"""Posterior samples by one call: what comes in, what goes out, and what is told. The laws are in tests/laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from benchmarks import minibatches
from ctld_optax import _warmup as warmup
from ctld_optax._chains import Target, Trace
from ctld_optax.posterior import sample

SHORT = {"num_chains": 2, "num_warmup": 250, "num_samples": 100}
START = {"x": jnp.zeros(()), "w": jnp.ones((2, 3))}


def loss(params):
    return 0.5 * ((params["x"] - 1.0) / 3.0) ** 2 + 0.5 * jnp.sum(jnp.square(params["w"] - params["x"]))


def test_variables_have_the_names_and_the_shapes_of_params():
    data = sample(loss, START, 0, **SHORT)
    assert {name: value.shape for name, value in data.posterior.items()} == {"x": (2, 100), "w": (2, 100, 2, 3)}
    assert all(data.sample_stats[name].shape == (2, 100) for name in ("lp", "energy", "energy_error", "diverging"))
    lp = -jax.vmap(jax.vmap(loss))({name: jnp.asarray(data.posterior[name].values) for name in START})
    np.testing.assert_allclose(data.sample_stats.lp, lp, rtol=1e-5, atol=1e-5)


def test_gradients_are_counted_as_they_are_taken():
    """The count of the windows, by a call from inside the gradient; the warm-up has the descent on top."""
    taken = []

    @jax.custom_jvp
    def counted(x):
        return 0.5 * jnp.sum(x * x)

    @counted.defjvp
    def _(primals, tangents):
        jax.debug.callback(lambda _: taken.append(1), primals[0][0])
        return counted(*primals), primals[0] @ tangents[0]

    data = sample(counted, jnp.ones(2), 0, **SHORT)
    jax.effects_barrier()
    attrs = data.sample_stats.attrs
    # 100 samples of 5 steps and 250 of the warm-up, of each chain; and a gradient wherever a window begins.
    windows = 2 * (500 + 250)
    assert attrs["gradients"] == 2 * 500
    descent = attrs["warmup_gradients"] - 2 * 250
    assert 2 * 65 <= descent < 2 * 100
    assert windows + 2 * 65 <= len(taken) < windows + 2 * 100 + 50


def test_a_log_density_is_the_same_with_the_other_sign():
    one, other = sample(loss, START, 3, **SHORT), sample(None, START, 3, logdensity_fn=lambda p: -loss(p), **SHORT)
    np.testing.assert_allclose(one.posterior["x"], other.posterior["x"], rtol=1e-4, atol=1e-4)


def test_round_trips_are_told_where_there_are_temperatures():
    harmonic = lambda x: 0.5 * jnp.sum(jnp.square(x))
    assert "round_trips" not in sample(harmonic, jnp.ones(2), 0, **SHORT).sample_stats.attrs
    told = lambda step: sample(
        harmonic,
        jnp.ones(2),
        0,
        **SHORT | {"num_samples": 400},
        tempering=ctld_optax.PolynomialTempering(),
        alpha_step_size=step,
    ).sample_stats.attrs["round_trips"]
    assert told(0.1) > 3
    assert told(1e-4) == 0  # alpha stands still


@pytest.mark.usefixtures("x64")
def test_a_prior_and_a_likelihood_are_their_sum():
    start = jax.tree.map(lambda x: x.astype(jnp.float64), START)
    whole = sample(loss, start, 3, **SHORT)
    parts = sample(lambda p: loss(p) - 0.1 * p["x"] ** 2, start, 3, prior_fn=lambda p: 0.1 * p["x"] ** 2, **SHORT)
    np.testing.assert_allclose(whole.posterior["x"], parts.posterior["x"], rtol=1e-6, atol=1e-6)


def test_constrain_says_what_is_kept():
    data = sample(loss, START, 0, constrain=lambda p: {"scale": jnp.exp(p["x"])}, **SHORT)
    assert set(data.posterior) == {"scale"}
    assert np.all(data.posterior.scale > 0.0)


def test_the_same_key_gives_the_same_samples_and_another_one_others():
    first, again, other = (sample(loss, START, key, **SHORT).posterior.x.values for key in (0, jax.random.key(0), 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(first[:, -1] != other[:, -1])
    assert first[0, -1] != first[1, -1]


def test_a_second_call_compiles_nothing():
    traced = []

    def counted(x):
        traced.append(1)
        return 0.5 * jnp.sum(x * x)

    sample(counted, jnp.ones(2), 0, **SHORT)
    so_far = len(traced)
    sample(counted, jnp.ones(2), 1, **SHORT)
    assert len(traced) == so_far


def test_each_chain_begins_where_initial_puts_it():
    """Two modes far apart, of equal weight: each chain finds its own and stays; of unequal weight, both begin in the better."""

    def modes(weight):
        return lambda x: -jnp.logaddexp(-0.5 * jnp.sum((x - 40.0) ** 2), jnp.log(weight) - 0.5 * jnp.sum((x + 40.0) ** 2))

    places = lambda: iter([jnp.full(2, 30.0), jnp.full(2, -30.0)])
    begin = places()
    equal = sample(modes(1.0), lambda _: next(begin), 0, **SHORT)
    assert np.sign(equal.posterior.x.values.mean(axis=(1, 2))).tolist() == [1.0, -1.0]
    assert equal.sample_stats.attrs["left_modes"] == 0
    begin = places()
    unequal = sample(modes(1e-9), lambda _: next(begin), 0, **SHORT)
    assert np.sign(unequal.posterior.x.values.mean(axis=(1, 2))).tolist() == [1.0, 1.0]
    assert unequal.sample_stats.attrs["left_modes"] == 1


def test_many_dimensions_have_a_diagonal_metric():
    scales = jnp.geomspace(1e-3, 1e3, 300)
    data = sample(lambda x: 0.5 * jnp.sum(jnp.square(x / scales)), jnp.zeros(300), 0, num_samples=400)
    np.testing.assert_allclose(np.std(data.posterior.x.values, axis=(0, 1)) / scales, 1.0, atol=0.25)


def test_scales_beyond_what_the_dtype_resolves_are_found():
    """Condition 10^14 along skew axes, in float32: the first metric sees a part of it, the windows the rest."""
    scale = jnp.geomspace(10.0**-3.5, 10.0**3.5, 4)
    skew = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0], jnp.float32)
    data = sample(lambda x: 0.5 * jnp.sum(jnp.square(skew @ x / scale)), jnp.ones(4), 0, num_samples=1_000)
    along = data.posterior.x.values @ np.asarray(skew).T / np.asarray(scale)
    # 4,000 samples, about as many independent ones: the standard error is 0.011.
    np.testing.assert_allclose(along.std(axis=(0, 1)), 1.0, atol=0.06)


def test_beyond_an_edge_there_is_no_sample_and_the_chain_goes_on():
    """A density that ends: steps over the edge are not taken and told, and the samples reach up to it."""

    def edge(x):
        return jnp.where(x[0] < 1.0, 0.5 * x[0] ** 2, jnp.inf)

    data = sample(edge, jnp.zeros(1), 0, num_samples=1_000)
    x = data.posterior.x.values
    assert np.all(np.isfinite(x))
    assert 0.9 < x.max() < 1.0
    assert np.any(data.sample_stats.diverging)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((lambda x: -0.5 * jnp.sum(x * x), jnp.ones(2), 0), ValueError, r"pass a log density as logdensity_fn="),
        ((jnp.sum, jnp.ones(2), 0), ValueError, "must have a lowest value"),
        ((lambda x: jnp.nan * jnp.sum(x), jnp.ones(2), 0), ValueError, "loss_fn must be finite"),
        ((lambda x: x, jnp.ones(2), 0), ValueError, "loss_fn must give a scalar"),
        ((None, jnp.ones(2), 0), TypeError, "loss_fn must be given"),
        ((lambda x: jnp.sum(x * x), jnp.ones(2, int), 0), TypeError, "real floating-point dtype"),
        ((lambda x: jnp.sum(x * x), {}, 0), ValueError, "initial must hold"),
        ((lambda x: jnp.sum(x * x), jnp.ones(2), "key"), TypeError, "key must be"),
    ],
)
def test_what_cannot_be_sampled_is_told(arguments, error, words):
    with pytest.raises(error, match=words):
        sample(*arguments, **SHORT)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"num_chains": 0}, ValueError),
        ({"num_warmup": 100}, ValueError),
        ({"num_samples": 1.5}, TypeError),
        ({"thin": 0}, ValueError),
        ({"learning_rate": 0.0}, ValueError),
        ({"momentum": 1.0}, ValueError),
        ({"tempering": 0.85}, TypeError),
        ({"prior_fn": 1.0}, TypeError),
    ],
)
def test_an_option_out_of_range_is_named(option, error):
    with pytest.raises(error, match=next(iter(option))):
        sample(loss, START, 0, **{**SHORT, **option})


ROWS = {"x": np.arange(12.0).reshape(6, 2), "y": np.ones(6)}
ROWS_LOSS = lambda p, rows: jnp.sum((rows["x"] @ p - rows["y"]) ** 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "data must be given beside batch_size"),
        ({"data": ROWS | {"y": np.ones(5)}}, "data must be arrays with one row for each example"),
        ({"data": ROWS | {"y": np.float32(1.0)}}, "data must be arrays with one row for each example"),
        ({"batch_size": 7}, "batch_size must be at most the 6 rows"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"tempering": ctld_optax.PolynomialTempering()}, "tempering must be None beside batch_size"),
        ({"loss_fn": lambda p, rows: ROWS_LOSS(p, rows) / len(rows["y"])}, r"loss_fn must be a sum over the rows .*prior_fn="),
        ({"loss_fn": lambda p, rows: ROWS_LOSS(p, rows) + 100.0}, r"loss_fn must be a sum over the rows .*prior_fn="),
    ],
)
def test_rows_that_make_no_batches_are_told(change, words):
    arguments = {"loss_fn": ROWS_LOSS, "initial": jnp.ones(2), "key": 0, "data": ROWS, "batch_size": 2} | SHORT | change
    with pytest.raises(ValueError, match=words):
        sample(**arguments)


def test_data_given_apart_are_those_that_the_loss_holds():
    held = sample(lambda p: ROWS_LOSS(p, ROWS), jnp.ones(2), 3, **SHORT)
    given = sample(ROWS_LOSS, jnp.ones(2), 3, data=ROWS, **SHORT)
    np.testing.assert_allclose(held.posterior.x, given.posterior.x, rtol=1e-3, atol=1e-3)


def test_a_run_that_never_cools_says_so():
    hot = ctld_optax.PolynomialTempering(delta=1e-6, strength=0.9)
    with pytest.raises(ValueError, match="tempering must let every chain cool down"):
        sample(loss, START, 0, tempering=hot, **SHORT)


def test_a_strength_of_0_is_no_heat():
    """Alpha moves all the same, and nothing is hotter."""
    data = sample(loss, START, 0, tempering=ctld_optax.GeometricTempering(strength=0.0), **SHORT)
    alpha, beta = data.sample_stats.alpha.values, data.sample_stats.beta.values
    assert np.all(np.isfinite(alpha))
    assert np.ptp(alpha) > 0.1
    np.testing.assert_array_equal(beta, 1.0)
    assert data.sample_stats.attrs["round_trips"] > 0


def test_a_chain_that_ends_nowhere_is_left_for_a_good_one():
    """One of three begins where the curvature overflows: it goes where the others are."""

    def overflows(x):
        return jnp.sum(jnp.where(x > 50.0, 1e30 * (x - 50.0) ** 4 + jnp.sqrt(jnp.abs(x - 60.0)), 0.5 * x**2))

    begin = iter([jnp.zeros(2), jnp.full(2, 60.0), jnp.ones(2)])
    data = sample(overflows, lambda _: next(begin), 0, **{**SHORT, "num_chains": 3})
    assert np.all(np.abs(data.posterior.x.values) < 10.0)
    assert data.sample_stats.attrs["left_modes"] == 1


def test_the_learning_rate_falls_with_the_error_and_rises_slowly():
    """By the power 2/3 of the error down, by a quarter up at most, and never above what was asked for."""
    noise = np.random.default_rng(0).normal(size=(2, 50, 3))

    def after(error, rate, largest):
        metric = warmup.Metric(warmup.Diagonal(jnp.ones(3)), jnp.asarray(rate))
        blank = jnp.zeros((2, 50))
        window = Trace(noise, noise, *[blank] * 5, jnp.full((2, 50), error * np.sqrt(3.0)), blank)
        return float(warmup.refined(metric, window, jnp.asarray(largest))[0].learning_rate)

    np.testing.assert_allclose(after(0.8, 0.2, 0.4), 0.2 / 4.0, rtol=1e-5)
    np.testing.assert_allclose(after(1e-4, 0.1, 0.4), 0.125, rtol=1e-5)
    np.testing.assert_allclose(after(0.0, 0.1, 0.11), 0.11, rtol=1e-5)


def test_a_chain_whose_window_shows_no_mass_goes_on_beside_the_best():
    """A mode's mass is exp(-mean energy) times its volume: 20 k_B T higher counts only in e^20 times the volume."""
    noise = np.random.default_rng(1).normal(size=(2, 500, 4))
    metric = warmup.Metric(warmup.Dense(jnp.diag(jnp.array([1.0, 10.0, 1.0, 1.0]))), jnp.asarray(0.1))

    def homes(energies, widths):
        positions = jnp.asarray(noise * np.reshape(widths, (2, 1, 1)))
        blank = jnp.zeros((2, 500))
        energy = jnp.broadcast_to(jnp.asarray(energies)[:, None], (2, 500))
        return warmup.homes(metric, Trace(positions, positions, blank, energy, *[blank] * 5)).tolist()

    assert homes([3.0, 3.0], [1.0, 1.0]) == [0, 1]
    assert homes([3.0, 13.0], [1.0, 1.0]) == [0, 1]
    assert homes([3.0, 23.0], [1.0, 1.0]) == [0, 0]
    assert homes([23.0, 3.0], [1.0, 1.0]) == [1, 1]
    assert homes([3.0, 23.0], [1.0, np.exp(5.0)]) == [0, 1]
    assert homes([3.0, 3.0], [1.0, 0.0]) == [0, 0]  # one that stands still


def test_a_search_ends_where_falls_are_rounding():
    """The misfit of 100,000 rows is known to 0.004 in float32: about its lowest place, steps go up and down by as much."""
    rows = minibatches.rows_of(100_000)
    target = Target(lambda w: minibatches.misfit(w, rows), minibatches.prior)
    descend = jax.jit(lambda key: warmup._descend(target, jnp.zeros(minibatches.DIMENSION), key)[2])
    assert descend(jax.random.key(0)) < 300


@pytest.mark.parametrize("begin", [-20.0, 20.0])
def test_the_descent_gets_off_an_exponential_wall(begin):
    """A scale in logarithms, ten standard deviations off: L-BFGS alone ends 17 k_B T too high."""
    with jax.enable_x64(True):
        energy = lambda x: 0.5 * jnp.sum((x[1:] * jnp.exp(x[0]) - 3.0) ** 2) + 0.5 * jnp.sum(x**2 / jnp.array([4.0, 1.0, 1.0]))
        start = jnp.array([begin, 1.0, -1.0])
        target = Target(energy, lambda x: jnp.zeros(()))
        reached, _, gradients = warmup._descend(target, start, jax.random.key(0))
        mode, *_ = warmup._descend(target, jnp.array([1.0, 1.0, 1.0]), jax.random.key(0))
        assert energy(mode) < energy(jnp.array([1.0, 1.0, 1.0])) < 10.0
        assert energy(reached) < energy(mode) + 0.01
        assert gradients < 5000
