"""The bias potential of alpha on a grid: metadynamics, Eq. 12-14, plain and well-tempered.

Nothing here knows of Optax, of the parameters or of the temperature. Energies are in units of k_B T_c.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ctld_optax._checked import check_fields
from ctld_optax._dynamics import grid
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.walls import Walls
from ctld_optax._validate import check_count, check_range


@dataclasses.dataclass(frozen=True)
class Metadynamics:
    r"""A history-dependent bias that makes alpha's distribution flat.

    After each step one Gaussian hill is added where alpha stands (Eq. 13),

    .. math::
        V_b(a) \mathrel{+}= w_t \exp\left(-\frac{(a - \alpha_t)^2}{2\sigma^2}\right), \qquad
        w_t = w \exp\left(-\frac{V_b(\alpha_t)}{\gamma - 1}\right),

    where :math:`\gamma` is `bias_factor`. The hills of the paper keep their height (`bias_factor=None`): they never let
    the bias stand still, and drive alpha through the window faster than the parameters can follow, which breaks the
    paper's own Theorem 1. Well-tempered hills (the default) shrink, the bias converges to
    :math:`-(1 - 1/\gamma) F(\alpha)`, and alpha's density to :math:`p^{1/\gamma}`, which is all but flat.

    The bias lives on `num_bins + 1` nodes, equally spaced over [-limit, limit] with both ends included, and is
    linear between them, so Eq. 14's difference of adjacent nodes is its exact derivative. Outside it is constant.

    The state is one array of shape (2, num_bins + 1): an unevaluated sum of two floats a node. The second row holds what
    the first cannot resolve, so that in float32 the ten-millionth hill still counts (a plain float32 sum loses
    well-tempered hills after about 10^6 steps).

    Args:
      height: w > 0, height of the first hill, in units of k_B T_c. The paper's 20 is meant for :func:`algorithm1`.
      width: sigma > 0, in units of alpha.
      num_bins: K >= 2; 375 makes the spacing width / 5 for walls at 1.5.
      bias_factor: gamma > 1 for well-tempered hills, None for hills of constant height.
      axis_name: name (or tuple of names) of a `jax.vmap` or mesh axis of walkers that share this bias: each adds its hill to
        the bias of all, so that it fills as many times faster as there are walkers (Raiteri et al., J. Phys. Chem. B
        110, 2006).
        Each walker has its own parameters, alpha and key.

    Raises:
      ValueError: for a number out of range. TypeError: if `num_bins` is no Python integer.

    Source: Laio and Parrinello, PNAS 99 (2002); Barducci, Bussi and Parrinello, PRL 100 (2008).

    Example:
      >>> flatter = ctld_optax.Metadynamics(height=0.1, bias_factor=10.0)
      >>> papers = ctld_optax.Metadynamics(height=0.02, bias_factor=None)  # never shrink
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0, bias=flatter)
    """

    height: float = 0.1
    width: float = 0.04
    num_bins: int = 375
    bias_factor: float | None = 5.0
    axis_name: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("height", self.height, minimum=0.0, minimum_open=True)
        check_range("width", self.width, minimum=0.0, minimum_open=True)
        check_count("num_bins", self.num_bins, 2)
        if self.bias_factor is not None:
            hint = "Write bias_factor=None for hills of constant height."
            check_range("bias_factor", self.bias_factor, minimum=1.0, minimum_open=True, hint=hint)

    def init(self, dtype: Any = jnp.float32) -> jax.Array:
        """A flat bias: zeros of shape (2, num_bins + 1)."""
        return jnp.zeros((2, self.num_bins + 1), dtype)

    def nodes(self, limit: float, dtype: Any = jnp.float32) -> jax.Array:
        """Where the bias is held: shape (num_bins + 1,), from -limit to limit."""
        return grid.nodes(limit, self.num_bins, dtype)

    def deposit(self, bias: jax.Array, visit: Visit, walls: Walls) -> jax.Array:
        """Adds the hill of one step where alpha stands, and its images in reflecting walls.

        The images make the bias flat across the walls; without them hills near a wall are cut off, and alpha is
        pushed into it. With an `axis_name` the hills of all walkers are added.
        """
        nodes = self.nodes(walls.limit, bias.dtype)
        shape = sum(jnp.exp(-0.5 * jnp.square((nodes - centre) / self.width)) for centre in walls.images(visit.alpha))
        height = jnp.asarray(self.height, bias.dtype)
        if self.bias_factor is not None:
            height = height * jnp.exp(-self.potential(bias, visit.alpha, walls.limit) / (self.bias_factor - 1.0))
        hills = jnp.asarray(visit.weight, bias.dtype) * height * shape
        return _add(bias, hills if self.axis_name is None else jax.lax.psum(hills, self.axis_name))

    def potential(self, bias: jax.Array, alpha: jax.Array, limit: float) -> jax.Array:
        """V_b(alpha), linear between nodes and constant outside, in units of k_B T_c."""
        where = grid.place(alpha, limit, self.num_bins, bias.dtype)
        left, right = grid.ends(bias, where).sum(axis=0)
        return left + where.fraction * (right - left)

    def gradient(self, bias: jax.Array, alpha: jax.Array, limit: float) -> jax.Array:
        """dV_b/dalpha, Eq. 14: the difference of the two nodes around `alpha` over their distance; 0 outside."""
        where = grid.place(alpha, limit, self.num_bins, bias.dtype)
        ends = grid.ends(bias, where)
        slope = ((ends[0, 1] - ends[0, 0]) + (ends[1, 1] - ends[1, 0])) / where.spacing
        return grid.inside(alpha, limit, slope)


def _add(bias: jax.Array, hills: jax.Array) -> jax.Array:
    """Adds to a sum of two floats without loss: Knuth's TwoSum, then the pair is made non-overlapping again."""
    high, low = bias[0], bias[1]
    total = high + hills
    virtual = total - high
    error = (high - (total - virtual)) + (hills - virtual)
    low = low + error
    high = total + low
    return jnp.stack([high, low - (high - total)])
