"""The bias of alpha: on a quadratic in d dimensions alpha's marginal is known, p(alpha) ~ g^-d, the momenta included."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import AdaptiveBiasingForce, Metadynamics, diagnostics
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.walls import ReflectingWall
from tests.laws.chains import SIGMAS, broken, deviation, sampler, simulate

TEMPERATURE, MOMENTUM = 0.37, 0.83
TEMPERING = ctld_optax.PolynomialTempering()
LIMIT = TEMPERING.delta_prime
EDGES = np.linspace(-LIMIT, LIMIT, 16)


def quadratic(theta):
    curvature = jnp.linspace(0.7, 2.3, theta.size)
    return 0.5 * jnp.sum(curvature * theta**2)


def free_energy(alpha, dimension):
    """-log p(alpha)."""
    return dimension * np.log(np.asarray(TEMPERING.beta(jnp.asarray(alpha)), np.float64))


def share_of_bins(potential, dimension):
    """What a bias that stands still makes of alpha, bin by bin."""
    alpha = np.linspace(-LIMIT, LIMIT, 6001)
    density = np.exp(-free_energy(alpha, dimension) - potential(alpha))
    share = np.histogram(alpha, EDGES, weights=density)[0]
    return share / share.sum()


def run(transformation, dimension, *, steps, chains=32, thin=10, seed=31):
    return simulate(transformation, quadratic, jnp.zeros(dimension), steps=steps, chains=chains, thin=thin, seed=seed)


def in_bins(alpha):
    inside = (alpha[..., None] >= EDGES[:-1]) & (alpha[..., None] <= EDGES[1:])
    return inside.astype(np.float64)


def langevin(**changes):
    settings = {"learning_rate": 0.2, "temperature": TEMPERATURE, "momentum": MOMENTUM, "initial_momentum": "stationary"}
    return sampler(**(settings | {"coupling": "hamiltonian"} | changes))


def potentials(bias, states, alpha):
    """V_b of each chain at the places `alpha`, shape (chains, places)."""
    at = jax.vmap(jax.vmap(lambda state, a: bias.potential(state, a, LIMIT), (None, 0)), (0, None))
    return np.asarray(at(states.bias, jnp.asarray(alpha, jnp.float32)), np.float64)


def bias_error(bias, states, dimension, factor=1.0):
    """Root mean square of V_b + factor F over chains and places, each chain up to its constant, over the range of factor F."""
    alpha = np.linspace(-LIMIT, LIMIT, 301)
    error = potentials(bias, states, alpha) + factor * free_energy(alpha, dimension)
    error -= error.mean(axis=1, keepdims=True)
    return float(np.sqrt(np.mean(error**2)) / np.ptp(factor * free_energy(alpha, dimension)))


def test_the_bias_for_posteriors_flattens_alpha_and_learns_the_free_energy():
    draws, states = flattened(AdaptiveBiasingForce())
    flat, figures = is_flat(draws)
    assert flat, figures
    assert bias_error(AdaptiveBiasingForce(), states, 3) < 0.08


@pytest.mark.slow
def test_without_bias_alpha_follows_its_free_energy():
    draws, _ = run(langevin(bias=None), 2, steps=20_000, thin=20)
    truth = share_of_bins(lambda alpha: 0.0, 2)
    assert deviation(in_bins(draws.alpha), truth, slack=0.003) < SIGMAS
    assert deviation(in_bins(draws.alpha), np.full(15, 1 / 15), slack=0.003) > SIGMAS


@dataclasses.dataclass(frozen=True)
class Still(Metadynamics):
    """A bias of a given shape that never changes, through the package's own gradient."""

    def init(self, dtype=jnp.float32):
        return jnp.stack([self.shape(self.nodes(LIMIT, dtype)), jnp.zeros(self.num_bins + 1, dtype)])

    def shape(self, alpha):
        return 0.7 * jnp.cos(2.3 * alpha) + 0.4 * alpha

    def deposit(self, bias, visit, walls):
        return bias


@dataclasses.dataclass(frozen=True)
class StillFlipped(Still):
    def gradient(self, bias, alpha, limit):
        return -super().gradient(bias, alpha, limit)


@dataclasses.dataclass(frozen=True)
class StillPerBin(Still):
    def gradient(self, bias, alpha, limit):
        return super().gradient(bias, alpha, limit) * (2.0 * limit / self.num_bins)


