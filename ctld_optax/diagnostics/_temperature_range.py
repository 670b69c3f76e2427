"""What a temperature range test says: the base temperature, or why there is none to be read."""

import dataclasses
from typing import Any

import numpy as np

from ctld_optax._checked import checked
from ctld_optax._validate import as_numbers, check_range
from ctld_optax.diagnostics._run import SIGMAS, Finding

BINS = 60  # stretches of the ramp, a median loss each
FEW_A_BIN = 5  # steps in a stretch: with fewer there is no median to speak of
CLEAR = 0.05  # a fall or a rise is one from this share of the loss at the start on
EARLY = 30.0  # how far below the lowest loss's temperature noise counts as too weak to have made a fall
TRAINED = "falls_without_noise"  # the one finding that leaves the suggestion standing
LARGE = 1e30  # losses beyond it count as this, and their squares have a float
MARGIN = 4.0
NARROW = 3  # stretches near the bottom of a valley: a ramp that runs through it in fewer gives the loss no time to follow


@dataclasses.dataclass(frozen=True)
class TemperatureRange:
    """What :func:`suggest_temperature` found.

    Attributes:
      temperature: the base temperature to take, or None if the ramp does not show one.
      lowest: T*, the temperature at which the smoothed loss was lowest.
      findings: what speaks against it; none in a clear case.
      temperatures: shape (stretches,): in the middle of each stretch of the ramp.
      losses: shape (stretches,): smoothed; infinite from the step on at which the run diverged.

    Example:
      >>> temperatures = np.geomspace(1e-6, 1e-2, 3_000)
      >>> losses = 2.0 / (1.0 + (temperatures / 1e-4) ** 2) + 0.1 * (temperatures / 1e-3) ** 2
      >>> print(ctld_optax.diagnostics.suggest_temperature(losses, temperatures))
      temperature 2.6e-05: the loss was lowest, 0.091, at 0.00068
    """

    temperature: float | None
    lowest: float
    findings: tuple[Finding, ...]
    temperatures: np.ndarray
    losses: np.ndarray

    def __str__(self) -> str:
        suggestion = "no temperature" if self.temperature is None else f"temperature {self.temperature:.2g}"
        lines = [f"{suggestion}: the loss was lowest, {self.losses.min():.2g}, at {self.lowest:.2g}"]
        lines += [f"{finding.name}: {finding.says} Do: {finding.advice}" for finding in self.findings]
        return "\n".join(lines)


@checked()
def suggest_temperature(losses: Any, temperatures: Any, strength: float = 0.85) -> TemperatureRange:
    r"""The base temperature that a run on :func:`ctld_optax.temperature_ramp` speaks for.

    .. math:: T = T^* (1 - S) / 4

    with T* where the smoothed loss is lowest and S the strength of the tempering, so that the hottest temperature, T/(1 - S),
    is a quarter of what just did not hurt yet: the ramp was there for a moment, a run stays, and a base temperature that is
    too hot costs more than one that is too cold. The loss is smoothed as its median over 60 equal stretches of the ramp, each
    averaged with its neighbours. Single losses that are not finite are left out, and so is all that follows the last finite
    one.

    =====================  ============================================================================================
    finding                when
    =====================  ============================================================================================
    no_fall                the loss never fell below that at the cold end: the ramp begins too hot, or noise does not help
    no_rise                it fell, and had not risen again when the ramp ended: the ramp is not hot enough
    too_short              there are fewer than 300 losses; or the fall is lost in their noise; or it fell and rose again within
                           three stretches, so that it could not follow the temperature
    falls_without_noise    most of the fall came while the temperature was below T*/30: it is training that lowers the loss,
                           and the temperature is the most that does not disturb it
    =====================  ============================================================================================

    With any of the first three there is no suggestion.

    Args:
      losses: those of the minibatches, shape (steps,).
      temperatures: of the same steps, > 0 and not falling.
      strength: S in [0, 1), of the `PolynomialTempering` that will be used; 0 for a constant temperature.

    Returns:
      A :class:`TemperatureRange`; print it.

    Raises:
      TypeError, ValueError: for arrays of another kind or shape, temperatures that fall, a strength out of range, or if no
        loss is finite.

    Source: none. Measured by `python -m benchmarks.temperature_range`: with 4, each of three ramps on each of six networks
    speaks for a temperature that trains it well. With 2, two ramps on the 20-layer network ended 1.1 times too hot.

    Example:
      >>> temperatures = np.geomspace(1e-6, 1e-2, 3_000)  # of ctld_optax.temperature_ramp
      >>> losses = 2.0 / (1.0 + (temperatures / 1e-4) ** 2) + 0.1 * (temperatures / 1e-3) ** 2
      >>> round(ctld_optax.diagnostics.suggest_temperature(losses, temperatures).temperature, 6)
      2.6e-05
    """
    check_range("strength", strength, minimum=0.0, maximum=1.0, maximum_open=True)
    losses, temperatures = as_numbers("losses", losses), as_numbers("temperatures", temperatures)
    if losses.ndim != 1 or losses.size == 0:
        raise ValueError(f"losses must be those of one run, shape (steps,), got {losses.shape}.")
    if temperatures.shape != losses.shape:
        raise ValueError(f"temperatures must be one for each of the losses, shape {losses.shape}, got {temperatures.shape}.")
    if not (np.isfinite(temperatures).all() and (temperatures > 0.0).all() and (np.diff(temperatures) >= 0.0).all()):
        raise ValueError("temperatures must be finite, > 0 and not falling, as those of temperature_ramp are.")
    if not np.isfinite(losses).any():
        raise ValueError("losses must be finite somewhere: this run diverged at its first step. Begin the ramp colder.")

    smooth, error = _smoothed(losses)
    middle = np.exp(np.array([stretch.mean() for stretch in np.array_split(np.log(temperatures), smooth.size)]))
    at = int(np.argmin(smooth))
    finding = _trouble(smooth, error, middle, at, losses.size)
    lowest = float(middle[at])
    is_shown = finding is None or finding.name == TRAINED
    suggestion = lowest * (1.0 - strength) / MARGIN if is_shown else None
    return TemperatureRange(suggestion, lowest, () if finding is None else (finding,), middle, smooth)


