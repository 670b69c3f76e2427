"""The ladder of temperatures: how hot is enough, the metric of each temperature, and what the bias begins with."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import _exact as exact
from ctld_optax import _heat as heat
from ctld_optax import _warmup as warmup
from ctld_optax._chains import Target, Trace
from ctld_optax._heated import Heated
from ctld_optax._sample import OnFlat
from ctld_optax._windows import Sampler, exact_steps, start, start_exact, steps
from ctld_optax.posterior import sample

CURVATURE = jnp.asarray([100.0, 100.0, 1e-4, 1e-4])  # of the likelihood; the prior's is 1
TILT = jnp.linalg.qr(jax.random.normal(jax.random.key(4), (4, 4)))[0]


def likelihood(x):
    return 0.5 * jnp.sum(CURVATURE * (x @ TILT) ** 2)


def prior(x):
    return 0.5 * jnp.sum(x**2)


TARGET = Target(OnFlat(likelihood, jnp.asarray), OnFlat(prior, jnp.asarray))
COLD = (CURVATURE + 1.0) ** -0.5
METRIC = warmup.Metric(warmup.Dense(TILT * COLD), jnp.asarray(0.1))


def level(log_beta, disagreement, energy=0.0):
    return heat.Level(log_beta, METRIC, energy, 1.0, disagreement)


def ladder(*disagreements):
    levels = [level(-number * math.log(2.0), one) for number, one in enumerate(disagreements)]
    return heat.Ladder(levels, jnp.zeros((4, 4)), 0)


@pytest.mark.parametrize(
    ("disagreements", "hottest"),
    [
        ([1.0, 1.0, 1.0, 1.0], 2.0),  # one mode
        ([9.0, 1.0, 1.0, 1.0, 1.0], 4.0),
        ([9.0, 4.0, 2.0, 1.1, 1.0, 1.0], 16.0),
        ([9.0, 1.1, 2.0, 1.1, 1.0, 1.0], 16.0),  # agreement below a disagreement is chance: all were in one mode
        ([9.0, 4.0, 2.0], 4.0),  # nowhere: as hot as the ladder goes
        ([9.0, math.nan, 1.0, 1.0], 8.0),
    ],
)
def test_hot_enough_is_one_level_above_where_modes_part(disagreements, hottest):
    assert heat.enough(ladder(*disagreements)) == pytest.approx(hottest)


@pytest.fixture(scope="module")
def climbed():
    places = jax.random.normal(jax.random.key(0), (8, 4)) * COLD @ TILT.T
    return heat.explored(TARGET, Sampler(0.8), METRIC, places, jax.random.key(1))


def test_the_climb_ends_where_the_data_are_forgotten_and_comes_down_again(climbed):
    """Of two directions that the data hold, each with the energy 0.5 b c / (b c + 1) k_B T at the inverse temperature b."""
    betas = np.exp([one.log_beta for one in climbed.levels])
    np.testing.assert_allclose(betas, 0.5 ** np.arange(len(betas)), rtol=1e-6)
    energy = betas * CURVATURE[0] / (betas * CURVATURE[0] + 1.0)
    # 8 chains of some 25 independent steps: 7 % of the spread, which is as large as the energy; four times that.
    np.testing.assert_allclose([beta * one.energy for beta, one in zip(betas, climbed.levels, strict=True)], energy, rtol=0.3)
    assert climbed.levels[-1].spread < heat.FORGOTTEN < climbed.levels[-2].spread
    assert all(one.disagreement < heat.AGREED for one in climbed.levels)
    windows = 2 * len(betas) - 1 + heat.LAST
    assert climbed.gradients == windows * 250 * 8


def test_each_temperature_has_its_own_metric(climbed):
    """Of the density of a temperature: the variance 1 / (b c + 1) along the directions of the data, whatever the frame."""
    coordinates = heat.heated(climbed)
    for one in climbed.levels:
        beta = math.exp(one.log_beta)
        # Steps along the axes of z, of the temperature 1/beta: the covariance that the metric stands for.
        axes = jax.vmap(lambda z, b=beta: coordinates.outward(z, jnp.asarray(b)))(jnp.eye(4))
        variance = jnp.diag(TILT.T @ (axes.T @ axes) @ TILT) / beta
        # The metric of a window is right to some 25 % (on a Gaussian better), twice that between two levels' noise.
        np.testing.assert_allclose(variance * (beta * CURVATURE + 1.0), 1.0, rtol=0.5)
    # Negative control: with the metric of the cold alone the prior's directions would be as wide as sqrt(T).
    hottest = jnp.exp(jnp.asarray(climbed.levels[-1].log_beta))
    axes = jax.vmap(METRIC.coordinates.outward)(jnp.eye(4))
    assert jnp.diag(TILT.T @ (axes.T @ axes) @ TILT)[3] / hottest > 50.0


def test_widths_are_linear_in_the_logarithm_between_levels():
    logs = jnp.asarray([[0.0, 0.0], [-1.0, 0.5], [-3.0, 0.5]])
    coordinates = Heated(warmup.Diagonal(jnp.asarray([2.0, 3.0])), logs, jnp.asarray(-2.0))
    for log_beta, width in (
        (0.0, [0.0, 0.0]),
        (-0.5, [-0.5, 0.25]),
        (-1.5, [-2.0, 0.5]),
        (-2.0, [-3.0, 0.5]),
        (-9.0, [-3.0, 0.5]),
    ):
        inward = coordinates.inward(jnp.ones(2), jnp.exp(jnp.asarray(log_beta)))
        np.testing.assert_allclose(inward, np.exp(width) * np.asarray([2.0, 3.0]), rtol=1e-5)


@pytest.mark.parametrize(
    "tempering", [ctld_optax.PolynomialTempering(strength=0.9), ctld_optax.GeometricTempering(strength=0.9)]
)
def test_the_bias_begins_with_the_mean_force(tempering):
    """Of an energy that is Gaussian in d dimensions, d/2 k_B T at every temperature, the bias is -d/2 log(beta)."""
    levels = [level(-0.1 * number, 1.0, energy=3.0 * math.exp(0.1 * number)) for number in range(24)]
    bias, offset = ctld_optax.AdaptiveBiasingForce(), jnp.asarray(3.0)
    known = heat.informed(bias, tempering, heat.Ladder(levels, jnp.zeros((4, 6)), 0), offset)
    assert known.shape == bias.init().shape
    alpha = jnp.linspace(0.4, 1.5, 12)
    beta = tempering.beta(alpha)
    free = -(3.0 * jnp.log(beta)) + 3.0 * beta  # -log of the integral over the parameters, less the offset's share
    found = jnp.asarray([bias.potential(known, a, 1.5) for a in alpha])
    trusted = heat.TRUSTED / (heat.TRUSTED + bias.min_samples)
    np.testing.assert_allclose(found - found[0], trusted * (free - free[0]) * jnp.sign(1.0), atol=0.1)


def window(grad, beta, acceptance):
    grad = jnp.asarray(grad)
    shape = grad.shape[:2]
    empty = jnp.zeros(shape)
    alike = [jnp.full(shape, number) for number in (beta, acceptance)]
    return Trace(
        jnp.zeros_like(grad), grad, empty, empty, empty, alike[0], empty, empty, jnp.zeros(shape, bool), acceptance=alike[1]
    )


def test_where_gradients_are_larger_than_the_metric_says_it_narrows():
    """At their own level alone, by the root of how much, with the weight of the steps seen; never wider than the widest."""
    coordinates = Heated(warmup.Diagonal(jnp.ones(2)), jnp.zeros((3, 2)), jnp.asarray(-2.0))
    shape, beta = (4, 250), math.exp(-1.0)
    # The gradient of a density of the temperature 1/beta in coordinates of its own scale, z sqrt(beta), has the variance 1.
    scale = jnp.asarray([6.0, 1.0]) * math.sqrt(beta)
    grads = scale * jax.random.rademacher(jax.random.key(0), (*shape, 2), jnp.float32)
    seen = window(grads, beta, 1.0 - heat.REFUSED)
    after = heat.relearned(coordinates, coordinates.widths, seen)
    visits, known = 1000 / heat.STEPS_APART, heat.PRIOR_VISITS
    expected = -0.5 * math.log((known + 36.0 * visits) / (known + visits) / heat.STIFF)
    np.testing.assert_allclose(after.widths, [[0.0, 0.0], [expected, 0.0], [0.0, 0.0]], atol=1e-4)


@pytest.mark.parametrize("refused", [0.0, 0.01, 0.2, 1.0])
def test_a_level_is_as_wide_as_the_share_of_steps_that_are_to_be_refused_allows(refused):
    """The work of a step goes as its length cubed: up at most by a quarter, down by whatever is needed."""
    coordinates = Heated(warmup.Diagonal(jnp.ones(2)), jnp.zeros((3, 2)), jnp.asarray(-2.0))
    seen = window(jnp.zeros((4, 250, 2)), math.exp(-2.0), 1.0 - refused)
    after = heat.relearned(coordinates, coordinates.widths + 1.0, seen)
    visits, known = 1000 / heat.STEPS_APART, heat.PRIOR_VISITS
    share = (known * heat.REFUSED + visits * refused) / (known + visits)
    rate = min(warmup.RISE, (heat.REFUSED / share) ** (2.0 / 3.0))
    np.testing.assert_allclose(jnp.exp(2.0 * after.widths), [[1.0] * 2, [1.0] * 2, [rate] * 2], rtol=1e-4)
    assert refused == 0.0 or rate < 1.0 or refused < heat.REFUSED
    capped = heat.relearned(coordinates, coordinates.widths, seen)
    np.testing.assert_allclose(jnp.exp(2.0 * capped.widths[2]), min(rate, 1.0), rtol=1e-4)


def test_a_learning_rate_of_its_own_is_a_width():
    """The stiffness, rate times the square of the width, is that of the level."""
    levels = [level(0.0, 1.0), level(-1.0, 1.0)]
    slow = METRIC._replace(learning_rate=jnp.asarray(0.025))
    made = heat.Ladder([levels[0], levels[1]._replace(metric=slow)], jnp.zeros((4, 4)), 0)
    widest = heat.heated(made)
    after = heat.shortened(widest, made, jnp.asarray(0.1))
    np.testing.assert_allclose(0.1 * jnp.exp(2.0 * (after.widths - widest.widths)), [[0.1] * 4, [0.025] * 4], rtol=1e-5)


def test_hot_prior_directions_stay_stable_and_right():
    """At 1/250 of the likelihood a stiffness of 0.1 in the cold would be 25 in the prior's directions, and 4 is the limit."""
    tempering = ctld_optax.GeometricTempering(strength=0.996)
    alphas = exact.Alphas(tempering, ctld_optax.AdaptiveBiasingForce(axis_name="chains"), 0.03)

    def seen(widths):
        """Whether a step is taken, and the variances in units of what they should be, where it is hottest."""
        coordinates = Heated(METRIC.coordinates, widths, jnp.log(jnp.asarray(0.004)))
        pace, offset = exact.Pace(jnp.asarray(0.1), 0.8), jnp.asarray(1.0)
        walkers = start_exact(TARGET, jnp.zeros((64, 4)), alphas.bias.init(), jax.random.key(0))
        traces = []
        for _ in range(16):
            walkers, trace = exact_steps(TARGET, coordinates, alphas, pace, offset, walkers)
            traces.append(trace)
        beta, x, taken = (
            np.concatenate([np.asarray(getattr(one, name)) for one in traces[4:]], axis=1)
            for name in ("beta", "position", "acceptance")
        )
        hot = beta < 0.006
        squares = np.square(x @ np.asarray(TILT)) * (beta[..., None] * np.asarray(CURVATURE) + 1.0)
        return taken[hot].mean(), squares[hot].mean(axis=0)

    right = 0.5 * jnp.log(jnp.asarray([[1.0] * 4, [0.004 * (c + 1.0) / (0.004 * c + 1.0) for c in CURVATURE]]))
    taken, variances = seen(right)
    # 64 chains of 3,000 steps, a fifth of them hot, of some ten each: 2.3 % of a variance; four times that.
    np.testing.assert_allclose(variances, 1.0, atol=0.09)
    assert taken > 0.9
    # Negative control: of the metric of the cold alone hardly a step is taken there.
    assert seen(jnp.zeros_like(right))[0] < 0.8 * taken


