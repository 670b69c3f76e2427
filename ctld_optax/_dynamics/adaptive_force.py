"""A bias that learns the mean force on alpha and takes it away: adaptive biasing force, the bias for posteriors.

Nothing here knows of Optax, of the parameters or of the temperature. Energies are in units of k_B T_c.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ctld_optax._checked import check_fields
from ctld_optax._dynamics import grid
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.walls import Walls
from ctld_optax._validate import check_count, check_range


@dataclasses.dataclass(frozen=True)
class AdaptiveBiasingForce:
    r"""Makes alpha's distribution flat by taking away the running mean of the force that the energy exerts on it.

    .. math::
        V_b'(a) = \frac{n(a)}{n(a) + n_0}\, \overline{f}(a), \qquad
        f_t = -g'(\alpha_t) E_t,

    with n(a) the number of steps spent near a and :math:`\overline{f}(a)` the mean of their forces. In equilibrium
    :math:`\overline{f}(a) \to -F'(a)`, with :math:`F = -\log p(\alpha)`, so that :math:`V_b \to -F` and alpha is uniform.

    Why it is the bias for posteriors: a hill pushes alpha away from where it stands, whether or not a push is due, and a
    flat alpha needs large hills for long. Here a step moves the bias by (force - mean) / n(a), which falls as 1/t and has
    mean zero once the mean is right, so that alpha stays the equilibrium variable it must be for its window to sample
    exp(-value/T). Measured with the hamiltonian coupling: on U = 1.3 (x^2-1)^2 + 0.25 x at T = 0.37 the mean of the samples
    in the window (truth -0.546; 60,000 steps x 64 chains, learning rate 0.01, momentum 0.9, h = 0.02) and the divergence of
    alpha from uniform; on a quadratic in 20 dimensions the root-mean-square error of V_b over its range and the same
    divergence in the second half of 100,000 steps x 8 chains (h = 0.1 for the hills and OPES, 0.05 for the force):

    =====================  =================  ==========  ===========  ==========
    bias                   window mean        divergence  20-d: error  divergence
    =====================  =================  ==========  ===========  ==========
    none                   -0.538 +- 0.013    0.21
    hills, factor 5        -0.527 +- 0.009    0.007
    hills, factor 10       -0.504 +- 0.009    0.002       0.041        0.84
    hills, factor 100                                     0.114        0.009
    OPES, uniform target   -0.538 +- 0.010    0.0004      0.26         0.75
    adaptive force         -0.541 +- 0.010    0.0007      0.011        0.002
    =====================  =================  ==========  ===========  ==========

    The mean force lives on `num_bins + 1` nodes over [-limit, limit], shared linearly between the two nodes around alpha;
    since g is even, each force counts with the opposite sign at -alpha too. Outside the walls nothing is learned and
    no force acts. The state is one array of shape (2, num_bins + 1): n, and the mean force, in units of k_B T_c.

    Args:
      num_bins: K >= 2. The mean force is linear between nodes, so some tens of them carry it.
      min_samples: n_0 > 0, the number of visits from which on the mean is trusted. Too small a number lets the first, random
        forces in, too large a one keeps alpha from being flat for long.
      axis_name: name (or tuple of names) of a `jax.vmap` or mesh axis of walkers that share this bias, as of
        :class:`~ctld_optax.Metadynamics`: each learns from the forces on all.

    Raises:
      ValueError: for a number out of range. TypeError: if `num_bins` is no Python integer.

    Source: Darve and Pohorille, J. Chem. Phys. 115 (2001); Comer et al., J. Phys. Chem. B 119 (2015). OPES: Invernizzi and
    Parrinello, J. Phys. Chem. Lett. 11 (2020).

    Example:
      >>> bias = ctld_optax.AdaptiveBiasingForce()
      >>> sampler = ctld_optax.posterior_sampler(0.01, key=0, bias=bias)
    """

    num_bins: int = 100
    min_samples: float = 20.0
    axis_name: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("num_bins", self.num_bins, 2)
        check_range("min_samples", self.min_samples, minimum=0.0, minimum_open=True)

    def init(self, dtype: Any = jnp.float32) -> jax.Array:
        """Nothing learned: zeros of shape (2, num_bins + 1)."""
        return jnp.zeros((2, self.num_bins + 1), dtype)

    def nodes(self, limit: float, dtype: Any = jnp.float32) -> jax.Array:
        """Where the mean force is held: shape (num_bins + 1,), from -limit to limit."""
        return grid.nodes(limit, self.num_bins, dtype)

    def deposit(self, bias: jax.Array, visit: Visit, walls: Walls) -> jax.Array:
        """Takes the force of one step into the mean at `alpha` and, with the opposite sign, at -alpha.

        At the walls g' = 0: there is nothing to mirror. A visit of weight 0 is left out, whatever its force. With an
        `axis_name` the forces of all walkers are taken in.
        """
        if self.axis_name is None:
            for where, share, force in self._ends(bias, visit, walls):
                count, mean = grid.ends(bias, where)
                count = count + share
                mean = mean + share * (force - mean) / jnp.where(count > 0.0, count, 1.0)
                bias = jax.lax.dynamic_update_slice_in_dim(bias, jnp.stack([count, mean]), where.left, axis=1)
            return bias
        brought = jnp.zeros_like(bias)  # visits, and the sum of their forces
        for where, share, force in self._ends(bias, visit, walls):
            both = grid.ends(brought, where) + jnp.stack([share, share * force])
            brought = jax.lax.dynamic_update_slice_in_dim(brought, both, where.left, axis=1)
        visits, forces = jax.lax.psum(brought, self.axis_name)
        count = bias[0] + visits
        mean = bias[1] + (forces - visits * bias[1]) / jnp.where(count > 0.0, count, 1.0)
        return jnp.stack([count, mean])

    def _ends(self, bias: jax.Array, visit: Visit, walls: Walls) -> Iterator[tuple[grid.Place, jax.Array, jax.Array]]:
        """Of a visit and of its image at -alpha: the place, the share of it that each of the two nodes has, and the force."""
        weight = jnp.asarray(visit.weight, bias.dtype)
        force = jnp.where(weight > 0.0, visit.force, 0.0)
        for alpha, there in ((visit.alpha, force), (-visit.alpha, -force)):
            where = grid.place(alpha, walls.limit, self.num_bins, bias.dtype)
            share = weight * grid.inside(alpha, walls.limit, jnp.stack([1.0 - where.fraction, where.fraction]))
            yield where, share, there

    def missing(self, bias: Any) -> jax.Array:
        """The share of the mean force that few visits hold back, over all nodes: 1 at first, and 0 when alpha is flat."""
        return jnp.mean(self.min_samples / (jnp.asarray(bias)[..., 0, :] + self.min_samples), axis=-1)

    def potential(self, bias: jax.Array, alpha: jax.Array, limit: float) -> jax.Array:
        """V_b(alpha): the exact integral of `gradient` from -limit, in units of k_B T_c; same shape as `alpha`."""
        left, fraction, spacing = grid.place(alpha, limit, self.num_bins, bias.dtype)
        slope = self._slope(bias)
        whole = jnp.concatenate([jnp.zeros(1, bias.dtype), jnp.cumsum(0.5 * spacing * (slope[1:] + slope[:-1]))])
        part = slope[left] + 0.5 * fraction * (slope[left + 1] - slope[left])
        return whole[left] + spacing * fraction * part

    def gradient(self, bias: jax.Array, alpha: jax.Array, limit: float) -> jax.Array:
        """dV_b/dalpha, linear between nodes; 0 outside."""
        where = grid.place(alpha, limit, self.num_bins, bias.dtype)
        left, right = self._slope(grid.ends(bias, where))
        return grid.inside(alpha, limit, left + where.fraction * (right - left))

    def _slope(self, bias: jax.Array) -> jax.Array:
        """The mean force, shrunk where it rests on few visits."""
        return bias[1] * bias[0] / (bias[0] + self.min_samples)