def _smoothed(losses: np.ndarray) -> tuple[np.ndarray, float]:
    """The median loss of each stretch, averaged with its neighbours, and the standard error of such a median."""
    known = np.where(np.isfinite(losses), np.clip(losses, -LARGE, LARGE), np.nan)
    stretches = np.array_split(known, min(BINS, losses.size))
    # A stretch in which the run diverges for good is no median of anything, and what follows is none either.
    ends = np.cumsum([stretch.size for stretch in stretches])
    whole = max(int(np.count_nonzero(ends <= np.flatnonzero(~np.isnan(known))[-1] + 1)), 1)
    sizes = np.array([np.count_nonzero(~np.isnan(stretch)) for stretch in stretches[:whole]])
    seen = np.flatnonzero(sizes)
    medians = [np.nanmedian(stretches[place]) for place in seen]
    spreads = [np.nanmedian(np.abs(stretches[place] - m)) for place, m in zip(seen, medians, strict=True)]
    errors = 1.25 * 1.48 * np.asarray(spreads) / np.sqrt(sizes[seen])  # of a normal median; spikes do not count
    padded = np.pad(np.interp(np.arange(whole), seen, medians), 1, "edge")
    smooth = np.convolve(padded, [0.25, 0.5, 0.25], "valid")
    return np.concatenate([smooth, np.full(len(stretches) - whole, np.inf)]), float(np.median(errors))


def _trouble(smooth: np.ndarray, error: float, middle: np.ndarray, at: int, size: int) -> Finding | None:
    """The first that is wrong, of what hides the rest."""
    start, bottom = float(smooth[0]), float(smooth[at])
    fall, rise = start - bottom, float(smooth[at:].max()) - bottom
    of_start = CLEAR * abs(start)
    clear = max(of_start, SIGMAS * error)
    near = int(np.count_nonzero(smooth < bottom + 0.25 * min(fall, rise)))
    cold = middle[at] / EARLY
    early = start - float(smooth[middle < cold].min(initial=start))
    troubles = (
        (
            size < FEW_A_BIN * BINS,
            "too_short",
            f"{size} losses are too few for {BINS} medians of {FEW_A_BIN}.",
            "as many steps as you will sample for.",
        ),
        (
            fall < of_start,
            "no_fall",
            f"the loss never fell below the {start:.3g} of the cold end.",
            "a smaller low, or more steps; if that changes nothing, noise does not help here.",
        ),
        (
            fall < clear,
            "too_short",
            f"the fall, {fall:.2g}, is lost in the noise of the losses, {error:.2g} in each median.",
            "more steps, or larger minibatches.",
        ),
        (
            rise < clear,
            "no_rise",
            f"the loss fell by {fall:.2g} and had not risen again at the hot end.",
            "a high that is ten times as hot.",
        ),
        (
            near < NARROW,
            "too_short",
            f"the loss fell and rose again within {near} of {smooth.size} stretches of the ramp: it could not follow.",
            "three times the steps, or fewer decades.",
        ),
        (
            early > max(0.5 * fall, clear),
            TRAINED,
            f"of a fall of {fall:.2g}, {early:.2g} came below {cold:.2g}: training lowers this loss without noise.",
            "take the temperature as the most to try; SGD with momentum may do as well.",
        ),
    )
    figures = {"steps": float(size), "fall": fall, "rise": rise, "error": error, "stretches": float(near), "early": early}
    return next((Finding(name, says, advice, figures) for is_so, name, says, advice in troubles if is_so), None)