@pytest.mark.parametrize(
    ("bias", "is_right"), [(Still(), True), (StillFlipped(), False), pytest.param(StillPerBin(), False, marks=pytest.mark.slow)]
)
def test_a_bias_that_stands_still_shifts_the_law_by_its_boltzmann_factor(bias, is_right):
    draws, _ = run(langevin(bias=bias), 2, steps=20_000, thin=20)
    truth = share_of_bins(lambda alpha: np.asarray(bias.shape(alpha)), 2)
    assert (deviation(in_bins(draws.alpha), truth, slack=0.003) < SIGMAS) == is_right


def flattened(bias, *, dimension=3, steps=30_000, **parts):
    draws, states = run(broken(langevin(bias=bias), **parts), dimension, steps=steps, thin=20)
    return draws.after(0.5), states


def is_flat(draws):
    """Uniform alpha, and the share of the window that follows from it."""
    share = in_bins(draws.alpha).mean(axis=(0, 1))
    window = np.mean(np.abs(draws.alpha) <= TEMPERING.delta)
    divergence = diagnostics.alpha_kl_from_uniform(draws.alpha)
    return divergence < 0.02 and abs(window - TEMPERING.delta / LIMIT) < 0.03, (divergence, window, share)


FLAT = {
    "adaptive force": AdaptiveBiasingForce(),
    "plain hills": Metadynamics(height=0.02, bias_factor=None),
    "well-tempered hills, factor 100": Metadynamics(height=0.02, bias_factor=100.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAT)
def test_flattens_alpha_and_learns_the_free_energy(name):
    bias = FLAT[name]
    draws, states = flattened(bias)
    flat, figures = is_flat(draws)
    assert flat, figures
    factor = 1.0 if getattr(bias, "bias_factor", None) is None else 1.0 - 1.0 / bias.bias_factor
    assert bias_error(bias, states, 3, factor) < 0.08


@dataclasses.dataclass(frozen=True)
class FlippedHills(Metadynamics):
    def gradient(self, bias, alpha, limit):
        return -super().gradient(bias, alpha, limit)


@dataclasses.dataclass(frozen=True)
class HillsElsewhere(Metadynamics):
    def deposit(self, bias, visit, walls):
        return super().deposit(bias, visit._replace(alpha=0.5 * visit.alpha), walls)


@dataclasses.dataclass(frozen=True)
class FlippedForce(AdaptiveBiasingForce):
    def gradient(self, bias, alpha, limit):
        return -super().gradient(bias, alpha, limit)


@dataclasses.dataclass(frozen=True)
class EvenForce(AdaptiveBiasingForce):
    """The force of alpha taken for that of -alpha too, without its change of sign."""

    def deposit(self, bias, visit, walls):
        return super().deposit(bias, visit._replace(alpha=jnp.abs(visit.alpha)), walls)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bias",
    [
        None,
        FlippedHills(height=0.02, bias_factor=None),
        HillsElsewhere(height=0.02, bias_factor=None),
        FlippedForce(),
        EvenForce(),
    ],
    ids=["none", "hills flipped", "hills elsewhere", "force flipped", "force even"],
)
def test_wrong_biases_do_not_flatten(bias):
    draws, _ = flattened(bias, steps=10_000)
    assert not is_flat(draws)[0]


@pytest.mark.slow
def test_well_tempered_hills_converge_to_their_share_of_the_free_energy():
    """V_b -> -(1 - 1/gamma) F, and alpha to p^(1/gamma)."""
    factor, dimension = 4.0, 3
    bias = Metadynamics(height=0.02, bias_factor=factor)
    draws, states = flattened(bias, dimension=dimension, steps=60_000)
    assert bias_error(bias, states, dimension, 1.0 - 1.0 / factor) < 0.06
    assert bias_error(bias, states, dimension, 1.0) > 0.06  # the plain law is another
    truth = share_of_bins(lambda alpha: -(1.0 - 1.0 / factor) * free_energy(alpha, dimension), dimension)
    assert np.max(np.abs(in_bins(draws.alpha).mean(axis=(0, 1)) - truth)) < 0.01


@dataclasses.dataclass(frozen=True)
class WallWithoutImages(ReflectingWall):
    def images(self, alpha):
        return (alpha,)


