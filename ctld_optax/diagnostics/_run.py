"""The run that a report looks at, and what a finding is.

A threshold has two parts: the deviation must be larger than healthy runs have it (a size, chosen from many of them), and more
than `SIGMAS` standard errors of what was recorded, in which correlated steps count by their autocorrelation time. So a short
run has findings only where they are plain.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax._ctld import ctld
from ctld_optax._dynamics import layers
from ctld_optax._dynamics.coupling import Hamiltonian
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax._dynamics.layers import Layers
from ctld_optax._validate import as_numbers, check_count, check_range
from ctld_optax.diagnostics._snapshot import Snapshot

SIGMAS = 4.0  # one false alarm in 16,000, for a figure that is normally distributed
SETTLING = 0.2  # the share of a run, its beginning, that figures of the steady state leave out
FEW = 20  # fewer rows than these say nothing


@dataclasses.dataclass(frozen=True)
class Finding:
    """One trouble.

    Attributes:
      name: one of the names in the table of `report`.
      says: what is wrong, in words and figures.
      advice: the knob to turn.
      figures: those that decided.

    Example:
      >>> alpha = np.zeros(50)
      >>> rows = ctld_optax.diagnostics.Snapshot(np.arange(50), *5 * [alpha], alpha, alpha + 9)
      >>> [finding.name for finding in ctld_optax.diagnostics.report(rows).findings]
      ['steps_skipped']
    """

    name: str
    says: str
    advice: str
    figures: Mapping[str, float]


class Run:
    """The rows of the sampling phase as float64 arrays of shape (replicas, rows), and the settings."""

    def __init__(
        self,
        trajectory: Snapshot,
        sampler: LangevinTransformation | None,
        value: Any,
        num_params: int | None,
        state: Any,
        initial_value: float | None,
        grads: Any,
    ) -> None:
        self.is_known = sampler is not None
        # Made here and not at import, which would start JAX's backend before the user can configure it.
        sampler = ctld(1.0, 0.0, key=0) if sampler is None else sampler
        columns = Snapshot(*(as_numbers(f"trajectory.{name}", array) for name, array in trajectory._asdict().items()))
        alpha = columns.alpha
        if alpha.ndim == 0 or alpha.size == 0:
            raise ValueError(f"report needs a trajectory, with time on the last axis; alpha has shape {alpha.shape}.")
        if num_params is not None:
            check_count("num_params", num_params, 1)
        value = None if value is None else as_numbers("value", value)
        if value is not None and value.shape != alpha.shape:
            raise ValueError(f"value must have the shape of the trajectory, {alpha.shape}, got {value.shape}.")
        if initial_value is not None:
            check_range("initial_value", initial_value)

        def rows(array: np.ndarray) -> np.ndarray:
            return array.reshape(-1, alpha.shape[-1])

        # After the hand-over, and on micro-steps, the sampler stands still.
        count = rows(columns.count)[0]
        self.shape = alpha.shape
        self.moved = moved = np.diff(count, prepend=count[0] - 1) > 0
        self.rows = Snapshot(*(rows(array)[:, moved] for array in columns))
        self.value = None if value is None else rows(value)[:, moved]
        self.value_after = None if value is None else rows(value)[:, np.flatnonzero(moved)[-1] + 1 :]
        self.count = self.rows.count[0]
        self.kernel = sampler.kernel
        self.num_params = num_params
        self.state = state
        self.initial_value = initial_value
        self.grads = grads
        self.replicas = len(self.rows.alpha)
        self.stride = max(float(self.count[-1] - self.count[0]) / max(self.count.size - 1, 1), 1.0)
        self.steps = self.stride * self.count.size
        self.settled = np.arange(self.count.size) >= SETTLING * self.count.size
        self.figures: dict[str, float] = {"steps": self.steps, "runs": float(self.replicas)}

    @property
    def has_temperature(self) -> bool:
        """Whether a base temperature is known, one for all layers."""
        return self.is_known and not isinstance(self.kernel.temperature, Layers)

    @property
    def temperature(self) -> np.ndarray:
        """The base temperature of each row, shape (rows,)."""
        steps = jnp.asarray(np.maximum(self.count - 1, 0), jnp.int32)
        return np.asarray(jax.vmap(lambda step: layers.at(self.kernel.temperature, step, (), jnp.float32))(steps), np.float64)

    @property
    def in_window(self) -> np.ndarray:
        """Settled rows at the base temperature, shape (replicas, rows)."""
        tempering = self.kernel.alpha.tempering
        at_base = tempering.in_window(self.rows.alpha) if tempering else np.ones_like(self.rows.alpha, bool)
        return at_base & self.settled

    @property
    def is_exact(self) -> bool:
        """Whether the coupling is that of a posterior sampler."""
        return isinstance(self.kernel.alpha.coupling, Hamiltonian)


def effective_size(rows: np.ndarray) -> float:
    """How many independent rows those of shape (replicas, rows) are worth: their number over the autocorrelation time.

    The sum of autocorrelations ends before the first pair of them that is not positive (Geyer, Statistical Science 7, 1992).
    """
    length = rows.shape[-1]
    spectrum = np.fft.rfft(rows - rows.mean(), 2 * length, axis=-1)
    covariance = np.fft.irfft(np.square(np.abs(spectrum)), 2 * length, axis=-1)[..., :length].mean(axis=0)
    if not covariance[0] > 0.0:
        return float(rows.size)
    pairs = (covariance[: length - length % 2] / covariance[0]).reshape(-1, 2).sum(axis=-1)
    end = int(np.argmax(pairs <= 0.0)) if np.any(pairs <= 0.0) else pairs.size
    return float(rows.size / max(2.0 * pairs[:end].sum() - 1.0, 1.0))
