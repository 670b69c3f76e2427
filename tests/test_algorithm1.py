"""`algorithm1` against a transcription of the paper's Algorithm 1 in float64 NumPy, fed the same noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._arrays import noise as sources
from ctld_optax._handover import hand_over_momentum
from tests import versions
from tests.paper_algorithm1 import Algorithm1

LEARNING_RATE, TEMPERATURE, MOMENTUM = 0.02, 0.4, 0.9
SHAPES = {"a": (2, 2), "b": (), "c": (1,)}  # six parameters in three leaves
# Hills of the paper's shape (w = 20, sigma = 0.04) make alpha chaotic: one rounding error grows to the size of alpha within 200
# steps. Low broad ones let two implementations be compared over a free run; the paper's are compared step by step.
GENTLE = {"height": 0.1, "width": 0.1}
PAPER = {"height": 20.0, "width": 0.04}


def potential(theta):
    """A skewed double well in each coordinate, in units of `value`; for NumPy and for JAX."""
    return (1.3 * (theta**2 - 1.0) ** 2 + 0.25 * theta).sum()


def gradient(theta):
    return 5.2 * theta * (theta**2 - 1.0) + 0.25


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def like_params(vector, dtype):
    sizes = np.cumsum([math.prod(shape) for shape in SHAPES.values()])[:-1]
    parts = np.split(vector, sizes)
    return {name: jnp.asarray(part.reshape(shape), dtype) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


class Pair:
    """The library and the transcription side by side."""

    def __init__(self, transformation, hills, dtype, sampling_steps=None):
        self.sampling_steps = sampling_steps  # None: the transformation is the sampler alone
        theta = np.random.default_rng(7).normal(size=6)
        self.state = transformation.init(like_params(theta, dtype))
        eta = math.sqrt(LEARNING_RATE * TEMPERATURE)
        self.paper = Algorithm1(
            theta,
            self.r(),
            self.sampler_state.r_alpha,
            eta=eta,
            gamma=(1.0 - MOMENTUM) / eta,
            gamma_alpha=1.0 / eta,
            C=1.5 / eta**2,
            w=hills["height"],
            sigma=hills["width"],
            K=300,
            delta=0.4,
            delta_prime=1.5,
            S=0.85,
        )
        self.paper.move()
        self.params = like_params(self.paper.theta, dtype)

        def step(params, state):
            value, grads = jax.value_and_grad(lambda p: sum(potential(leaf) for leaf in jax.tree.leaves(p)))(params)
            updates, state = transformation.update(grads, state, params, value=value)
            return optax.apply_updates(params, updates), state

        def noise(key):
            """What the library draws from the key of its state."""
            _, theta_key, alpha_key = jax.random.split(key, 3)
            return sources.draw(theta_key, self.params, sources.gaussian), sources.standard_normal(alpha_key, dtype)

        self.step, self.noise = jax.jit(step), jax.jit(noise)

    @property
    def sampler_state(self):
        return self.state if self.sampling_steps is None else self.state.sampler

    def r(self):
        """The momentum in the paper's variable: r = -m sqrt(learning_rate / temperature)."""
        momentum = self.sampler_state.momentum
        if isinstance(momentum, optax.MaskedNode) or (self.sampling_steps and self.state.count > self.sampling_steps):
            momentum = self.state.optimizer[0].trace
        return -flat(momentum) * math.sqrt(LEARNING_RATE / TEMPERATURE)

    def sample(self):
        epsilon, epsilon_alpha = self.noise(self.sampler_state.key)
        self.params, self.state = self.step(self.params, self.state)
        theta = self.paper.theta
        self.paper.sample(potential(theta) / TEMPERATURE, gradient(theta) / TEMPERATURE, flat(epsilon), float(epsilon_alpha))
        self.paper.move()

    def optimize(self):
        self.params, self.state = self.step(self.params, self.state)
        self.paper.optimize(gradient(self.paper.theta) / TEMPERATURE)
        self.paper.move()

    def restart_paper(self):
        """Puts the transcription where the library is, so that errors do not add up."""
        state = self.sampler_state
        self.paper.theta, self.paper.r = flat(self.params), self.r()
        self.paper.alpha, self.paper.r_alpha = float(state.alpha), float(state.r_alpha)
        self.paper.V_b = list(np.asarray(state.bias, np.float64).sum(axis=0))

    def differences(self):
        """Largest difference of each variable, relative to its own size (at least 1: alpha passes through zero)."""
        state, paper = self.sampler_state, self.paper
        pairs = {
            "theta": (flat(self.params), paper.theta),
            "r": (self.r(), paper.r),
            "alpha": (state.alpha, paper.alpha),
            "r_alpha": (state.r_alpha, paper.r_alpha),
            "V_b": (np.asarray(state.bias, np.float64).sum(axis=0), np.asarray(paper.V_b)),
        }
        return {
            name: np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / max(1.0, np.max(np.abs(theirs)))
            for name, (ours, theirs) in pairs.items()
        }

    def assert_close(self, tolerance):
        for name, difference in self.differences().items():
            assert difference <= tolerance, (name, difference)


