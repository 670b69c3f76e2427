"""The law of chains that obey Metropolis's rule: the joint density of alpha and the parameters, at steps of any length.

Truths are closed or by quadrature. Tolerances are `SIGMAS` standard errors between independent chains.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import _exact as exact
from ctld_optax._chains import DIVERGENCE, Target
from ctld_optax._dynamics.preconditioner import Diagonal
from ctld_optax._heated import Heated
from tests.laws.chains import SIGMAS

CHAINS, STEPS, SETTLING = 128, 16_000, 4_000
pytestmark = pytest.mark.usefixtures("x64")


def run(target, place, alphas, learning_rate):
    """Traces after settling, of chains in one dimension; half of them begin at a place, half at its mirror image."""
    coordinates = Heated(Diagonal(jnp.ones(1)), jnp.zeros((2, 1)), jnp.log(1.0 - jnp.asarray(alphas.tempering.strength)))
    pace = exact.Pace(jnp.asarray(learning_rate), 0.8)
    bias = jnp.zeros((2, 0)) if alphas.bias is None else alphas.bias.init(jnp.float64)

    def chain(position, key):
        walker = exact.begin(target, position, bias, key)
        walker, _ = exact.walk(target, coordinates, alphas, pace, walker, SETTLING, 0.0)
        return exact.walk(target, coordinates, alphas, pace, walker, STEPS, 0.0)[1]

    return jax.jit(jax.vmap(chain, axis_name="chains"))(
        jnp.tile(jnp.asarray([[place], [-place]]), (CHAINS // 2, 1)), jax.random.split(jax.random.key(0), CHAINS)
    )


def deviation(of_chains, truth):
    """Of the mean over chains, in standard errors."""
    of_chains = np.asarray(of_chains)
    return abs(of_chains.mean() - truth) / (of_chains.std(ddof=1) / math.sqrt(len(of_chains)))


def without_the_rule(proposed):
    """As chains walk that refuse only what has left the region where the step makes sense."""

    def lenient(self, *args):
        there, momentum, work = proposed(self, *args)
        return there, momentum, jnp.where(jnp.abs(work) < DIVERGENCE, 0.0, jnp.inf)

    return lenient


PLACE, NARROW, WIDE = 5.0, 0.1, 5.0  # of the modes, of the right one, of the prior


def two_widths(x):
    """Two modes of equal weight, one of unit width, the other 0.1 wide."""
    left = -0.5 * jnp.sum(jnp.square(x + PLACE))
    right = -0.5 * jnp.sum(jnp.square((x - PLACE) / NARROW)) - math.log(NARROW)
    return -jnp.logaddexp(left, right)


def prior(x):
    return 0.5 * jnp.sum(jnp.square(x / WIDE))


def weight_of_the_narrow():
    squares = [s**2 + WIDE**2 for s in (1.0, NARROW)]
    evidence = [math.exp(-0.5 * PLACE**2 / square) / math.sqrt(square) for square in squares]
    return evidence[1] / sum(evidence)


def weights(learning_rate):
    """Of the narrow mode, by each chain's steps in the window, and how often they are taken."""
    tempering = ctld_optax.GeometricTempering(strength=0.95)
    alphas = exact.Alphas(tempering, ctld_optax.AdaptiveBiasingForce(axis_name="chains"), 0.08)
    seen = run(Target(two_widths, prior), PLACE, alphas, learning_rate)
    cold = np.abs(np.asarray(seen.alpha)) <= tempering.delta
    narrow = np.asarray(seen.position).sum(-1) > 0.0
    share = np.where(cold, narrow, 0).sum(1) / cold.sum(1)
    taken = np.asarray(seen.acceptance)
    return share, taken[cold & narrow].mean(), taken[cold & ~narrow].mean()


