"""Metrics that follow the run: Adam's step at T = 0, a momentum that stays thermal above, and what must not settle in them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._dynamics.preconditioner import Natural, Unpreconditioned
from tests.helpers import assert_finite, assert_identical, signature

PARAMS = {"w": jnp.asarray([1.2, 0.5, -0.3]), "b": jnp.asarray(2.0)}
METRICS = (ctld_optax.SecondMoment, ctld_optax.LayerScale)
COLD, WARM = jnp.float32(0.0), jnp.float32(0.3)


def loss_fn(params):
    """Curvatures from 1 to 10^4, and not quadratic, so that the scales move."""
    valleys = jnp.asarray([1.0, 100.0, 1e4]) * (params["w"] - 1.0) ** 2 * (1.0 + 0.3 * jnp.sin(5.0 * params["w"]))
    return 0.5 * jnp.sum(valleys) + (params["b"] - 1.0) ** 4


def path(tx, steps):
    """The parameters after each step, and the last state."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), params = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((PARAMS, tx.init(PARAMS)))
    return params, state


def observed(metric, gradients, temperature=WARM, dtype=jnp.float32):
    """What the metric remembers of some gradients in turn."""
    memory = metric.init(optax.tree.cast(gradients[0], dtype))
    for grads in gradients:
        memory, _, _ = metric.observe(memory, grads, grads, temperature)
    return memory


def agree(ours, theirs, rtol):
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize(("b1", "b2", "rate", "eps"), [(0.9, 0.999, 3e-3, 1e-8), (0.5, 0.9, 1e-2, 1e-3)])
def test_cold_it_is_adam_but_for_the_bias_correction_of_the_first_moment(b1, b2, rate, eps):
    adam = optax.chain(optax.adam(rate, b1, b2, eps), optax.scale_by_schedule(lambda count: 1.0 - b1 ** (count + 1)))
    metric = ctld_optax.SecondMoment(decay=b2, eps=eps)
    sampler = ctld_optax.ctld((1.0 - b1) * rate, 0.0, b1, key=0, tempering=None, preconditioner=metric)
    (ours, state), (theirs, other) = (path(tx, 300) for tx in (sampler, adam))
    agree(ours, theirs, 2e-6)
    agree(state.coordinates.nu, optax.tree.get(other, "nu"), 1e-4)  # of gradients, which near the minimum are differences


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_cold_a_layer_is_divided_by_the_power_of_its_mean_square(power):
    """Momentum in raw gradients, in NumPy."""
    metric = ctld_optax.LayerScale(power=power, decay=0.9, eps=1e-3)
    tx, rng = ctld_optax.ctld(0.1, 0.0, 0.8, key=0, tempering=None, preconditioner=metric), np.random.default_rng(0)
    state, trace, nu = tx.init(PARAMS["w"]), np.zeros(3), 0.0
    for count in range(1, 9):
        grad = rng.normal(size=3) * 10.0 ** rng.integers(-2, 3)
        updates, state = tx.update(jnp.asarray(grad, jnp.float32), state)
        trace, nu = 0.8 * trace + grad, 0.9 * nu + 0.1 * np.mean(grad**2)
        mass = (np.sqrt(nu / (1.0 - 0.9**count)) + 1e-3) ** (2.0 * power)
        np.testing.assert_allclose(updates, -0.1 * trace / mass, rtol=2e-5)


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_the_mass_has_the_temperature_in_it(metric_class, power):
    """M = nu^p T^(1 - 2 p): at power 1 the metric is free of the units of `value`."""
    metric = metric_class(power=power)
    grads = {"w": jnp.full(3, 5.0), "b": jnp.asarray(0.1)}
    _, coordinates, _ = metric.observe(metric.init(PARAMS), PARAMS, grads, WARM)
    mass = jax.tree.map(lambda g: np.abs(g) ** (2.0 * power) * 0.3 ** (1.0 - 2.0 * power), grads)
    agree(coordinates.inward(grads), jax.tree.map(lambda g, m: g / np.sqrt(m), grads, mass), 1e-5)
    agree(coordinates.outward(grads), jax.tree.map(lambda g, m: g / np.sqrt(m), grads, mass), 1e-5)