def drop_at_the_walls(states, bias, dimension):
    """How much lower V_b + F, which should be flat, is at the walls than three widths further in."""
    last = np.array([LIMIT - 3 * bias.width, LIMIT])
    level = [potentials(bias, states, side * last) + free_energy(last, dimension) for side in (-1.0, 1.0)]
    return float(np.mean([rows[:, 0] - rows[:, 1] for rows in level]))


@pytest.mark.slow
def test_no_artefact_at_the_walls():
    """Hills that are not mirrored in the walls are cut off there: V_b sinks, and alpha is drawn into the wall."""
    bias = Metadynamics(height=0.02, bias_factor=None)
    draws, states = flattened(bias)
    share = in_bins(draws.alpha).mean(axis=(0, 1))
    assert abs(drop_at_the_walls(states, bias, 3)) < 0.3
    assert np.max(np.abs(share[[0, -1]] - 1 / 15)) < np.max(np.abs(share[1:-1] - 1 / 15)) + 0.004
    _, states = flattened(bias, walls=WallWithoutImages(LIMIT))
    assert drop_at_the_walls(states, bias, 3) > 0.3


def free_alpha(**changes):
    """Draws of an alpha that no energy pushes: at strength 0 the temperature is constant."""
    still = ctld_optax.PolynomialTempering(strength=0.0)
    transformation = langevin(tempering=still, bias=None, alpha_step_size=0.11, **changes)
    return run(transformation, 1, steps=20_000, thin=4, seed=33)[0]


@pytest.mark.slow
def test_reflection_keeps_the_law_of_a_free_alpha():
    """Uniform between the walls, r_alpha ~ N(0, 1), and velocities that are mirrored: no drift along a wall."""
    draws = free_alpha(alpha_momentum=0.97)
    assert np.max(np.abs(draws.alpha)) <= LIMIT
    assert deviation(in_bins(draws.alpha), np.full(15, 1 / 15), slack=0.001) < SIGMAS
    assert deviation(draws.r_alpha**2, 1.0, slack=0.002) < SIGMAS
    at_wall = (np.abs(draws.alpha) > 0.95 * LIMIT).astype(np.float64)
    assert deviation(draws.r_alpha * np.sign(draws.alpha), 0.0, weights=at_wall, slack=0.1) < SIGMAS


@pytest.mark.slow
def test_the_force_wall_holds_alpha():
    """Eq. 11: beyond the wall a constant force towards zero, on both sides alike."""
    draws = free_alpha(confinement="force", alpha_momentum=0.5)
    assert 0.0 < np.mean(np.abs(draws.alpha) > LIMIT) < 0.1
    assert np.max(np.abs(draws.alpha)) < LIMIT + 1.0
    assert abs(np.mean(draws.alpha > LIMIT) - np.mean(draws.alpha < -LIMIT)) < 0.01


def test_the_width_of_a_hill():
    """One hill of height w and width sigma, and its images, at the nodes."""
    bias = Metadynamics(height=0.3, width=0.07, num_bins=300, bias_factor=None)
    alpha = jnp.float32(1.43)
    grown = bias.deposit(bias.init(), Visit(alpha), ReflectingWall(LIMIT)).sum(axis=0)
    nodes = np.asarray(bias.nodes(LIMIT), np.float64)
    truth = sum(
        0.3 * np.exp(-((nodes - centre) ** 2) / (2 * 0.07**2)) for centre in (1.43, 2 * LIMIT - 1.43, -2 * LIMIT - 1.43)
    )
    np.testing.assert_allclose(grown, truth, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [AdaptiveBiasingForce(), Metadynamics(height=0.02, bias_factor=100.0)], ids=["force", "hills"])
def test_twenty_dimensions(bias):
    """Error of V_b below 3 % of its range, and alpha uniform to a divergence below 0.02."""
    draws, states = run(langevin(bias=bias), 20, steps=300_000, chains=8, thin=20)
    factor = 1.0 if isinstance(bias, AdaptiveBiasingForce) else 1.0 - 1.0 / bias.bias_factor
    error = bias_error(bias, states, 20, factor)
    divergence = diagnostics.alpha_kl_from_uniform(draws.after(0.5).alpha)
    print(f"{bias}: error {error:.4f} of the range; divergence {divergence:.4f}")
    assert error < 0.03
    assert divergence < 0.02
    assert bias_error(bias, states, 10, factor) > 0.03
