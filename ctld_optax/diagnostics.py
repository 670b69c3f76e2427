"""Pure readers of a state or of a recorded trajectory: did alpha do what it should, and how hot was it?

Record a trajectory with :func:`snapshot` inside `lax.scan` (or in a Python loop, stacked afterwards)::

    def step(carry, batch):
        ...
        return carry, ctld_optax.diagnostics.snapshot(opt_state)

    carry, trajectory = jax.lax.scan(step, carry, batches)

The functions on trajectories take arrays with time on the last axis and any number of replica axes before it, pool
over all of them, and work in float64 NumPy.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from ctld_optax._adaptive_force import AdaptiveBiasingForce
from ctld_optax._ctld import CTLDState
from ctld_optax._metadynamics import Metadynamics
from ctld_optax._tempering import PolynomialTempering
from ctld_optax._validate import check_count


class Snapshot(NamedTuple):
    """The scalars of a :class:`~ctld_optax.CTLDState`, cheap enough to record at every step."""

    count: Any  # int32: number of sampling steps made
    alpha: Any  # tempering variable
    r_alpha: Any  # its momentum
    beta: Any  # g(alpha); the temperature is the base temperature over beta
    kinetic_energy: Any  # in units of value
    energy_mean: Any  # running mean of value + kinetic energy, in units of value
    energy_var: Any  # its running variance
    skipped: Any  # int32: steps skipped so far because value or gradient was not finite


def snapshot(state: Any) -> Snapshot:
    """The scalars of the one `CTLDState` inside `state`, however deep it is wrapped.

    Args:
      state: a `CTLDState`, or the state of `phase_switch`, `optax.chain`, `optax.MultiSteps`, ... around one.

    Raises:
      ValueError: if there is no `CTLDState` in it, or more than one.
    """
    found = ctld_state(state)
    # The leaf: in an `nnx.Optimizer` each array stands in a box of its own.
    return Snapshot(**{name: jax.tree.leaves(getattr(found, name))[0] for name in Snapshot._fields})


def ctld_state(state: Any) -> CTLDState:
    """The one `CTLDState` inside `state`, however deep it is wrapped.

    Raises:
      ValueError: if there is none, or more than one.
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, CTLDState))
    found = [leaf for leaf in leaves if isinstance(leaf, CTLDState)]
    if len(found) != 1:
        raise ValueError(
            f"exactly one CTLDState is needed in the state, found {len(found)} in a {type(state).__name__}. "
            "Pass the part that holds the one you mean."
        )
    return found[0]


def temperature(trajectory: Snapshot) -> np.ndarray:
    """1/beta: the temperature of each step in units of the base temperature, same shape as `trajectory.beta`."""
    return 1.0 / np.asarray(trajectory.beta, np.float64)


def kinetic_temperature(kinetic_energy: Any, num_params: int) -> np.ndarray:
    """2 K / d: the temperature that the momenta show, in units of `value`; compare :func:`kinetic_temperature_target`.

    Args:
      kinetic_energy: `Snapshot.kinetic_energy`, any shape.
      num_params: d >= 1, the number of parameters (not of arrays).
    """
    check_count("num_params", num_params, 1)
    return 2.0 * np.asarray(kinetic_energy, np.float64) / num_params


def kinetic_temperature_target(temperature: Any, momentum: float, beta: Any = 1.0) -> np.ndarray:
    """2 T / ((1 + momentum) beta): what :func:`kinetic_temperature` settles at.

    The discrete recursion runs hot in the momentum by 2 / (1 + momentum), 5 % at momentum 0.9, where it follows forces that are
    small over 1/(1 - momentum) steps. The parameters do not.
    """
    return 2.0 * np.asarray(temperature, np.float64) / ((1.0 + momentum) * np.asarray(beta, np.float64))


def alpha_histogram(alpha: Any, delta_prime: float = 1.5, bins: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Density of alpha on equal bins of [-delta_prime, delta_prime], and their edges; steps outside do not count.

    Returns:
      density, shape (bins,), which integrates to 1 (all zeros if every step is outside), and edges, shape (bins + 1,).
    """
    counts, edges = np.histogram(_finite("alpha", alpha), bins=bins, range=(-delta_prime, delta_prime))
    return counts / max(counts.sum(), 1) / (edges[1] - edges[0]), edges


def alpha_kl_from_uniform(alpha: Any, delta_prime: float = 1.5, bins: int = 15) -> float:
    """Kullback-Leibler divergence of the histogram of alpha from the uniform density, in nats, >= 0.

    Of a uniform alpha it is about (bins - 1) / (2 * number of independent samples).
    """
    density, edges = alpha_histogram(alpha, delta_prime, bins)
    share = density * np.diff(edges)
    share = share[share > 0.0]
    return float(np.sum(share * np.log(share * bins))) if share.size else float("inf")


def fraction_in_window(alpha: Any, delta: float = 0.4) -> float:
    """Share of steps with |alpha| <= delta, those at the base temperature; delta / delta_prime for a uniform alpha."""
    return float(np.mean(np.abs(_finite("alpha", alpha)) <= delta))


def fraction_outside(alpha: Any, delta_prime: float = 1.5) -> float:
    """Share of steps with |alpha| > delta_prime; 0 with reflecting walls."""
    return float(np.mean(np.abs(_finite("alpha", alpha)) > delta_prime))


def round_trips(alpha: Any, delta: float = 0.4, delta_prime: float = 1.5) -> int:
    """How often alpha went from the window to the hot end and back, summed over replicas.

    The window is |alpha| <= delta, the hot end the outer tenth of the way from delta to delta_prime, on either side.
    """
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


def bias_potential(
    state: Any, bias: Metadynamics | AdaptiveBiasingForce, tempering: PolynomialTempering | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The bias potential on its nodes, with its minimum at 0.

    Args:
      state: a state with one `CTLDState` in it.
      bias: the configuration that was given to `ctld`.
      tempering: likewise; None is the default one.

    Returns:
      alpha, shape (num_bins + 1,), and V_b in units of k_B T_c, shape (..., num_bins + 1).
    """
    grid = ctld_state(state).bias
    limit = (tempering or PolynomialTempering()).delta_prime
    nodes = bias.nodes(limit)
    per_node = jax.vmap(bias.potential, (None, 0, None))
    replicas = grid.reshape(-1, *grid.shape[-2:])
    potential = np.asarray([per_node(replica, nodes, limit) for replica in replicas], np.float64)
    potential = potential.reshape(*grid.shape[:-2], nodes.size)
    return np.asarray(nodes, np.float64), potential - potential.min(axis=-1, keepdims=True)


def _finite(name: str, values: Any) -> np.ndarray:
    array = np.atleast_1d(np.asarray(values, np.float64))
    if array.size == 0:
        raise ValueError(f"{name} is empty: record at least one step.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(array))} entries that are not finite.")
    return array


# Last, for they are made of what is above.
from ctld_optax._checks import Finding  # noqa: E402
from ctld_optax._report import Report, report  # noqa: E402

__all__ = [
    "Finding",
    "Report",
    "Snapshot",
    "alpha_histogram",
    "alpha_kl_from_uniform",
    "bias_potential",
    "ctld_state",
    "fraction_in_window",
    "fraction_outside",
    "kinetic_temperature",
    "kinetic_temperature_target",
    "report",
    "round_trips",
    "snapshot",
    "temperature",
]