@pytest.mark.parametrize("metric_class", METRICS)
def test_the_momentum_stays_in_z_above_and_in_theta_at_zero_temperature(metric_class):
    metric, grads = metric_class(decay=0.5), jax.tree.map(lambda p: 30.0 * p, PARAMS)
    memory, before, _ = metric.observe(metric.init(PARAMS), PARAMS, PARAMS, WARM)
    _, _, momentum = metric.observe(memory, PARAMS, grads, WARM)
    assert_identical(momentum, PARAMS)
    _, after, momentum = metric.observe(memory, PARAMS, grads, COLD)
    assert np.all(np.abs(momentum["w"]) < 0.5 * np.abs(PARAMS["w"]))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    raw = [jax.tree.map(lambda m, s: m / s, m, c.inward(ones)) for m, c in ((PARAMS, before), (momentum, after))]
    agree(raw[1], raw[0], 1e-6)


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_a_gradient_whose_square_is_not_finite_is_left_out(metric_class, bad):
    metric, worse = metric_class(), PARAMS | {"w": PARAMS["w"].at[1].set(bad)}
    (before, _), (after, num_seen) = observed(metric, [PARAMS]), observed(metric, [PARAMS, worse])
    changed = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.tree.map(jnp.not_equal, after, before))]).tolist()
    assert changed == ([True, True, False, True] if metric_class is ctld_optax.SecondMoment else [True, False])
    assert int(num_seen) == 2


@pytest.mark.parametrize("metric_class", METRICS)
def test_without_memory_the_last_gradient_counts_alone(metric_class):
    """Also after one that is a hundred thousand times as large."""
    memory = observed(metric_class(decay=0.0), [jnp.full(3, 1e5), jnp.full(3, 1.0)])
    np.testing.assert_array_equal(memory.nu, np.ones_like(memory.nu))


def test_a_bad_step_does_no_lasting_harm():
    tx = ctld_optax.ctld(0.01, 1e-3, key=0, tempering=None, preconditioner=ctld_optax.SecondMoment())
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for bad in (1.0, jnp.nan, jnp.inf, 1.0):
        updates, state = update(jax.tree.map(lambda p, bad=bad: bad * p, PARAMS), state, PARAMS)
        assert_finite(updates)
    assert_finite(state)
    assert int(state.skipped) == 2


def test_what_has_seen_no_gradient_moves_as_in_unit_mass():
    grads = jnp.asarray([0.0, 1e-6])
    for power in (0.5, 1.0):
        metric = ctld_optax.SecondMoment(power=power)
        _, coordinates, _ = metric.observe(metric.init(grads), grads, grads, WARM)
        unseen, seen = np.asarray(coordinates.outward(jnp.ones(2)))
        assert unseen == 1.0
        assert seen > 100.0


def test_a_first_gradient_near_zero_by_chance_is_no_scale():
    """The noise would throw such an entry by the root of its inverse; without noise it moves as Adam has it."""
    metric, first = ctld_optax.SecondMoment(power=1.0), jnp.asarray([1e-6, 1.0, -3.0])
    mean_square = 10.0 / 3.0
    np.testing.assert_allclose(observed(metric, [first]).nu, 1e-3 * np.asarray([mean_square, mean_square, 9.0]), rtol=1e-5)
    later = observed(metric, [first, first]).nu - 0.999 * observed(metric, [first]).nu
    np.testing.assert_allclose(later, 1e-3 * first**2, atol=1e-8)
    np.testing.assert_allclose(observed(metric, [first], COLD).nu, 1e-3 * first**2, rtol=1e-5)


@pytest.mark.parametrize("metric_class", METRICS)
def test_it_stands_still_after_so_many_gradients(metric_class):
    gradients = [jax.tree.map(lambda p, size=size: size * p, PARAMS) for size in range(1, 9)]
    until = {steps: observed(metric_class(freeze_after=5), gradients[:steps]) for steps in (4, 5, 8)}
    assert_identical(until[8], until[5])
    assert all(np.all(a != b) for a, b in zip(jax.tree.leaves(until[5].nu), jax.tree.leaves(until[4].nu), strict=True))
    assert int(until[8].num_seen) == 5


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_have_a_wide_second_moment(metric_class, dtype):
    gradients = 3 * [optax.tree.cast(PARAMS, dtype)]
    memory = observed(metric_class(), gradients, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(memory.nu)} == {jnp.dtype(jnp.float32)}
    assert signature(memory) == signature(metric_class().init(gradients[0]))


def test_without_a_metric_nothing_is_done():
    memory, coordinates, momentum = Unpreconditioned().observe(Natural(), PARAMS, PARAMS, WARM)
    assert memory is coordinates
    assert momentum is PARAMS
    assert coordinates.inward(PARAMS) is coordinates.outward(PARAMS) is PARAMS


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"power": 0.0}, ValueError, r"power must be a finite number in \(0, 1\]"),
        ({"power": 2.0}, ValueError, r"power must be a finite number in \(0, 1\]"),
        ({"decay": 1.0}, ValueError, r"decay must be a finite number in \[0, 1\)"),
        ({"eps": 0.0}, ValueError, r"eps must be a finite number in \(0, inf\)"),
        ({"freeze_after": 0}, ValueError, "freeze_after must be >= 1"),
        ({"freeze_after": 0.5}, TypeError, "freeze_after must be a Python integer"),
        ({"decay": "0.999"}, TypeError, "decay must be a number"),
    ],
)
def test_wrong_settings_are_told(metric_class, wrong, error, words):
    with pytest.raises(error, match=words):
        metric_class(**wrong)
