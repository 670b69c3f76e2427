"""The temperature as a function of alpha, Eq. 7. Nothing here knows of Optax, of the parameters or of the bias."""

import dataclasses

import jax
import jax.numpy as jnp

from ctld_optax._checked import check_fields
from ctld_optax._validate import check_range


@dataclasses.dataclass(frozen=True)
class PolynomialTempering:
    r"""The inverse temperature scale :math:`\beta = g(\alpha)` of the paper, Eq. 7.

    .. math::
        g(\alpha) = 1 - S\,z^2 (3 - 2 z), \qquad
        z = \mathrm{clip}\left(\frac{|\alpha| - \delta}{\delta' - \delta}, 0, 1\right)

    so that the system has its own temperature (:math:`g = 1`) in the window :math:`|\alpha| \le \delta` and is hottest,
    by the factor :math:`1/(1-S)`, at the walls :math:`|\alpha| = \delta'`. With the defaults :math:`1/g` lies in
    [1, 6.67]; the paper prints :math:`[1-S, 1]` for it, which is the range of :math:`g`.

    Args:
      delta: half width of the window in which the temperature is the base temperature, >= 0.
      delta_prime: where the walls stand, > delta. With a uniform alpha the share of time spent at the base temperature
        is delta / delta_prime.
      strength: S, in [0, 1).

    Raises:
      ValueError: for a number out of range.

    Source: Ye, Zhu and Mantiuk, NIPS 2017, Eq. 7; after Lenner and Mathias, JCTC 12 (2016).

    Example:
      >>> tempering = ctld_optax.PolynomialTempering(delta=0.4, delta_prime=1.5, strength=0.85)
      >>> (1.0 / tempering.beta(jnp.array([0.0, 0.4, 1.5]))).round(2)  # the temperature scale
      Array([1.  , 1.  , 6.67], dtype=float32)
    """

    delta: float = 0.4
    delta_prime: float = 1.5
    strength: float = 0.85

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("delta", self.delta, minimum=0.0)
        check_range("delta_prime", self.delta_prime, minimum=self.delta, minimum_open=True)
        check_range("strength", self.strength, minimum=0.0, maximum=1.0, maximum_open=True)

    def _z(self, alpha: jax.Array) -> jax.Array:
        return jnp.clip((jnp.abs(alpha) - self.delta) / (self.delta_prime - self.delta), 0.0, 1.0)

    def beta(self, alpha: jax.Array) -> jax.Array:
        """g(alpha), in [1 - strength, 1]; same shape as `alpha`."""
        z = self._z(alpha)
        return 1.0 - self.strength * z * z * (3.0 - 2.0 * z)

    def beta_gradient(self, alpha: jax.Array) -> jax.Array:
        """g'(alpha): zero in the window and beyond the walls, continuous; same shape as `alpha`."""
        z = self._z(alpha)
        slope = 6.0 * self.strength / (self.delta_prime - self.delta)
        return -slope * z * (1.0 - z) * jnp.sign(alpha)

    def in_window(self, alpha: jax.Array) -> jax.Array:
        """Whether |alpha| <= delta, where g = 1 and the parameters are at the base temperature; same shape as `alpha`."""
        return abs(alpha) <= self.delta


@dataclasses.dataclass(frozen=True)
class GeometricTempering(PolynomialTempering):
    r"""The same in the logarithm of the temperature: for posteriors, whose modes lie apart.

    .. math::
        g(\alpha) = (1 - S)^{z^2 (3 - 2 z)}

    with z as in :class:`PolynomialTempering`, so that every decade of temperatures has an equal share of alpha's path, as in a
    geometric ladder of parallel tempering. The paper's g is linear in the inverse temperature: of a range of 100 the hotter
    decade has the last fifth of the path, and the place where modes are crossed is met as seldom. To a d-dimensional harmonic
    energy, whose spread is T/g sqrt(d/2), this one is the same all along the path.

    Two modes 0.3 : 0.7 in five dimensions, 20 k_B T apart, coupling "potential", learning rate 0.03, mu = 0.9, 100,000 steps x
    192 chains; the weight of the larger one, and crossings between the modes in 1,000 steps:

    ========  ===============  =====================  =====================
    strength  alpha_step_size  polynomial             geometric
    ========  ===============  =====================  =====================
    0.95      0.05             0.710 +- 0.004, 0.86   0.710 +- 0.004, 1.85
    0.95      0.1              0.700 +- 0.005, 0.70   0.702 +- 0.003, 1.87
    0.99      0.05             0.733 +- 0.008, 0.72   0.703 +- 0.004, 5.26
    0.99      0.1              0.808 +- 0.009, 0.24   0.762 +- 0.010, 5.41
    ========  ===============  =====================  =====================

    (At strength 0.99 a step of 0.1 is too long for alpha: it should be 0.4 / (sqrt(d) log(1 / (1 - strength))) = 0.04.)

    Args:
      delta: as there.
      delta_prime: likewise.
      strength: likewise: at the walls the temperature is 1/(1-S) times that in the window.

    Raises:
      ValueError: for a number out of range.

    Source: Kofke, J. Chem. Phys. 117 (2002), for the geometric ladder.

    Example:
      >>> tempering = ctld_optax.GeometricTempering(strength=0.99)
      >>> (1.0 / tempering.beta(jnp.array([0.4, 0.95, 1.5]))).round(2)  # the temperature scale
      Array([  1.,  10., 100.], dtype=float32)
    """

    @property
    def _log_hottest(self) -> jax.Array:
        return jnp.log(1.0 - self.strength)  # which may be traced

    def beta(self, alpha: jax.Array) -> jax.Array:
        """g(alpha), in [1 - strength, 1]; same shape as `alpha`."""
        z = self._z(alpha)
        return jnp.exp(self._log_hottest * z * z * (3.0 - 2.0 * z))

    def beta_gradient(self, alpha: jax.Array) -> jax.Array:
        """g'(alpha): zero in the window and beyond the walls, continuous; same shape as `alpha`."""
        z = self._z(alpha)
        slope = 6.0 * self._log_hottest / (self.delta_prime - self.delta)
        return slope * self.beta(alpha) * z * (1.0 - z) * jnp.sign(alpha)
