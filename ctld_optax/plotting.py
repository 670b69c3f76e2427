"""The pictures, on Matplotlib axes (`pip install ctld-optax[plot]`).

Every function draws on `ax` (the current axes if None), returns it, and leaves titles and saving to the caller.
Colours are from
Okabe and Ito's palette, which colour-blind readers can tell apart.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ctld_optax import diagnostics
from ctld_optax._adaptive_force import AdaptiveBiasingForce
from ctld_optax._metadynamics import Metadynamics
from ctld_optax._tempering import PolynomialTempering

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)  # yellow is too pale for a line


def temperature_trajectory(
    beta: Any,
    *,
    switch_step: int | None = None,
    tempering: PolynomialTempering | None = None,
    ax: Axes | None = None,
    color: str = VERMILLION,
) -> Axes:
    """1/g(alpha) over the steps of one run, with the range it can have and the step of the hand-over.

    Args:
      beta: g(alpha) at each step, shape (steps,), for example `trajectory.beta`.
      switch_step: `sampling_steps`, if the run went on after sampling; what follows is drawn as zero noise.
      tempering: the one given to `ctld`; None is the default one.
      ax: where to draw.
      color: of the line.
    """
    ax = plt.gca() if ax is None else ax
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 1:
        raise ValueError(f"temperature_trajectory draws one run: beta must have shape (steps,), got {beta.shape}.")
    sampled = beta if switch_step is None else beta[:switch_step]
    ax.plot(np.arange(1, sampled.size + 1), 1.0 / sampled, color=color, linewidth=0.9)
    hottest = 1.0 / (1.0 - (tempering or PolynomialTempering()).strength)
    for level, label in ((1.0, "base"), (hottest, "hottest")):
        ax.axhline(level, color="0.6", linewidth=0.7, linestyle=":")
        ax.annotate(label, (1.0, level), xycoords=("axes fraction", "data"), xytext=(-3, 2), textcoords="offset points",
                    ha="right", va="bottom", color="0.4", fontsize="small")  # fmt: skip
    if switch_step is not None and beta.size > switch_step:
        ax.plot([switch_step, beta.size], [0.0, 0.0], color=color, linewidth=1.6)
        mark_switch(switch_step, ax=ax)
    ax.set(xlabel="step", ylabel=r"temperature $1/g(\alpha)$  [base $T$]", ylim=(-0.25, hottest * 1.12))
    return ax


def mark_switch(switch_step: int, *, ax: Axes | None = None, label: str = "hand-over to SGD-M") -> Axes:
    """A dashed vertical line where sampling ends, with a label."""
    ax = plt.gca() if ax is None else ax
    ax.axvline(switch_step, color="0.25", linewidth=0.9, linestyle="--")
    ax.annotate(label, (switch_step, 0.5), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
                rotation=90, va="center", ha="left", color="0.25", fontsize="small")  # fmt: skip
    return ax


def alpha_occupation(
    alpha: Any,
    *,
    tempering: PolynomialTempering | None = None,
    bins: int = 15,
    ax: Axes | None = None,
    color: str = BLUE,
) -> Axes:
    """Histogram of alpha against the uniform density, with the window |alpha| <= delta shaded.

    Args:
      alpha: any shape; all entries are pooled.
      tempering: the one given to `ctld`; None is the default one.
      bins: number of equal bins.
      ax: where to draw.
      color: of the bars.
    """
    ax = plt.gca() if ax is None else ax
    tempering = tempering or PolynomialTempering()
    limit = tempering.delta_prime
    density, edges = diagnostics.alpha_histogram(alpha, limit, bins)
    ax.axvspan(-tempering.delta, tempering.delta, color=SKY, alpha=0.25, linewidth=0, label=r"window $|\alpha|\leq\delta$")
    ax.stairs(density, edges, fill=True, color=color, alpha=0.55)
    ax.stairs(density, edges, color=color, linewidth=1.0, label="visited")
    ax.plot([-limit, limit], 2 * [0.5 / limit], color="0.15", linestyle="--", linewidth=1.2, label="uniform")
    ax.set(
        xlabel=r"tempering variable $\alpha$", ylabel="density", xlim=(-limit, limit), ylim=(0.0, max(1.5 * density.max(), 0.5))
    )
    return ax


def bias_potential(
    state: Any,
    bias: Metadynamics | AdaptiveBiasingForce,
    *,
    tempering: PolynomialTempering | None = None,
    ax: Axes | None = None,
    color: str = GREEN,
) -> Axes:
    """V_b over alpha in units of k_B T_c, its minimum at 0; where it implies one, also the free energy F = -log p(alpha)."""
    ax = plt.gca() if ax is None else ax
    alpha, potential = diagnostics.bias_potential(state, bias, tempering)
    ax.plot(alpha, potential, color=color, label=r"bias $V_b$")
    # In the end V_b = -F for a mean force, -(1 - 1/bias_factor) F for well-tempered hills; plain hills never settle.
    settles = not isinstance(bias, Metadynamics) or bias.bias_factor is not None
    if settles:
        factor = bias.bias_factor if isinstance(bias, Metadynamics) else None
        free_energy = -potential if factor is None else -potential * factor / (factor - 1.0)
        ax.plot(alpha, free_energy - free_energy.min(), color=PURPLE, linestyle="--", label=r"free energy $F$ implied")
    ax.set(xlabel=r"tempering variable $\alpha$", ylabel=r"energy  [$k_B T_c$]")
    return ax
