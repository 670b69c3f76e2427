"""From the energy of the parameters to the energy that drives alpha.

The force on alpha is -g'(alpha) * coupled_energy (Eq. 6). The choices of the coupled energy are here. Each says of which energy
it is made, and whether the momenta get hot with the parameters. Nothing here knows of Optax, of alpha or of the bias.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._checked import check_fields
from ctld_optax._validate import check_range


class EnergyStatistics(NamedTuple):
    """Running mean and variance of the energy.

    Attributes:
      mean: shape (), in units of `value`.
      var: shape (), in units of its square.
    """

    mean: jax.Array
    var: jax.Array


def update_statistics(statistics: EnergyStatistics, energy: jax.Array, num_seen: jax.Array, decay: float) -> EnergyStatistics:
    """Exponential moving mean and variance without start-up bias.

    The weight of the newest energy is (1 - decay) / (1 - decay^t), which is bias correction written as a recursion on
    differences: a constant offset of the loss costs no digits but those that the energy itself has lost in its dtype.

    Args:
      statistics: those before this step.
      energy: the energy of this step.
      num_seen: how many energies have gone in, this one excluded.
      decay: in (0, 1).
    """
    dtype = statistics.mean.dtype
    rate = jnp.asarray(decay, dtype)
    weight = (1.0 - rate) / (1.0 - rate ** (num_seen.astype(dtype) + 1.0))
    # Exactly 1 for the first energy: a rounding error here would enter the variance times the square of the offset.
    weight = jnp.where(num_seen == 0, 1.0, weight)
    difference = energy - statistics.mean
    mean = statistics.mean + weight * difference
    var = (1.0 - weight) * (statistics.var + weight * jnp.square(difference))
    return EnergyStatistics(mean, var)


def _check_decay(decay: float) -> None:
    check_range("decay", decay, minimum=0.0, maximum=1.0, minimum_open=True, maximum_open=True)


@dataclasses.dataclass(frozen=True)
class Hamiltonian:
    r"""The paper's coupling, :math:`H = (\text{value} + K)/T`, with K the kinetic energy in units of `value`.

    Exact: once the bias stands still, exp(-g H - phi - V_b - r_alpha^2/2) is stationary. H grows with the number of
    parameters d (mean d/2g, spread sqrt(d/2)), and so does the time alpha needs for a round trip: right for small d.

    Args:
      decay: in (0, 1), of the running mean and variance of the energy, which only diagnostics read.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0, coupling="hamiltonian")
      >>> same = ctld_optax.ctld(0.01, 1e-3, key=0, coupling=ctld_optax.Hamiltonian())
    """

    decay: float = 0.99
    needs_value: ClassVar[bool] = True
    heats_momenta: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        _check_decay(self.decay)

    def energy(self, value: jax.Array, kinetic_energy: jax.Array) -> jax.Array:
        """What is coupled, in units of `value`."""
        return value + kinetic_energy

    def __call__(self, energy: jax.Array, temperature: jax.Array, statistics: EnergyStatistics) -> jax.Array:
        del statistics
        return energy / temperature

    def sensitivity(self, temperature: jax.Array, statistics: EnergyStatistics) -> jax.Array:
        """How much the coupled energy changes with `value`."""
        del statistics
        return 1.0 / temperature


@dataclasses.dataclass(frozen=True)
class Potential(Hamiltonian):
    r"""value/T alone, with momenta that are as warm as ever: exact like :class:`Hamiltonian`, and twice as many round trips.

    .. math:: \exp\left(-g(\alpha)\, U(\theta) - \tfrac12 p \cdot p - V_b(\alpha) - \tfrac12 r_\alpha^2\right), \qquad
        p = r \sqrt{g(\alpha)}

    is stationary once the bias stands still. The kinetic energy, half of the noise in what drives alpha, is not in it. So p
    must not change when alpha does: m is scaled by :math:`\sqrt{\beta_{t-1}/\beta_t}`, as where the learning rate changes; and
    of the drift, one half is made before alpha moves and one after it, which makes the step symmetric:
    :math:`\theta_{t+1} = \theta_t - \ell\, m_t\, (1 + \mu \sqrt{\beta_t/\beta_{t+1}}) / (1 + \mu)`.

    Two modes 0.3 : 0.7 in five dimensions, 20 k_B T apart, S = 0.95, mu = 0.9, 100,000 steps x 192 chains; the weight of the
    larger mode (truth 0.700), and round trips of alpha in 1,000 steps:

    =============  ===============  ====================  ====================
    learning_rate  alpha_step_size  Hamiltonian           Potential
    =============  ===============  ====================  ====================
    0.02           0.05             0.697 +- 0.007, 0.82  0.696 +- 0.005, 1.69
    0.02           0.1              0.700 +- 0.010, 0.58  0.702 +- 0.005, 1.70
    0.05           0.05             0.707 +- 0.007, 0.81  0.702 +- 0.005, 1.74
    0.05           0.1              0.732 +- 0.007, 0.61  0.704 +- 0.004, 1.66
    =============  ===============  ====================  ====================

    Args:
      decay: as for :class:`Hamiltonian`.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0, coupling="potential")
    """

    heats_momenta: ClassVar[bool] = False

    def energy(self, value: jax.Array, kinetic_energy: jax.Array) -> jax.Array:
        del kinetic_energy
        return value


@dataclasses.dataclass(frozen=True)
class Standardized:
    """(energy - running mean) / running standard deviation, clipped.

    Free of units: alpha moves in the same way whatever the number of parameters, the temperature, or an offset of the
    loss. Not exact: it becomes so as alpha moves slowly (alpha_step_size -> 0), for then the temperature is all but constant
    while the parameters come to rest; but then it makes few round trips.

    How far its window is from exp(-value/T). Mean of U = 1.3 (x^2-1)^2 + 0.25 x at T = 0.37 (truth -0.546), 60,000 steps x 64
    chains; total variation of the weights of nine Gaussians (2-d, 3 x 3, spacing 2, sd 0.2, weights 1:2:1:2:4:2:1:2:3),
    100,000 steps x 16 chains started in one corner; learning rate 0.01, momentum 0.9:

    ===============  ===============  =============  ===============  =============
    alpha_step_size  mean, hills      variation      mean, force      variation
    ===============  ===============  =============  ===============  =============
    0.05             -0.326 +- 0.007  0.14           -0.337 +- 0.007  0.14
    0.02             -0.358 +- 0.011  0.15           -0.370 +- 0.011  0.16
    0.01             -0.425 +- 0.014  0.19           -0.462 +- 0.014  0.18
    0.005            -0.489 +- 0.017  0.19 (7 of 9)  -0.519 +- 0.017  0.17 (6 of 9)
    0.002            -0.527 +- 0.018  0.17 (2 of 9)  -0.529 +- 0.017  0.37 (1 of 9)
    ===============  ===============  =============  ===============  =============

    (hills: :class:`~ctld_optax.Metadynamics` as it stands; force: :class:`~ctld_optax.AdaptiveBiasingForce`; in brackets how
    many Gaussians the poorest chain found, if not all.) The hamiltonian coupling gives -0.545 +- 0.007 and 0.02 there.

    Args:
      clip: > 0; a single wild loss pushes alpha no more than one that is so many deviations off.
      decay: in (0, 1), of the running mean and variance; 0.99 remembers about 100 steps.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> slower = ctld_optax.Standardized(decay=0.999)
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0, coupling=slower)
    """

    clip: float = 5.0
    decay: float = 0.99
    needs_value: ClassVar[bool] = True
    heats_momenta: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("clip", self.clip, minimum=0.0, minimum_open=True)
        _check_decay(self.decay)

    def energy(self, value: jax.Array, kinetic_energy: jax.Array) -> jax.Array:
        """What is coupled, in units of `value`."""
        return value + kinetic_energy

    def __call__(self, energy: jax.Array, temperature: jax.Array, statistics: EnergyStatistics) -> jax.Array:
        del temperature
        score = (energy - statistics.mean) * _precision(statistics)
        return jnp.clip(score, -self.clip, self.clip)

    def sensitivity(self, temperature: jax.Array, statistics: EnergyStatistics) -> jax.Array:
        """How much the coupled energy changes with `value`, where it is not clipped."""
        del temperature
        return _precision(statistics)


@dataclasses.dataclass(frozen=True)
class Kinetic(Standardized):
    """:class:`Standardized`, of the kinetic energy alone: the sampler then needs no `value`.

    For trainers that call `update(grads, state, params)` and cannot hand on the loss. Where the parameters are hotter than
    the average, so are their momenta, which take up heat from the gradient and the noise within 1 / (1 - momentum) steps:
    (kinetic energy - running mean) / running standard deviation is what drives alpha. A `value` that is passed all the same
    is not looked at, not even whether it is finite.

    What it changes, on the 20-layer network of `benchmarks.digits`, 8 seeds a row (`python -m benchmarks.value_free`; a uniform
    alpha has a share of 0.267 in the window):

    ===========  ======  ======  =====  ====================  ============  ===============
    alpha's      T       window  KL     test accuracy:        lowest        runs above 0.9
    energy                              median
    ===========  ======  ======  =====  ====================  ============  ===============
    value + K    2.5e-5  0.246   0.013  0.972                 0.958         8 of 8
    K            2.5e-5  0.295   0.010  0.976                 0.936         8 of 8
    work + K     2.5e-5  0.266   0.003  0.974                 0.942         8 of 8
    value + K    4e-5    0.254   0.002  0.961                 0.078         5 of 8
    K            4e-5    0.261   0.005  0.969                 0.078         6 of 8
    work + K     4e-5    0.289   0.005  0.974                 0.078         6 of 8
    ===========  ======  ======  =====  ====================  ============  ===============

    A small CNN, a small transformer and the character LSTM, likewise: shares of 0.275, 0.290 and 0.297, KL of 0.003, 0.006 and
    0.007; accuracies of 0.980 (with the value 0.978) and 0.973 (0.974), a perplexity of 6.41 (6.42), each +- 0.01 or 0.2.

    The three cannot be told apart. The work of the gradient (the running sum of gradient times update in the loss's place)
    would need a field of its own in the state, so it is not offered.

    Args:
      clip: as for :class:`Standardized`.
      decay: likewise.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0, coupling="kinetic")
      >>> params = {"w": jnp.ones(3)}
      >>> updates, state = sampler.update(params, sampler.init(params), params)  # no value
    """

    needs_value: ClassVar[bool] = False

    def energy(self, value: jax.Array, kinetic_energy: jax.Array) -> jax.Array:
        del value
        return kinetic_energy

    def sensitivity(self, temperature: jax.Array, statistics: EnergyStatistics) -> jax.Array:
        del temperature
        return jnp.zeros_like(statistics.var)


def _precision(statistics: EnergyStatistics) -> jax.Array:
    """One over the standard deviation; large and finite as long as there is none."""
    tiny = jnp.asarray(jnp.finfo(statistics.var.dtype).tiny, statistics.var.dtype)
    # Not the root of a maximum: its slope at 0, in the first step, is infinite times 0.
    return jax.lax.rsqrt(jnp.where(statistics.var > tiny, statistics.var, tiny))


Coupling = Hamiltonian | Standardized
CouplingName = Literal["standardized", "hamiltonian", "potential", "kinetic"]
COUPLINGS: dict[str, Coupling] = {
    "standardized": Standardized(),
    "hamiltonian": Hamiltonian(),
    "potential": Potential(),
    "kinetic": Kinetic(),
}
