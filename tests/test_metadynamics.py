"""The bias grid, Eq. 12-14, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctld_optax import Metadynamics
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.walls import ForceWall, ReflectingWall

LIMIT = 1.5
WALLS = {True: ReflectingWall(LIMIT), False: ForceWall(LIMIT, 1.0)}  # with mirrored hills and without


def reference(metadynamics, alphas, *, mirrored):
    """V_b on the nodes after hills at `alphas`, in float64 and from the definition."""
    nodes = np.linspace(-LIMIT, LIMIT, metadynamics.num_bins + 1)
    bias = np.zeros_like(nodes)
    for alpha in alphas:
        height = metadynamics.height
        if metadynamics.bias_factor is not None:
            height *= np.exp(-np.interp(alpha, nodes, bias) / (metadynamics.bias_factor - 1.0))
        for centre in (alpha, 2 * LIMIT - alpha, -2 * LIMIT - alpha) if mirrored else (alpha,):
            bias += height * np.exp(-((nodes - centre) ** 2) / (2 * metadynamics.width**2))
    return nodes, bias


def fill(metadynamics, alphas, *, mirrored, dtype):
    def deposit(bias, alpha):
        return metadynamics.deposit(bias, Visit(alpha), WALLS[mirrored]), None

    return jax.jit(lambda a: jax.lax.scan(deposit, metadynamics.init(dtype), a)[0])(jnp.asarray(alphas, dtype))


BIASES = {
    "plain": Metadynamics(height=0.3, width=0.05, num_bins=300, bias_factor=None),
    "well-tempered": Metadynamics(height=0.5, width=0.1, num_bins=200, bias_factor=3.0),
    "default": Metadynamics(),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", BIASES)
def test_deposit_potential_and_gradient_equal_numpy(name, mirrored):
    metadynamics = BIASES[name]
    rng = np.random.default_rng(0)
    alphas = np.concatenate([rng.uniform(-1.5, 1.5, 300), [-1.5, 1.5, 0.0], rng.normal(1.2, 0.05, 100)])
    nodes, expected = reference(metadynamics, alphas, mirrored=mirrored)
    bias = fill(metadynamics, alphas, mirrored=mirrored, dtype=jnp.float64)
    np.testing.assert_allclose(bias.sum(axis=0), expected, rtol=1e-11, atol=1e-14)

    where = rng.uniform(-1.7, 1.7, 500)
    potential = jax.vmap(lambda a: metadynamics.potential(bias, a, LIMIT))(jnp.asarray(where))
    np.testing.assert_allclose(potential, np.interp(where, nodes, expected), rtol=1e-10)
    slopes = np.append(np.diff(expected) / np.diff(nodes), 0.0)
    k = np.clip(np.searchsorted(nodes, where, side="right") - 1, 0, metadynamics.num_bins - 1)
    gradient = jax.vmap(lambda a: metadynamics.gradient(bias, a, LIMIT))(jnp.asarray(where))
    np.testing.assert_allclose(gradient, np.where(np.abs(where) <= LIMIT, slopes[k], 0.0), rtol=1e-9, atol=1e-9)
    assert np.sum(np.abs(where) > LIMIT) > 20


@pytest.mark.usefixtures("x64")
def test_gradient_is_the_derivative_of_the_potential():
    metadynamics = Metadynamics()
    bias = fill(metadynamics, np.random.default_rng(0).uniform(-1.5, 1.5, 200), mirrored=True, dtype=jnp.float64)
    middles = metadynamics.nodes(LIMIT, jnp.float64)[:-1] + LIMIT / metadynamics.num_bins
    derivative = jax.vmap(jax.grad(lambda a: metadynamics.potential(bias, a, LIMIT)))(middles)
    np.testing.assert_allclose(
        jax.vmap(lambda a: metadynamics.gradient(bias, a, LIMIT))(middles), derivative, rtol=1e-10, atol=1e-12
    )


def test_force_drives_away_from_a_hill():
    metadynamics = Metadynamics(height=1.0)
    bias = metadynamics.deposit(metadynamics.init(), Visit(jnp.float32(0.5)), WALLS[True])
    assert metadynamics.gradient(bias, jnp.float32(0.54), LIMIT) < -1.0  # the force is minus the gradient: outwards
    assert metadynamics.gradient(bias, jnp.float32(0.46), LIMIT) > 1.0
    np.testing.assert_allclose(metadynamics.potential(bias, jnp.float32(0.5), LIMIT), 1.0, atol=0.01)


@pytest.mark.parametrize(("mirrored", "flat"), [(True, True), (False, False)])
def test_mirrored_hills_are_flat_at_the_walls(mirrored, flat):
    """With a uniform rain of hills the mirrored bias is level up to the edge; cut off, it falls to half there."""
    metadynamics = Metadynamics(height=1.0, width=0.1, num_bins=150, bias_factor=None)
    bias = fill(metadynamics, np.linspace(-1.5, 1.5, 601), mirrored=mirrored, dtype=jnp.float32).sum(axis=0)
    slope_at_the_wall = float(jnp.abs(bias[0] - bias[1]) / bias[75])
    assert (slope_at_the_wall < 0.01) == flat
    # The hills that stand on the wall itself count twice, once for their image: 2 of 601 places.
    assert (abs(float(bias[0] / bias[75]) - 1.0) < 0.02) == flat


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_one_mirrored_hill_has_no_slope_across_the_wall(side):
    metadynamics = Metadynamics(height=1.0, width=0.2, num_bins=3000, bias_factor=None)
    bias = metadynamics.deposit(metadynamics.init(jnp.float64), Visit(jnp.asarray(1.4 * side)), WALLS[True]).sum(axis=0)
    edge = bias if side < 0 else bias[::-1]
    # A function even about the wall leaves it like x^2: the first difference is O(spacing), where a cut hill's is O(1).
    assert abs(edge[1] - edge[0]) * 1000 < 0.02
    cut = metadynamics.deposit(metadynamics.init(jnp.float64), Visit(jnp.asarray(1.4 * side)), WALLS[False]).sum(axis=0)
    cut = cut if side < 0 else cut[::-1]
    assert abs(cut[1] - cut[0]) * 1000 > 1.0


@pytest.mark.usefixtures("x64")
def test_well_tempered_hills_shrink_as_they_should():
    """At one place: V' = w exp(-V/(gamma-1)), hence V(n) = (gamma-1) log(1 + w n/(gamma-1)) for small hills."""
    metadynamics = Metadynamics(height=0.001, width=0.1, num_bins=300, bias_factor=4.0)
    bias = fill(metadynamics, np.zeros(20_000), mirrored=False, dtype=jnp.float64)
    np.testing.assert_allclose(
        metadynamics.potential(bias, jnp.asarray(0.0), LIMIT), 3.0 * np.log(1.0 + 0.001 * 20_000 / 3.0), rtol=1e-3
    )


