"""What a report is made of: the run, its findings, and the checks of numbers, momenta, loss and energy.

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

from ctld_optax import diagnostics
from ctld_optax._coupling import Hamiltonian, Standardized
from ctld_optax._ctld import LangevinTransformation, ctld

SIGMAS = 4.0  # one false alarm in 16,000, for a figure that is normally distributed
SETTLING = 0.2  # the share of a run, its beginning, that figures of the steady state leave out
FEW = 20  # fewer rows than these say nothing


@dataclasses.dataclass(frozen=True)
class Finding:
    """One trouble."""

    name: str  # one of the names in the table of `report`
    says: str  # what is wrong, in words and figures
    advice: str  # the knob to turn
    figures: Mapping[str, float]  # those that decided


class Run:
    """The rows of the sampling phase as float64 arrays of shape (replicas, rows), and the settings."""

    def __init__(
        self,
        trajectory: diagnostics.Snapshot,
        sampler: LangevinTransformation | None,
        value: Any,
        num_params: int | None,
        state: Any,
        initial_value: float | None,
    ) -> None:
        self.is_known = sampler is not None
        # Made here and not at import, which would start JAX's backend before the user can configure it.
        sampler = ctld(1.0, 0.0, key=0) if sampler is None else sampler
        if not hasattr(sampler, "kernel"):
            name = type(sampler).__name__
            raise TypeError(f"sampler must be what `ctld` returned, the one that was given to `phase_switch`; got {name}.")
        alpha = np.asarray(trajectory.alpha)
        if alpha.ndim == 0 or alpha.size == 0:
            raise ValueError(f"report needs a trajectory, with time on the last axis; alpha has shape {alpha.shape}.")
        if value is not None and np.shape(value) != alpha.shape:
            raise ValueError(f"value must have the shape of the trajectory, {alpha.shape}, got {np.shape(value)}.")

        def rows(array: Any) -> np.ndarray:
            return np.asarray(array, np.float64).reshape(-1, alpha.shape[-1])

        # After the hand-over, and on micro-steps, the sampler stands still.
        count = rows(trajectory.count)[0]
        moved = np.diff(count, prepend=count[0] - 1) > 0
        self.rows = diagnostics.Snapshot(*(rows(array)[:, moved] for array in trajectory))
        self.value = None if value is None else rows(value)[:, moved]
        self.count = self.rows.count[0]
        self.kernel = sampler.kernel
        self.num_params = num_params
        self.state = state
        self.initial_value = initial_value
        self.replicas = len(self.rows.alpha)
        self.stride = max(float(self.count[-1] - self.count[0]) / max(self.count.size - 1, 1), 1.0)
        self.steps = self.stride * self.count.size
        self.settled = np.arange(self.count.size) >= SETTLING * self.count.size
        self.figures: dict[str, float] = {"steps": self.steps, "runs": float(self.replicas)}

    @property
    def temperature(self) -> np.ndarray:
        """The base temperature of each row, shape (rows,)."""
        steps = jnp.asarray(np.maximum(self.count - 1, 0), jnp.int32)
        return np.asarray(jax.vmap(lambda step: jnp.asarray(self.kernel.temperature(step), jnp.float32))(steps), np.float64)

    @property
    def in_window(self) -> np.ndarray:
        """Settled rows at the base temperature, shape (replicas, rows)."""
        tempering = self.kernel.tempering
        at_base = np.abs(self.rows.alpha) <= tempering.delta if tempering else np.ones_like(self.rows.alpha, bool)
        return at_base & self.settled

    @property
    def is_exact(self) -> bool:
        """Whether the coupling is that of a posterior sampler."""
        return isinstance(self.kernel.coupling, Hamiltonian)


def numbers(run: Run) -> Finding | None:
    """Were value and gradient finite?"""
    skipped = float(run.rows.skipped[:, -1].sum())
    share = skipped / max(run.count[-1] * run.replicas, 1.0)
    run.figures["share of steps skipped"] = share
    if skipped == 0:
        return None
    return Finding(
        "steps_skipped",
        f"in {skipped:,.0f} steps ({share:.2%}) the value or the gradient was not finite.",
        "lower learning_rate or temperature, or clip the gradient before the sampler: optax.chain("
        "optax.clip_by_global_norm(...), sampler). If it happens whatever they are, look at the data.",
        {"skipped": skipped, "share": share},
    )


def momenta(run: Run) -> Finding | str | None:
    """Is the kinetic energy in the window what the noise makes it?"""
    if not run.is_known or run.num_params is None:
        return "the kinetic temperature: it needs sampler and num_params."
    base = np.broadcast_to(run.temperature, run.rows.alpha.shape)
    rows = run.in_window & (base > 0.0)
    if rows.sum() < FEW:
        return f"the kinetic temperature: {rows.sum()} settled rows at the base temperature are too few."
    base = np.where(base > 0.0, base, 1.0)
    target = diagnostics.kinetic_temperature_target(base, float(run.kernel.momentum), run.rows.beta)
    ratio = diagnostics.kinetic_temperature(run.rows.kinetic_energy, run.num_params) / target
    # In the window only: elsewhere the target moves, and the momenta lag behind. All rows tell how correlated they are.
    mean, settled = float(ratio[rows].mean()), ratio[:, run.settled]
    error = float(np.sqrt(2.0 / run.num_params / (effective_size(settled) * rows.sum() / settled.size)))
    run.figures["kinetic temperature / target"] = mean
    # Healthy networks have 1.01 to 1.05, and a force heats by 1 / (1 - l U'' / (2 (1 + mu))): a quarter is l U'' = 0.76.
    if abs(mean - 1.0) < max(0.25, SIGMAS * error):
        return None
    if mean > 1.0:
        says = f"the momenta are {mean:,.3g} times as hot as the injected noise alone makes them: minibatches or gradients do."
        advice = (
            "a lower learning_rate or larger minibatches; gradient_noise=RunningNoise(), which injects that much less; or a "
            "higher temperature, since this one is not the one you have."
        )
    else:
        says = f"the momenta have {mean:,.3g} of the temperature that the injected noise gives them."
        advice = "num_params must count the parameters that move, and sampler be the one of the run."
    return Finding("kinetic_temperature", says, advice, {"ratio": mean, "error": error})


def loss(run: Run) -> Finding | str | None:
    """Did the loss come down? Asked of explorers only: a posterior may well be started at its mode."""
    if run.is_exact:
        return None
    if run.value is None:
        return "the loss: it needs value."
    early = run.value[:, run.count <= 3] if run.initial_value is None else np.asarray([run.initial_value])
    late = run.value.T[run.in_window.T]  # in the order of time
    late = late[-max(late.size // 4, FEW) :]
    early, late = early[np.isfinite(early)], late[np.isfinite(late)]
    if early.size == 0 or early.mean() <= 0.0 or late.size < FEW:
        return "the loss: it needs values > 0 from the first step on (or initial_value), and late ones at the base temperature."
    start, end = float(early.mean()), float(late.mean())
    run.figures |= {"loss at the start": start, "loss late, in the window": end}
    # On a plateau, too, a loss falls by parts of a percent; that it is less than a tenth must be sure. The first values may
    # scatter because they fall, the late ones because they are hot: the scatter of minibatches is the smaller of the two.
    minibatch = min(early.std(), late.std()) if early.size > 1 else late.std()
    error = np.hypot(minibatch / np.sqrt(early.size), late.std() / np.sqrt(effective_size(late[None])))
    if end < 0.98 * start or end - 0.9 * start < SIGMAS * error:
        return None
    heat = 0.5 * (run.num_params or 0) * float(run.temperature.mean()) if run.is_known else 0.0
    says = f"the loss began with {start:.3g} and is {end:.3g} at the base temperature"
    figures = {"start": start, "end": end, "heat": heat}
    if run.num_params and heat > start:
        return Finding(
            "temperature_too_hot",
            f"{says}; by equipartition the noise alone adds about d T / 2 = {heat:.3g}.",
            f"a lower temperature: begin where d T / 2 is a tenth of the loss, with {0.2 * start / run.num_params:.1g}.",
            figures,
        )
    return Finding(
        "loss_not_falling",
        f"{says}" + (f"; the noise, d T / 2 = {heat:.3g}, is less than that." if heat else "."),
        "three times the temperature, or more sampling_steps, or another learning_rate. Where d T / 2 is near the loss "
        "already, a third of the temperature.",
        figures,
    )


def energy(run: Run) -> Finding | str | None:
    """Is the energy that drives alpha what its running mean and deviation say?"""
    if run.kernel.tempering is None:
        return None
    if run.value is None:
        return "the energy: it needs value."
    with np.errstate(divide="ignore", invalid="ignore"):
        score = (run.value + run.rows.kinetic_energy - run.rows.energy_mean) / np.sqrt(run.rows.energy_var)
    score = np.where(np.isfinite(score), score, 0.0)[:, run.settled]
    if score.size < FEW:
        return f"the energy: {score.size} rows are too few."
    if isinstance(run.kernel.coupling, Standardized):
        clip = run.kernel.coupling.clip
        clipped = np.abs(score) >= clip
        share = float(clipped.mean())
        run.figures["share of energies clipped"] = share
        # Chebyshev allows 4 %, a Gaussian 6e-7; healthy runs have 0.2 %, of alpha's fastest moves.
        if share > 0.01 and clipped.sum() >= 10:
            return Finding(
                "energy_outliers",
                f"{share:.1%} of the energies are {clip:g} deviations and more from their mean: the others hardly move alpha.",
                "a loss without outliers: larger minibatches, clipped or robust losses, a lower learning_rate.",
                {"share": share},
            )
    drift = float(score.mean())
    run.figures["energy - running mean, deviations"] = drift
    # A steady ramp is one deviation off, whatever its slope, because the mean and the deviation of an exponential memory are
    # equal. Healthy runs have 0.15 at most.
    if abs(drift) < max(0.5, SIGMAS / np.sqrt(effective_size(score))):
        return None
    way = "falls" if drift < 0.0 else "rises"
    return Finding(
        "energy_drifting",
        f"the energy {way} faster than its running mean follows, by {drift:+.2f} deviations: alpha answers to the trend.",
        "a longer run or a higher learning_rate, so that most steps come after the fall."
        if drift < 0.0
        else "a lower learning_rate or temperature: the run goes uphill.",
        {"drift": drift},
    )


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
