"""g(alpha), Eq. 7, and the walls, Eq. 11."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctld_optax import GeometricTempering, PolynomialTempering
from ctld_optax._dynamics.walls import ForceWall, ReflectingWall

SHAPES = [
    PolynomialTempering(),
    PolynomialTempering(delta=0.0, delta_prime=0.7, strength=0.3),
    PolynomialTempering(1.0, 4.0, 0.99),
    GeometricTempering(),
    GeometricTempering(1.0, 4.0, 0.99),
    GeometricTempering(strength=0.0),
]


@pytest.mark.parametrize("tempering", SHAPES)
def test_scale_is_one_in_the_window_and_least_at_the_walls(tempering):
    delta, wall = tempering.delta, tempering.delta_prime
    np.testing.assert_array_equal(tempering.beta(jnp.asarray([-delta, 0.0, 0.5 * delta, delta])), 1.0)
    np.testing.assert_allclose(
        tempering.beta(jnp.asarray([-9.0 * wall, -wall, wall, 2.0 * wall])), 1.0 - tempering.strength, rtol=1e-6
    )


@pytest.mark.parametrize("tempering", SHAPES)
@pytest.mark.usefixtures("x64")
def test_scale_is_the_cubic_of_the_paper_or_its_logarithm_is(tempering):
    alpha = np.linspace(-1.3, 1.3, 1001) * tempering.delta_prime
    z = (np.abs(alpha) - tempering.delta) / (tempering.delta_prime - tempering.delta)
    share = np.where(z <= 0, 0.0, np.where(z >= 1, 1.0, 3 * z**2 - 2 * z**3))
    is_geometric = isinstance(tempering, GeometricTempering)
    expected = (1.0 - tempering.strength) ** share if is_geometric else 1.0 - tempering.strength * share
    np.testing.assert_allclose(tempering.beta(jnp.asarray(alpha)), expected, rtol=1e-13)


@pytest.mark.parametrize("tempering", SHAPES)
@pytest.mark.usefixtures("x64")
def test_gradient_is_the_derivative(tempering):
    # Central differences are off by h^2 g'''/6 < 1e-8, of a piecewise cubic or its exponential; at the joints, where g'' jumps,
    # by h g''.
    h, alpha = 1e-5, jnp.linspace(-1.3, 1.3, 1000) * tempering.delta_prime
    numerical = (tempering.beta(alpha + h) - tempering.beta(alpha - h)) / (2 * h)
    joint = np.min(np.abs(np.abs(alpha)[:, None] - np.array([tempering.delta, tempering.delta_prime])), axis=1) < 2 * h
    assert np.sum(joint) < 10
    np.testing.assert_allclose(tempering.beta_gradient(alpha)[~joint], numerical[~joint], atol=1e-8)
    assert np.max(np.abs(numerical)) > (0.1 if tempering.strength > 0.0 else -1.0)


@pytest.mark.parametrize("tempering", [PolynomialTempering(), GeometricTempering()])
def test_gradient_is_odd_continuous_and_vanishes_outside_the_slope(tempering):
    assert tempering.beta_gradient(jnp.asarray(1.0)) < 0.0 < tempering.beta_gradient(jnp.asarray(-1.0))
    np.testing.assert_array_equal(tempering.beta_gradient(jnp.asarray([-2.0, -1.5, -0.4, 0.0, 0.2, 0.4, 1.5, 7.0])), 0.0)
    assert abs(tempering.beta_gradient(jnp.asarray(0.401))) < 0.01
    assert abs(tempering.beta_gradient(jnp.asarray(1.499))) < 0.01


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scale_keeps_shape_and_dtype(dtype):
    alpha = jnp.zeros((2, 3), dtype)
    assert PolynomialTempering().beta(alpha).dtype == PolynomialTempering().beta_gradient(alpha).dtype == dtype
    assert PolynomialTempering().beta(alpha).shape == PolynomialTempering().beta_gradient(alpha).shape == (2, 3)


def test_scale_stays_in_its_range_in_float32():
    beta = PolynomialTempering().beta(jnp.linspace(-1.6, 1.6, 100_001))
    assert np.max(beta) == 1.0
    assert np.min(beta) >= 0.15 - 1e-7


def billiard(alpha, r_alpha, step, limit):
    """Flies the length of the step and turns round at every wall it meets: no modulus, one wall at a time."""
    left, velocity = abs(step * r_alpha), float(np.sign(step * r_alpha))
    while left > 0.0:
        gap = limit - velocity * alpha
        if left <= gap:
            return alpha + velocity * left, abs(r_alpha) * velocity * np.sign(step)
        alpha, left, velocity = velocity * limit, left - gap, -velocity
    return alpha, r_alpha


@pytest.mark.usefixtures("x64")
def test_reflecting_wall_is_a_billiard_over_many_walls():
    wall, rng = ReflectingWall(1.5), np.random.default_rng(0)
    crossings = set()
    for scale in (0.1, 1.0, 10.0, 300.0):
        for _ in range(50):
            alpha, r_alpha = rng.uniform(-1.5, 1.5), rng.normal() * scale
            crossings.add(int((abs(alpha + 0.7 * r_alpha) + 1.5) // 3.0))
            moved, sign = wall.advance(jnp.asarray(alpha), jnp.asarray(r_alpha), 0.7)
            np.testing.assert_allclose((moved, sign * r_alpha), billiard(alpha, r_alpha, 0.7, 1.5), rtol=0, atol=1e-12 * scale)
    assert {0, 1, 2, 3} <= crossings
    assert max(crossings) > 50


def test_reflecting_wall_never_lets_alpha_out():
    wall, rng = ReflectingWall(1.5), np.random.default_rng(1)
    alpha = jnp.asarray(rng.uniform(-1.5, 1.5, 20_000), jnp.float32).at[:2].set(jnp.asarray([-1.5, 1.5]))
    r_alpha = jnp.asarray(rng.normal(size=20_000) * 10.0 ** rng.uniform(-6, 12, 20_000), jnp.float32)
    moved, turned = wall.advance(alpha, r_alpha, 0.02)
    assert np.max(np.abs(moved)) <= 1.5
    np.testing.assert_array_equal(np.abs(turned), 1.0)
    assert np.unique(turned).size == 2


def test_reflecting_wall_leaves_a_step_inside_as_it_is():
    alpha, r_alpha = jnp.linspace(-1.4, 1.4, 1001), jnp.float32(0.7)
    moved, turned = ReflectingWall(1.5).advance(alpha, r_alpha, 0.02)
    np.testing.assert_array_equal(moved, alpha + 0.02 * r_alpha)
    np.testing.assert_array_equal(turned, np.ones(1001))


def test_reflecting_wall_keeps_a_free_walk_uniform():
    # Free flight with fresh velocities between hard walls leaves the uniform law as it is. Steps of about half the box.
    wall = ReflectingWall(1.5)
    key = jax.random.key(0)
    alpha = jax.random.uniform(jax.random.fold_in(key, 0), (50_000,), minval=-1.5, maxval=1.5)
    for t in range(1, 31):
        alpha, _ = wall.advance(alpha, jax.random.normal(jax.random.fold_in(key, t), alpha.shape), 1.5)
    counts, _ = np.histogram(alpha, bins=15, range=(-1.5, 1.5))
    chi_square = np.sum((counts - 50_000 / 15) ** 2) / (50_000 / 15)
    assert chi_square < 36.1  # 0.999 quantile of chi-square with 14 degrees of freedom
    assert np.sum(counts) == 50_000


def test_force_wall_pulls_back_on_both_sides_and_is_idle_inside():
    wall = ForceWall(1.5, 10.0)
    np.testing.assert_array_equal(wall.force(jnp.asarray([-3.0, -1.5, 0.0, 1.5, 1.6])), [10.0, 0.0, 0.0, 0.0, -10.0])
    np.testing.assert_allclose(wall.advance(jnp.asarray(1.4), jnp.asarray(2.0), 0.5), (2.4, 1.0), rtol=1e-6)
    assert wall.images(1.4) == (1.4,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": -0.1}, r"delta must be a finite number in \[0, inf\), got -0.1"),
        ({"delta": float("nan")}, r"delta must be a finite number"),
        ({"delta": 1.5}, r"delta_prime must be a finite number in \(1.5, inf\), got 1.5"),
        ({"delta_prime": float("inf")}, r"delta_prime must be a finite number"),
        ({"strength": 1.0}, r"strength must be a finite number in \[0, 1\), got 1.0"),
        ({"strength": -0.1}, r"strength must be a finite number"),
        ({"strength": "0.85"}, None),
        ({"delta": True}, None),
    ],
)
def test_refuses_numbers_out_of_range(changes, message):
    expected = (ValueError, message) if message else (TypeError, r"must be a number, got")
    with pytest.raises(expected[0], match=expected[1]):
        PolynomialTempering(**changes)


def test_is_a_constant():
    """Frozen and hashable: it may be a static argument of `jit`."""
    first, second = PolynomialTempering(), PolynomialTempering(0.4, 1.5, 0.85)
    assert first == second
    assert hash(first) == hash(second)
    assert all(a != b for a, b in itertools.combinations(SHAPES, 2))


def test_every_number_may_be_traced():
    def beta(delta, delta_prime, strength):
        return PolynomialTempering(delta, delta_prime, strength).beta(jnp.float32(0.9))

    settings = [(0.1, 1.5, 0.5), (0.4, 1.0, 0.85), (1.0, 1.2, 0.95)]
    together = jax.jit(jax.vmap(beta))(*jnp.asarray(settings).T)
    np.testing.assert_allclose(together, [beta(*setting) for setting in settings], rtol=1e-6)


@pytest.mark.parametrize("kind", [PolynomialTempering, GeometricTempering])
def test_a_traced_strength_is_a_strength(kind):
    alpha = jnp.asarray([0.0, 0.9, 1.4])
    traced = jax.jit(lambda strength: (kind(strength=strength).beta(alpha), kind(strength=strength).beta_gradient(alpha)))
    beta, slope = traced(0.7)
    np.testing.assert_allclose(beta, kind(strength=0.7).beta(alpha), rtol=1e-6)
    np.testing.assert_allclose(slope, kind(strength=0.7).beta_gradient(alpha), rtol=1e-5)
