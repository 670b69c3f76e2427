"""What a recorded trajectory shows, figure by figure."""

from typing import Any

import jax
import numpy as np

from ctld_optax._checked import checked
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.integrators import INTEGRATORS, IntegratorName
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._validate import as_numbers, check_bias, check_count, check_range
from ctld_optax.diagnostics._snapshot import Snapshot, ctld_state


@checked()
def temperature(trajectory: Snapshot) -> np.ndarray:
    """1/beta: the temperature of each step in units of the base temperature, same shape as `trajectory.beta`.

    Example:
      >>> rows = ctld_optax.diagnostics.Snapshot(*8 * [np.array([1.0, 0.5])])
      >>> ctld_optax.diagnostics.temperature(rows)
      array([1., 2.])
    """
    return 1.0 / as_numbers("trajectory.beta", trajectory.beta)


@checked()
def kinetic_temperature(kinetic_energy: Any, num_params: int) -> np.ndarray:
    """2 K / d: the temperature that the momenta show, in units of `value`; compare :func:`kinetic_temperature_target`.

    Args:
      kinetic_energy: `Snapshot.kinetic_energy`, any shape.
      num_params: d >= 1, the number of parameters (not of arrays).

    Example:
      >>> ctld_optax.diagnostics.kinetic_temperature(kinetic_energy=0.05, num_params=100)
      np.float64(0.001)
    """
    check_count("num_params", num_params, 1)
    return 2.0 * as_numbers("kinetic_energy", kinetic_energy) / num_params


@checked()
def kinetic_temperature_target(
    temperature: Any, momentum: float = 0.9, beta: Any = 1.0, *, integrator: IntegratorName = "baoab"
) -> np.ndarray:
    """T / beta: what :func:`kinetic_temperature` settles at, for BAOAB at any learning rate.

    Euler's order runs hot in the momentum, by 2 / (1 + momentum), 5 % at momentum 0.9, and by more where the forces change over
    1/(1 - momentum) steps.

    Args:
      temperature: T, as given to `ctld`.
      momentum: likewise; it matters in Euler's order only.
      beta: g(alpha).
      integrator: as given to `ctld`.

    Example:
      >>> ctld_optax.diagnostics.kinetic_temperature_target(1e-3, beta=0.5)
      np.float64(0.002)
    """
    check_range("momentum", momentum, minimum=0.0, maximum=1.0, maximum_open=True)
    heat = INTEGRATORS[integrator].kinetic_temperature(momentum)
    return heat * as_numbers("temperature", temperature) / as_numbers("beta", beta)