def test_what_is_clipped_is_large_for_its_temperature():
    """Three times the root mean square is rare in four dimensions: at no temperature does it touch a chain at rest."""
    sampler, rate = Sampler(0.8), jnp.asarray(0.1)
    coordinates = METRIC.coordinates
    free = Target(TARGET.heated, OnFlat(lambda _: 0.0, jnp.asarray))
    chains = start(free, sampler, rate, jnp.zeros((8, 4)), jax.random.key(0), 0.01)
    _, clipped = steps(free, sampler, coordinates, rate, chains, warmup.CLIP)
    _, other = steps(free, sampler, coordinates, rate, chains)
    assert np.mean(np.all(clipped.position == other.position, axis=(1, 2))) > 0.5
    _, tight = steps(free, sampler, coordinates, rate, chains, 0.1)
    assert not np.any(np.all(tight.position == other.position, axis=(1, 2)))


def test_one_mode_needs_no_more_than_twice_the_temperature():
    data = sample(likelihood, jnp.ones(4), 0, prior_fn=prior, tempering="auto", num_warmup=250, num_samples=100)
    assert data.sample_stats.attrs["hottest"] == 2.0


def test_chains_that_run_away_at_once_ask_for_a_prior(monkeypatch):
    monkeypatch.setattr(heat, "ASTRAY", 1e-3)
    with pytest.raises(ValueError, match="prior_fn="):
        sample(likelihood, jnp.ones(4), 0, prior_fn=prior, tempering="auto", num_warmup=250, num_samples=50)