def test_a_narrow_mode_has_its_weight_although_most_steps_are_too_long_for_it(monkeypatch):
    """The whole step is 3.3 times as long as the mode is wide: beyond 2 it is unstable there."""
    learning_rate, truth = 0.1, weight_of_the_narrow()
    share, in_narrow, in_wide = weights(learning_rate)
    print(
        f"{share.mean():.3f} ± {share.std() / math.sqrt(CHAINS):.3f}, truth {truth:.3f}; taken {in_narrow:.2f}, {in_wide:.2f}"
    )
    assert deviation(share, truth) < SIGMAS
    assert share.std() / math.sqrt(CHAINS) < 0.025  # or nothing would have been shown
    assert in_narrow < 0.8
    assert in_wide > 0.9
    # Negative control: the same steps, of which none is refused but the wildest.
    monkeypatch.setattr(exact._Parameters, "proposed", without_the_rule(exact._Parameters.proposed))
    lenient, *_ = weights(learning_rate)
    print(f"without the rule {lenient.mean():.3f} ± {lenient.std() / math.sqrt(CHAINS):.3f}")
    assert deviation(lenient, truth) > 2.0 * SIGMAS


def double_well(x):
    return jnp.sum(1.3 * jnp.square(jnp.square(x) - 1.0) + 0.25 * x) / 0.37


def test_alpha_and_the_parameters_have_their_joint_density_at_large_steps():
    """Without a bias, by quadrature: the share of the window, the mean of g, and the mean and square of x in the window."""
    tempering = ctld_optax.PolynomialTempering(strength=0.9)
    seen = run(Target(double_well, lambda _: jnp.zeros(())), 1.0, exact.Alphas(tempering, None, 0.5), 0.1)
    alpha, x = (np.linspace(-end, end, 3_001) for end in (tempering.delta_prime, 4.0))
    energy = np.asarray(jax.vmap(double_well)(jnp.asarray(x)[:, None]))
    beta = np.asarray(tempering.beta(jnp.asarray(alpha)))
    density = np.exp(-np.outer(beta, energy - energy.min()))
    density[[0, -1]] *= 0.5  # the ends of the trapezoid rule
    of_alpha = density.sum(1) * np.exp(-beta * energy.min())
    of_alpha /= of_alpha.sum()
    window = np.abs(alpha) <= tempering.delta
    cold = density[len(alpha) // 2] / density[len(alpha) // 2].sum()
    is_cold, place = np.abs(np.asarray(seen.alpha)) <= tempering.delta, np.asarray(seen.position)[..., 0]
    in_window = lambda value: np.where(is_cold, value, 0.0).sum(1) / is_cold.sum(1)
    figures = {
        "share of the window": (is_cold.mean(1), of_alpha[window].sum()),
        "g": (np.asarray(seen.beta).mean(1), of_alpha @ beta),
        "x": (in_window(place), cold @ x),
        "x^2": (in_window(np.square(place)), cold @ np.square(x)),
        "kinetic energy": (np.asarray(seen.kinetic_energy).mean(1), 0.5),
    }
    off = {name: deviation(*pair) for name, pair in figures.items()}
    print(off, float(np.mean(seen.acceptance)))
    assert max(off.values()) < SIGMAS
    assert np.mean(seen.acceptance) < 0.99  # steps that are too long are among them


def test_a_step_that_is_refused_turns_the_momentum_and_leaves_the_place():
    """A wall: beyond it the energy is no number, and a chain never gets there."""
    wall = lambda x: jnp.where(x[0] > 0.0, jnp.nan, 0.5 * jnp.sum(jnp.square(x)))
    alphas = exact.Alphas(ctld_optax.GeometricTempering(strength=0.5), None, 0.1)
    coordinates = Heated(Diagonal(jnp.ones(2)), jnp.zeros((2, 2)), jnp.log(jnp.asarray(0.5)))
    walker = exact.begin(Target(wall, lambda _: jnp.zeros(())), jnp.full(2, -0.3), jnp.zeros((2, 0)), jax.random.key(3))
    refused = 0
    step = jax.jit(
        lambda w: exact.walk(Target(wall, lambda _: jnp.zeros(())), coordinates, alphas, exact.Pace(0.5, 0.8), w, 1, 0.0)
    )
    for _ in range(300):
        after, seen = step(walker)
        if bool(seen.diverging[0]):
            refused += 1
            np.testing.assert_array_equal(after.momentum, -walker.momentum)
            np.testing.assert_array_equal(after.place.position, walker.place.position)
        assert float(after.place.position[0]) <= 0.0
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(after._replace(key=())))
        walker = after
    assert refused > 10