def sampler(hills=PAPER, key=3):
    return ctld_optax.algorithm1(LEARNING_RATE, MOMENTUM, temperature=TEMPERATURE, key=key, **hills)


def assert_beyond_both_walls(alphas):
    assert max(alphas) > 1.5, "alpha never crossed the right wall: this run shows nothing about it"
    assert min(alphas) < -1.5, "alpha never crossed the left wall: this run shows nothing about it"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("handover", [None, hand_over_momentum], ids=["shared momentum", "two states"])
def test_equals_the_paper_through_both_walls_and_both_phases(handover):
    # The paper samples while t < L_s, which is L_s - 1 steps.
    L_s = 201
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    transformation = ctld_optax.phase_switch(sampler(GENTLE), optimizer, L_s - 1, handover=handover)
    pair = Pair(transformation, GENTLE, jnp.float64, sampling_steps=L_s - 1)
    # Nothing puts them together again, so that rounding errors of 1e-16 grow: to 2e-12 with JAX 0.10, to 2e-9 with 0.4.36.
    tolerance, alphas = versions.ROUNDING, []
    for t in range(1, 261):
        if t < L_s:
            pair.sample()
            alphas.append(pair.paper.alpha)
        else:
            pair.optimize()
        pair.assert_close(tolerance)
    assert_beyond_both_walls(alphas)
    assert np.max(np.abs(pair.r())) > 1e-6, "the optimization phase has come to rest: shorten it"


@pytest.mark.usefixtures("x64")
def test_each_step_equals_the_paper_with_its_own_constants():
    pair = Pair(sampler(), PAPER, jnp.float64)
    alphas = []
    for _ in range(200):
        pair.sample()
        pair.assert_close(1e-9)
        alphas.append(pair.paper.alpha)
        pair.restart_paper()
    assert_beyond_both_walls(alphas)


def test_each_step_equals_the_paper_to_float32_rounding():
    pair = Pair(sampler(GENTLE), GENTLE, jnp.float32)
    alphas = []
    for _ in range(200):
        pair.sample()
        # Some ten float32 operations, each good to 6e-8. Eq. 14's difference of two nodes over their distance of 0.01 magnifies
        # the rounding of V_b; the force enters r_alpha times eta = 0.09, hence the wider margin.
        for name, difference in pair.differences().items():
            assert difference < (2e-4 if name == "r_alpha" else 2e-6), (name, difference)
        alphas.append(pair.paper.alpha)
        pair.restart_paper()
    assert_beyond_both_walls(alphas)


WRONG = {
    "temperature of the new alpha": lambda paper: setattr(
        paper, "g", lambda alpha: Algorithm1.g(paper, alpha + paper.eta * paper.r_alpha)
    ),
    "Eq. 11 as printed": lambda paper: setattr(paper, "dphi", lambda alpha: paper.C if abs(alpha) > 1.5 else 0.0),
    "uncoupled": lambda paper: setattr(paper, "dg", lambda alpha: 0.0),
    "bin to the left": lambda paper: setattr(
        paper, "bias_force", lambda alpha: Algorithm1.bias_force(paper, alpha - 2 * 1.5 / paper.K)
    ),
    "friction off by a thousandth": lambda paper: setattr(paper, "gamma", paper.gamma * 1.001),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("slip", WRONG)
def test_the_comparison_sees_a_wrong_paper(slip):
    """Negative control: with one slip in the transcription the two part by far more than the tolerance."""
    pair = Pair(sampler(GENTLE), GENTLE, jnp.float64)
    WRONG[slip](pair.paper)
    worst = 0.0
    for _ in range(200):
        pair.sample()
        worst = max(worst, *pair.differences().values())
        pair.restart_paper()
    assert worst > 1e-6


def test_refuses_schedules_and_zero_temperature():
    with pytest.raises(TypeError, match=r"^learning_rate must be a number, got .*algorithm1 needs .* as numbers"):
        ctld_optax.algorithm1(optax.constant_schedule(0.1), 0.9, key=0)
    with pytest.raises(TypeError, match=r"^temperature must be a number, got .*algorithm1 needs .* as numbers"):
        ctld_optax.algorithm1(0.1, 0.9, temperature=optax.constant_schedule(0.1), key=0)
    with pytest.raises(ValueError, match=r"temperature must be a finite number in \(0, inf\), got 0.0"):
        ctld_optax.algorithm1(0.1, 0.9, temperature=0.0, key=0)