@pytest.mark.slow
def test_the_heat_that_two_modes_need_is_found_and_their_weights():
    """0.3 and 0.7 of the weight, forty deviations apart; all chains begin in the smaller one."""
    apart = 20.0

    def loss_fn(x):
        left, right = (-0.5 * jnp.sum((x + sign * apart / math.sqrt(3.0)) ** 2) for sign in (1.0, -1.0))
        return -jnp.logaddexp(jnp.log(0.3) + left, jnp.log(0.7) + right)

    wide = lambda x: 0.5 * jnp.sum((x / apart) ** 2)
    begin = jnp.full(3, -apart / math.sqrt(3.0))
    data = sample(loss_fn, begin, 0, prior_fn=wide, tempering="auto", num_chains=8, num_samples=20_000)
    right = (data.posterior.x.values.mean(-1) > 0.0).astype(float)
    crossings = np.abs(np.diff(right, axis=1)).sum()
    print(f"hottest {data.sample_stats.attrs['hottest']:g}, weight {right.mean():.3f}, {crossings:.0f} crossings")
    assert crossings > 80
    assert abs(right.mean() - 0.7) < 4.0 * right.mean(axis=1).std(ddof=1) / math.sqrt(8.0)
    # Negative control: 6.7 times as hot, which was enough for modes twelve deviations apart, does not cross here.
    colder = sample(loss_fn, begin, 0, prior_fn=wide, tempering=ctld_optax.GeometricTempering(), num_samples=4_000)
    assert np.all(colder.posterior.x.values.mean(-1) < 0.0)