def test_height_is_set_by_the_bias_where_the_hill_falls_and_before_it():
    metadynamics = Metadynamics(height=2.0, width=0.04, num_bins=375, bias_factor=3.0)
    here, there = jnp.float32(0.0), jnp.float32(1.0)
    once = metadynamics.deposit(metadynamics.init(), Visit(here), WALLS[True])
    twice = metadynamics.deposit(once, Visit(here), WALLS[True])
    elsewhere = metadynamics.deposit(once, Visit(there), WALLS[True])
    first = float(metadynamics.potential(once, here, LIMIT))
    assert first == pytest.approx(2.0, rel=0.01)
    assert float(metadynamics.potential(twice, here, LIMIT)) - first == pytest.approx(first * np.exp(-first / 2.0), rel=1e-3)
    assert float(metadynamics.potential(elsewhere, there, LIMIT)) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("background", [0.0, 30.0])
def test_millions_of_small_hills_are_not_lost_in_float32(background):
    """3 * 10^6 hills of 1e-7 on a bias of 30: each is below half a unit in the last place, 9.5e-7, of a plain float32 sum."""
    metadynamics = Metadynamics(height=1e-7, width=0.3, num_bins=20, bias_factor=None)
    num_hills = 3_000_000
    nodes = np.linspace(-LIMIT, LIMIT, 21)
    one = 1e-7 * np.exp(-0.5 * ((nodes - 0.3) / 0.3) ** 2)
    start = metadynamics.init() + jnp.asarray([[background], [0.0]], jnp.float32)

    @jax.jit
    def rain(bias):
        def deposit(_, carry):
            bias, plain = carry
            bias = metadynamics.deposit(bias, Visit(jnp.float32(0.3)), WALLS[False])
            return bias, plain + metadynamics.deposit(metadynamics.init(), Visit(jnp.float32(0.3)), WALLS[False])[0]

        return jax.lax.fori_loop(0, num_hills, deposit, (bias, bias[0]))

    compensated, plain = rain(start)
    expected = background + num_hills * one
    total = np.asarray(compensated, np.float64).sum(axis=0)
    # The hill itself is a float32, good to 1e-6 of its height; a pair of floats has 48 bits for the sum.
    atol = num_hills * background * 2.0**-48 + 1e-10
    np.testing.assert_allclose(total - background, expected - background, rtol=3e-6, atol=atol)
    # Negative control: the plain sum of the same hills has lost them, or gained rounding, by far more.
    assert np.max(np.abs(np.asarray(plain, np.float64) - expected)) > 1e-3