@checked()
def alpha_histogram(alpha: Any, delta_prime: float = 1.5, bins: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Density of alpha on equal bins of [-delta_prime, delta_prime], and their edges; steps outside do not count.

    Returns:
      density, shape (bins,), which integrates to 1 (all zeros if every step is outside), and edges, shape (bins + 1,).

    Example:
      >>> alpha = 1.5 * np.sin(np.linspace(0.0, 60.0, 1_000))  # a recorded walk
      >>> density, edges = ctld_optax.diagnostics.alpha_histogram(alpha, bins=3)
      >>> density.round(2), edges
      (array([0.37, 0.22, 0.41]), array([-1.5, -0.5,  0.5,  1.5]))
    """
    check_range("delta_prime", delta_prime, minimum=0.0, minimum_open=True)
    check_count("bins", bins, 1)
    counts, edges = np.histogram(_finite("alpha", alpha), bins=bins, range=(-delta_prime, delta_prime))
    return counts / max(counts.sum(), 1) / (edges[1] - edges[0]), edges


@checked()
def alpha_kl_from_uniform(alpha: Any, delta_prime: float = 1.5, bins: int = 15) -> float:
    """Kullback-Leibler divergence of the histogram of alpha from the uniform density, in nats, >= 0.

    Of a uniform alpha it is about (bins - 1) / (2 * number of independent samples).

    Example:
      >>> alpha = 1.5 * np.sin(np.linspace(0.0, 60.0, 1_000))  # a recorded walk
      >>> round(ctld_optax.diagnostics.alpha_kl_from_uniform(alpha), 2)
      0.14
    """
    density, edges = alpha_histogram(alpha, delta_prime, bins)
    share = density * np.diff(edges)
    share = share[share > 0.0]
    return float(np.sum(share * np.log(share * bins))) if share.size else float("inf")


@checked()
def fraction_in_window(alpha: Any, delta: float = 0.4) -> float:
    """Share of steps with |alpha| <= delta, those at the base temperature; delta / delta_prime for a uniform alpha.

    Example:
      >>> alpha = 1.5 * np.sin(np.linspace(0.0, 60.0, 1_000))  # a recorded walk
      >>> round(ctld_optax.diagnostics.fraction_in_window(alpha), 2)
      0.18
    """
    check_range("delta", delta, minimum=0.0)
    return float(np.mean(np.abs(_finite("alpha", alpha)) <= delta))


@checked()
def fraction_outside(alpha: Any, delta_prime: float = 1.5) -> float:
    """Share of steps with |alpha| > delta_prime; 0 with reflecting walls.

    Example:
      >>> ctld_optax.diagnostics.fraction_outside(np.array([0.0, 1.4, 1.6, -2.0]))
      0.5
    """
    check_range("delta_prime", delta_prime, minimum=0.0, minimum_open=True)
    return float(np.mean(np.abs(_finite("alpha", alpha)) > delta_prime))


@checked()
def round_trips(alpha: Any, delta: float = 0.4, delta_prime: float = 1.5) -> int:
    """How often alpha went from the window to the hot end and back, summed over replicas.

    The window is |alpha| <= delta, the hot end the outer tenth of the way from delta to delta_prime, on either side.

    Example:
      >>> alpha = 1.5 * np.sin(np.linspace(0.0, 60.0, 1_000))  # a recorded walk
      >>> ctld_optax.diagnostics.round_trips(alpha)
      19
    """
    check_range("delta", delta, minimum=0.0)
    check_range("delta_prime", delta_prime, minimum=delta, minimum_open=True)
    position = np.abs(_finite("alpha", alpha))
    hot = delta_prime - 0.1 * (delta_prime - delta)
    place = np.where(position <= delta, -1, np.where(position >= hot, 1, 0))
    total = 0
    for replica in place.reshape(-1, place.shape[-1]):
        visits = replica[replica != 0]
        turns = int(np.count_nonzero(np.diff(visits)))
        starts_cold = visits.size > 0 and visits[0] == -1
        total += turns // 2 if starts_cold else max(turns - 1, 0) // 2
    return total


@checked()
def bias_potential(state: Any, bias: Bias, tempering: PolynomialTempering | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The bias potential on its nodes, with its minimum at 0.

    Args:
      state: a state with one `CTLDState` in it.
      bias: the configuration that was given to `ctld`.
      tempering: likewise; None is the default one.

    Returns:
      alpha, shape (num_bins + 1,), and V_b in units of k_B T_c, shape (..., num_bins + 1).

    Example:
      >>> bias = ctld_optax.Metadynamics()
      >>> state = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias).init(jnp.ones(3))
      >>> alpha, potential = ctld_optax.diagnostics.bias_potential(state, bias)
      >>> alpha.shape, potential.max()
      ((376,), np.float64(0.0))
    """
    grid = ctld_state(state).bias
    check_bias("the state's bias", grid, bias.num_bins)
    limit = (tempering or PolynomialTempering()).delta_prime
    nodes = bias.nodes(limit, grid.dtype)
    per_node = jax.vmap(bias.potential, (None, 0, None))
    replicas = grid.reshape(-1, *grid.shape[-2:])
    potential = np.asarray([per_node(replica, nodes, limit) for replica in replicas], np.float64)
    potential = potential.reshape(*grid.shape[:-2], nodes.size)
    return np.asarray(nodes, np.float64), potential - potential.min(axis=-1, keepdims=True)


def _finite(name: str, values: Any) -> np.ndarray:
    array = np.atleast_1d(as_numbers(name, values))
    if array.size == 0:
        raise ValueError(f"{name} is empty: record at least one step.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(array))} entries that are not finite.")
    return array
