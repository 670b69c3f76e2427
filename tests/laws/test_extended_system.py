"""The extended system, exact couplings: the law of (theta, r, alpha, r_alpha) against quadrature of exp(-g H - V_b).

Integrated over r, the density of (theta, alpha) is exp(-g U) g^{-1/2} in one dimension where the momenta are heated, and
exp(-g U) where they are not. At the learning rate taken, l U'' is
0.4 in the wells and 0.8 at their outer walls, a tenth and a fifth of the limit of stability; what is left of the step's
error, `SLACK` allows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import posterior
from ctld_optax._arrays import noise as sources
from ctld_optax._dynamics import integrators
from ctld_optax._dynamics.alpha import AlphaHalf
from ctld_optax._dynamics.coupling import Hamiltonian, Potential
from ctld_optax._dynamics.langevin import Langevin
from tests.laws.chains import SIGMAS, broken, deviation, effective_size, estimate, sampler, simulate

TEMPERATURE, MOMENTUM, ALPHA_MOMENTUM = 0.37, 0.83, 0.91
SLACK = 0.015
EDGES = np.array([0.0, 0.4, 0.7, 1.0, 1.25, 1.5])  # five places of |alpha|, the first is the window
TEMPERING = ctld_optax.PolynomialTempering()


def double_well(theta):
    return 1.3 * (theta**2 - 1.0) ** 2


def skewed(theta):
    return 1.3 * (theta**2 - 1.0) ** 2 + 0.25 * theta


COUPLINGS = ["hamiltonian", "potential"]
BOTH = [pytest.param(double_well, marks=pytest.mark.slow, id="double well"), pytest.param(skewed, id="skewed")]


def quadrature(loss, observable=lambda theta: theta, *, heats_momenta=True):
    """Probability of each place of |alpha|, and the mean of an observable there, from 2-d quadrature."""
    alpha = np.linspace(0.0, 1.5, 3001)
    alpha = 0.5 * (alpha[1:] + alpha[:-1])
    theta = np.linspace(-4.0, 4.0, 4001)
    beta = np.asarray(TEMPERING.beta(jnp.asarray(alpha)), np.float64)
    boltzmann = np.exp(-beta[:, None] * loss(theta) / TEMPERATURE)
    partition = boltzmann.sum(axis=1)
    density = partition * (beta**-0.5 if heats_momenta else 1.0)
    place = np.digitize(alpha, EDGES) - 1
    share = np.bincount(place, density)
    mean = np.bincount(place, density * (boltzmann @ observable(theta)) / partition) / share
    return share / share.sum(), mean


def test_the_force_on_alpha_is_the_derivative_of_g():
    """Between and away from the joints of g, with a ramp that is not 1 wide."""
    tempering = ctld_optax.PolynomialTempering(delta=0.3, delta_prime=0.9, strength=0.7)
    alpha = jnp.asarray([-0.85, -0.6, -0.35, 0.1, 0.4, 0.55, 0.8, 1.2])
    np.testing.assert_allclose(tempering.beta_gradient(alpha), jax.vmap(jax.grad(tempering.beta))(alpha), rtol=1e-4, atol=1e-6)


def posterior_mean(loss):
    theta = np.linspace(-4.0, 4.0, 4001)
    weight = np.exp(-loss(theta) / TEMPERATURE)
    return float(weight @ theta / weight.sum())


def extended(**changes):
    """The settings of this file."""
    settings = {"learning_rate": 0.04, "temperature": TEMPERATURE, "momentum": MOMENTUM, "alpha_momentum": ALPHA_MOMENTUM}
    return sampler(**(settings | {"coupling": "hamiltonian"} | changes))


def places(alpha):
    """One-hot of the place of |alpha|."""
    return np.eye(len(EDGES) - 1)[np.clip(np.digitize(np.abs(alpha), EDGES) - 1, 0, len(EDGES) - 2)]


def worst_deviations(transformation, loss, *, steps=16_000, chains=64, seed=21, flat=False):
    """How far a run is from the joint law, in standard errors, item by item.

    With `flat` the bias has made alpha uniform and its marginal is not compared.
    """
    draws, _ = simulate(transformation, loss, jnp.float32(-1.0), steps=steps, chains=chains, thin=16, seed=seed)
    draws = draws.after(0.1)
    where = places(draws.alpha)
    heats_momenta = transformation.kernel.alpha.coupling.heats_momenta
    share, mean = quadrature(loss, heats_momenta=heats_momenta)
    square = quadrature(loss, lambda theta: theta**2, heats_momenta=heats_momenta)[1]
    beta = np.asarray(TEMPERING.beta(jnp.asarray(draws.alpha)))
    kinetic = 2.0 * draws.kinetic_energy * beta / TEMPERATURE
    found = {} if flat else {"alpha": deviation(where, share, slack=SLACK)}
    for index in range(len(share)):
        here = where[..., index]
        found[f"theta at place {index}"] = deviation(draws.theta, mean[index], weights=here, slack=SLACK)
        found[f"theta^2 at place {index}"] = deviation(draws.theta**2, square[index], weights=here, slack=SLACK)
        found[f"g r^2 at place {index}"] = deviation(kinetic, 1.0, weights=here, slack=SLACK)
    found["r_alpha^2"] = deviation(draws.r_alpha**2, 1.0, slack=SLACK)
    return found


@pytest.mark.parametrize(("coupling", "alpha_step_size"), [("hamiltonian", 0.05), ("potential", 0.05), ("potential", 0.1)])
@pytest.mark.parametrize("loss", BOTH)
def test_joint_law_without_bias(loss, coupling, alpha_step_size):
    found = worst_deviations(extended(bias=None, coupling=coupling, alpha_step_size=alpha_step_size), loss)
    assert max(found.values()) < SIGMAS, found


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("loss", BOTH)
def test_law_at_each_alpha_with_the_bias_for_posteriors(loss, coupling):
    found = worst_deviations(extended(coupling=coupling), loss, flat=True)
    assert max(found.values()) < SIGMAS, found


class NoKineticTerm(Langevin):
    def thermalize(self, state, value, grads):
        kinetic_energy = super().thermalize(state, value, grads).kinetic_energy
        new = super().thermalize(state, value - kinetic_energy, grads)
        return new._replace(kinetic_energy=kinetic_energy)


class AlphaNoiseWithoutThe2(AlphaHalf):
    """Both shares of it."""

    def step(self, state, energy, temperature, key, **options):
        moved = super().step(state, energy, temperature, key, **options)
        return moved._replace(r_alpha=moved.r_alpha - (1.0 - 0.5**0.5) * moved.rest, rest=0.5**0.5 * moved.rest)


class AlphaRestForgotten(AlphaHalf):
    def step(self, state, energy, temperature, key, **options):
        return super().step(state._replace(rest=jnp.zeros_like(state.rest)), energy, temperature, key, **options)


class MeanEnergy(Langevin):
    """The running mean of the energy in place of the energy."""

    def thermalize(self, state, value, grads):
        return super().thermalize(state, state.energy_mean - state.kinetic_energy, grads)


class ConstantTemperature(Langevin):
    def thermalize(self, state, value, grads):
        return super().thermalize(state._replace(beta=jnp.ones_like(state.beta)), value, grads)


class RootOfBeta(Langevin):
    def thermalize(self, state, value, grads):
        return super().thermalize(state._replace(beta=jnp.sqrt(state.beta)), value, grads)


class FrozenPosition(Langevin):
    def displacement(self, count, momentum, like, *rest):
        return jnp.zeros_like(like)


@dataclasses.dataclass(frozen=True)
class FlippedCoupling(Hamiltonian):
    def __call__(self, energy, temperature, statistics):
        return -super().__call__(energy, temperature, statistics)


@dataclasses.dataclass(frozen=True)
class EnergyInUnitsOfValue(Hamiltonian):
    def __call__(self, energy, temperature, statistics):
        return energy


WRONG = {
    "force on alpha flipped": {"coupling": FlippedCoupling()},
    "energy not divided by the temperature": {"coupling": EnergyInUnitsOfValue()},
    "kinetic term missing": {"kernel_class": NoKineticTerm},
    "noise of theta without the 2": {"source": lambda word: sources.gaussian(word) / np.float32(np.sqrt(2.0))},
    "noise of r_alpha without the 2": {"alpha_class": AlphaNoiseWithoutThe2},
    "the rest of r_alpha's noise forgotten": {"alpha_class": AlphaRestForgotten},
    "the mean energy for the energy": {"kernel_class": MeanEnergy},
    "temperature for its root": {"temperature": lambda count: TEMPERATURE**2},
    "noise blind to alpha": {"kernel_class": ConstantTemperature},
    "root of g in the noise": {"kernel_class": RootOfBeta},
    "frozen position": {"kernel_class": FrozenPosition},
}


class MomentaLeftAlone(Langevin):
    """Not scaled where beta changes."""

    def thermal_factor(self, state):
        rates = self.hyperparameters(state)
        return integrators.thermal_factor(state.learning_rate, *rates)


class DriftOfOneTemperature(Langevin):
    """Both of its halves are made before alpha moves."""

    def drift(self, beta, next_beta):
        return 1.0


class AStepLate(AlphaHalf):
    """The temperature of where alpha was, not of where it goes."""

    def step(self, state, energy, temperature, key, **options):
        moved = super().step(state, energy, temperature, key, **options)
        return moved._replace(beta=self.tempering.beta(moved.alpha))


@dataclasses.dataclass(frozen=True)
class WithKineticEnergy(Potential):
    def energy(self, value, kinetic_energy):
        return value + kinetic_energy


WRONG_POTENTIAL = {
    "momenta left alone": {"kernel_class": MomentaLeftAlone},
    "kinetic energy coupled": {"coupling": WithKineticEnergy()},
}


FAST = ("force on alpha flipped", "kinetic term missing", "noise of theta without the 2", "momenta left alone")


def variants(wrong):
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in wrong]


@pytest.mark.parametrize("name", variants(WRONG))
def test_wrong_variants_fail_the_joint_law(name):
    found = worst_deviations(broken(extended(bias=None), **WRONG[name]), skewed, steps=8_000)
    assert max(found.values()) > SIGMAS, found


@pytest.mark.parametrize("name", variants(WRONG_POTENTIAL))
def test_wrong_variants_of_the_potential_fail_the_joint_law(name):
    # Where alpha is fast: it is its moves that the momenta must not feel.
    fast = extended(bias=None, coupling="potential", alpha_step_size=0.1)
    found = worst_deviations(broken(fast, **WRONG_POTENTIAL[name]), skewed)
    assert max(found.values()) > SIGMAS, found


# The conditional law: the window samples exp(-U), and every step does so when it is weighted.
@pytest.fixture(scope="module", params=COUPLINGS)
def run(request):
    transformation = extended(coupling=request.param)
    return *simulate(transformation, skewed, jnp.float32(-1.0), steps=24_000, chains=64, thin=12, seed=22), request.param


def weights_of(run, kind):
    draws, states, coupling = run
    options = {"bias": ctld_optax.AdaptiveBiasingForce(), "coupling": coupling, "tempering": TEMPERING}
    if kind == "window":
        return np.asarray(posterior.in_window(draws.alpha), np.float64)

    def of_chain(value, kinetic_energy, alpha, bias_state):
        if kind == "every step":
            return posterior.log_weights(value, TEMPERATURE, 1, momentum=MOMENTUM, **options, bias_state=bias_state)
        return posterior.log_weights_of_step(value, kinetic_energy, alpha, TEMPERATURE, **options, bias_state=bias_state)

    log = jax.jit(jax.vmap(of_chain))(
        *(jnp.asarray(rows, jnp.float32) for rows in (draws.value, draws.kinetic_energy, draws.alpha)), states.bias
    )
    # A common factor for each chain only: the weights of one chain are relative to its own bias.
    return np.exp(np.asarray(log, np.float64) - np.max(log, axis=1, keepdims=True))


@pytest.mark.parametrize("kind", ["window", "every step", "every step, by H"])
def test_weighted_mean_is_that_of_quadrature(run, kind):
    weights = weights_of(run, kind)
    assert deviation(run[0].theta, posterior_mean(skewed), weights=weights, slack=SLACK) < SIGMAS


def test_histogram_in_the_window_is_that_of_quadrature(run):
    edges = np.array([-1.8, -1.2, -1.0, -0.7, 0.0, 0.8, 1.0, 1.8])
    theta = np.linspace(-4.0, 4.0, 8001)
    weight = np.exp(-skewed(theta) / TEMPERATURE)
    truth = np.histogram(theta, edges, weights=weight)[0] / weight.sum()
    inside = (run[0].theta[..., None] >= edges[:-1]) & (run[0].theta[..., None] < edges[1:])
    assert deviation(inside, truth, weights=weights_of(run, "window"), slack=SLACK) < SIGMAS


def test_weights_make_more_of_the_same_run(run):
    sizes = {kind: effective_size(run[0].theta, weights_of(run, kind)) for kind in ("window", "every step, by H", "every step")}
    assert sizes["every step"] > sizes["window"]
    assert sizes["every step, by H"] > sizes["window"]


def test_without_weights_or_window_the_law_is_another(run):
    assert deviation(run[0].theta, posterior_mean(skewed), slack=SLACK) > SIGMAS


def test_the_weight_of_the_paper_with_its_signs_flipped_fails(run):
    weights = weights_of(run, "every step, by H")
    # The root of it: of the whole a few steps would have all the weight, and the error would hide it.
    flipped = np.maximum(weights, 1e-6) ** -0.5
    assert deviation(run[0].theta, posterior_mean(skewed), weights=flipped, slack=SLACK) > SIGMAS


@pytest.mark.slow
def test_recommended_settings_on_the_skewed_double_well():
    """60,000 steps x 64 chains: the window mean, and the mean at five values of alpha, within 3 standard errors + 0.005."""
    transformation = sampler(learning_rate=0.04, momentum=0.9, temperature=TEMPERATURE, tempering=TEMPERING)
    draws, _ = simulate(transformation, skewed, jnp.float32(-1.0), steps=60_000, chains=64, thin=5, seed=23)
    where = places(draws.alpha)
    _, mean = quadrature(skewed, heats_momenta=transformation.kernel.alpha.coupling.heats_momenta)
    assert abs(mean[0] - posterior_mean(skewed)) < 1e-3
    for index, truth in enumerate(mean):
        found, error = estimate(draws.theta, where[..., index])
        print(f"|alpha| in {EDGES[index : index + 2]}: {found:.4f} +- {error:.4f}, quadrature {truth:.4f}")
        assert abs(found - truth) < 3.0 * error + 0.005