def test_rows_do_not_overlap():
    """The second row holds less than half a unit in the last place of the first, so their sum is the best pair there is."""
    metadynamics = Metadynamics(height=0.1)
    bias = fill(metadynamics, np.random.default_rng(0).uniform(-1.5, 1.5, 2000), mirrored=True, dtype=jnp.float32)
    high, low = np.asarray(bias)
    assert np.all(np.abs(low) <= 0.5 * np.spacing(high))
    assert np.any(low != 0.0)


def test_bias_outside_the_walls_is_constant():
    metadynamics = Metadynamics()
    bias = fill(metadynamics, [1.4, 1.5, -1.45], mirrored=False, dtype=jnp.float32)
    for outside, node in ((1e6, -1), (1.501, -1), (-1.501, 0), (-1e6, 0)):
        assert metadynamics.gradient(bias, jnp.float32(outside), LIMIT) == 0.0
        assert metadynamics.potential(bias, jnp.float32(outside), LIMIT) == bias[:, node].sum()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_shapes_and_dtypes(dtype, x64):
    metadynamics = Metadynamics(num_bins=10)
    bias = metadynamics.init(dtype)
    assert bias.shape == (2, 11)
    bias = metadynamics.deposit(bias, Visit(jnp.asarray(0.1, dtype)), WALLS[True])
    potential = metadynamics.potential(bias, jnp.asarray(0.1, dtype), LIMIT)
    gradient = metadynamics.gradient(bias, jnp.asarray(0.1, dtype), LIMIT)
    assert bias.dtype == potential.dtype == gradient.dtype == dtype
    assert potential.shape == gradient.shape == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"height": 0.0}, ValueError, r"height must be a finite number in \(0, inf\), got 0.0"),
        ({"width": -1.0}, ValueError, r"width must be a finite number"),
        ({"width": float("nan")}, ValueError, r"width must be a finite number"),
        ({"num_bins": 1}, ValueError, r"num_bins must be >= 2, got 1"),
        ({"num_bins": 10.0}, TypeError, r"num_bins must be a Python integer"),
        ({"num_bins": True}, TypeError, r"num_bins must be a Python integer"),
        ({"bias_factor": 1.0}, ValueError, r"bias_factor must be .* Write bias_factor=None for hills of constant height"),
        ({"bias_factor": "5"}, TypeError, r"bias_factor must be a number"),
    ],
)
def test_refuses_numbers_out_of_range(changes, error, message):
    with pytest.raises(error, match=message):
        Metadynamics(**changes)
