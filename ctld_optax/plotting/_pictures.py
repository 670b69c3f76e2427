"""One picture a function, on the axes it is given."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ctld_optax import diagnostics
from ctld_optax._checked import checked
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.integrators import IntegratorName
from ctld_optax._dynamics.metadynamics import Metadynamics
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._validate import as_numbers, check_count, check_range

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
# For `plt.rcParams.update` or `plt.rc_context`: the style of the project's own pictures.
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


@checked()
def temperature_trajectory(
    beta: Any,
    *,
    step: Any = None,
    switch_step: int | None = None,
    tempering: PolynomialTempering | None = None,
    ax: Axes | None = None,
    color: str = VERMILLION,
) -> Axes:
    """1/g(alpha) over the steps of one run, with the range it can have and the step of the hand-over.

    Args:
      beta: g(alpha) at each step, shape (steps,), for example `trajectory.beta`.
      step: number of each step, likewise, if not every step is there; None: 1, 2, 3, ...
      switch_step: `sampling_steps`, if the run went on after sampling; what follows is drawn as zero noise.
      tempering: the one given to `ctld`; None is the default one.
      ax: where to draw.
      color: of the line.

    Example:
      >>> beta = 0.575 + 0.425 * np.cos(np.linspace(0.0, 60.0, 1_000))
      >>> ax = ctld_optax.plotting.temperature_trajectory(beta, switch_step=800)
    """
    ax = plt.gca() if ax is None else ax
    beta = one_run("temperature_trajectory", beta=beta)[0]
    step = steps(step, beta)
    if switch_step is not None:
        check_count("switch_step", switch_step, 0)
    last = step[-1] if switch_step is None else switch_step
    ax.plot(step[step <= last], 1.0 / beta[step <= last], color=color, linewidth=0.9, label="temperature")
    hottest = 1.0 / (1.0 - (tempering or PolynomialTempering()).strength)
    for level, label, below in ((1.0, "base", True), (hottest, "hottest", False)):  # on the sides where no line is
        ax.axhline(level, color="0.6", linewidth=0.7, linestyle=":")
        ax.annotate(label, (1.0, level), xycoords=("axes fraction", "data"), xytext=(-3, -2 if below else 2),
                    textcoords="offset points", ha="right", va="top" if below else "bottom", color="0.4",
                    fontsize="small")  # fmt: skip
    if switch_step is not None and step[-1] > switch_step:
        ax.plot([switch_step, step[-1]], [0.0, 0.0], color=color, linewidth=1.6)
        mark_switch(switch_step, ax=ax)
    ax.set(xlabel="step", ylabel=r"temperature $1/g(\alpha)$  [base $T$]", ylim=(-0.25, hottest * 1.12))
    return ax


@checked()
def mark_switch(switch_step: int, *, ax: Axes | None = None, label: str = "hand-over to SGD-M") -> Axes:
    """A dashed vertical line where sampling ends, with a label.

    Example:
      >>> ax = ctld_optax.plotting.mark_switch(800)
    """
    ax = plt.gca() if ax is None else ax
    check_count("switch_step", switch_step, 0)
    ax.axvline(switch_step, color="0.25", linewidth=0.9, linestyle="--")
    ax.annotate(label, (switch_step, 0.5), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
                rotation=90, va="center", ha="left", color="0.25", fontsize="small")  # fmt: skip
    return ax


@checked()
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

    Example:
      >>> alpha = 1.5 * np.sin(np.linspace(0.0, 60.0, 1_000))  # a recorded walk
      >>> ax = ctld_optax.plotting.alpha_occupation(alpha)
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


@checked()
def bias_potential(
    state: Any,
    bias: Bias,
    *,
    tempering: PolynomialTempering | None = None,
    ax: Axes | None = None,
    color: str = GREEN,
) -> Axes:
    """V_b over alpha in units of k_B T_c, its minimum at 0; where it implies one, also the free energy F = -log p(alpha).

    Example:
      >>> bias = ctld_optax.Metadynamics()
      >>> state = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias).init(jnp.ones(3))
      >>> ax = ctld_optax.plotting.bias_potential(state, bias)
    """
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


@checked()
def kinetic_temperature(
    trajectory: diagnostics.Snapshot,
    num_params: int,
    temperature: float,
    momentum: float = 0.9,
    *,
    integrator: IntegratorName = "baoab",
    step: Any = None,
    ax: Axes | None = None,
    color: str = BLUE,
) -> Axes:
    """2 K / d over the steps of one run against what it settles at, T / g(alpha); Euler's order, hotter.

    The band is two standard deviations of a single step, 2 sqrt(2/d) of the target: with few parameters it is wide.
    Momenta remember 1/(1 - momentum) steps, and so lag behind a moving target.

    Args:
      trajectory: of one run, fields of shape (steps,); draw a stretch with `jax.tree.map(lambda x: x[a:b], trajectory)`.
      num_params: d, how many parameters there are (not arrays).
      temperature: T > 0, as given to `ctld`.
      momentum: likewise.
      integrator: likewise.
      step: as in :func:`temperature_trajectory`.
      ax: where to draw.
      color: of the measured line.

    Example:
      >>> rows = np.ones(100)
      >>> trajectory = ctld_optax.diagnostics.Snapshot(*8 * [rows])
      >>> ax = ctld_optax.plotting.kinetic_temperature(trajectory, 50, temperature=0.04)
    """
    ax = plt.gca() if ax is None else ax
    kinetic_energy, beta = one_run("kinetic_temperature", kinetic_energy=trajectory.kinetic_energy, beta=trajectory.beta)
    step = steps(step, beta)
    check_range("temperature", temperature, minimum=0.0, minimum_open=True)
    check_count("num_params", num_params, 1)
    target = diagnostics.kinetic_temperature_target(temperature, momentum, beta, integrator=integrator)
    spread = 2.0 * np.sqrt(2.0 / num_params)
    low, high = target * max(1.0 - spread, 0.0), target * (1.0 + spread)
    ax.fill_between(step, low, high, color=ORANGE, alpha=0.3, linewidth=0, label="two standard deviations")
    measured = diagnostics.kinetic_temperature(kinetic_energy, num_params)
    ax.plot(step, measured, color=color, linewidth=0.9, label="measured")
    ax.plot(step, target, color="0.15", linewidth=1.1, linestyle="--", label="target")
    ax.set(xlabel="step", ylabel=r"kinetic temperature $2K/d$  [units of value]")
    ax.set_ylim(bottom=0.0)
    return ax


@checked()
def phase_portrait(
    alpha: Any,
    r_alpha: Any,
    *,
    tempering: PolynomialTempering | None = None,
    max_points: int = 10_000,
    ax: Axes | None = None,
    cmap: str = "cividis",
) -> Axes:
    """Where (alpha, r_alpha) has been: one point a step, coloured by its temperature, with the window shaded.

    In equilibrium alpha is uniform and r_alpha ~ N(0, 1) whatever alpha is; the dotted lines at -2 and 2 hold 95 % of it.

    Args:
      alpha: any shape; all entries are pooled.
      r_alpha: its momentum, same shape.
      tempering: the one given to `ctld`; None is the default one.
      max_points: more than these are thinned out evenly.
      ax: where to draw.
      cmap: Matplotlib colour map of the temperature 1/g(alpha).

    Example:
      >>> alpha = 1.5 * np.sin(np.linspace(0.0, 60.0, 1_000))  # a recorded walk
      >>> ax = ctld_optax.plotting.phase_portrait(alpha, np.cos(np.linspace(0.0, 60.0, 1_000)))
    """
    ax = plt.gca() if ax is None else ax
    tempering = tempering or PolynomialTempering()
    limit = tempering.delta_prime
    alpha, r_alpha = np.ravel(as_numbers("alpha", alpha)), np.ravel(as_numbers("r_alpha", r_alpha))
    if alpha.shape != r_alpha.shape:
        raise ValueError(f"alpha and r_alpha must have the same number of entries, got {alpha.size} and {r_alpha.size}.")
    chosen = thinned(alpha.size, max_points)
    alpha, r_alpha = alpha[chosen], r_alpha[chosen]
    ax.axvspan(-tempering.delta, tempering.delta, color=SKY, alpha=0.25, linewidth=0, label=r"window $|\alpha|\leq\delta$")
    points = ax.scatter(
        alpha,
        r_alpha,
        c=1.0 / np.asarray(tempering.beta(jnp.asarray(alpha))),
        s=4.0,
        cmap=cmap,
        vmin=1.0,
        vmax=1.0 / (1.0 - tempering.strength),
        linewidths=0.0,
        rasterized=True,
    )
    for level in (-2.0, 2.0):
        ax.axhline(level, color="0.4", linewidth=0.9, linestyle=":")
    figure = ax.figure
    figure.colorbar(points, ax=ax, label=r"temperature $1/g(\alpha)$  [base $T$]")
    reach = max(3.5, 1.05 * float(np.abs(r_alpha).max(initial=0.0)))
    ax.set(xlabel=r"tempering variable $\alpha$", ylabel=r"its momentum $r_\alpha$", xlim=(-limit, limit), ylim=(-reach, reach))
    return ax


@checked()
def sample_cloud(
    samples: Any,
    *,
    energy: Callable[[jax.Array], jax.Array] | None = None,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    max_points: int = 5_000,
    ax: Axes | None = None,
    color: str = BLUE,
    label: str | None = None,
) -> Axes:
    """Samples of two coordinates as points, over the density they should have.

    Args:
      samples: shape (..., 2); all leading axes are pooled.
      energy: of one point of shape (2,), in units of its temperature (value / T): its contours are drawn at
        1, 2, ... 6 above its lowest point on the picture. None: no contours.
      limits: ((x_low, x_high), (y_low, y_high)); None: what the samples span, and a twentieth more.
      max_points: more than these are thinned out evenly.
      ax: where to draw.
      color: of the points.
      label: of the points in a legend.

    Example:
      >>> samples = np.random.default_rng(0).normal(size=(200, 2))
      >>> energy = lambda x: 0.5 * jnp.sum(x**2)
      >>> ax = ctld_optax.plotting.sample_cloud(samples, energy=energy)
    """
    ax = plt.gca() if ax is None else ax
    samples = as_numbers("samples", samples)
    if samples.ndim < 1 or samples.shape[-1] != 2 or samples.size == 0:
        raise ValueError(
            f"sample_cloud draws points of two coordinates: samples must have shape (..., 2), got {samples.shape}. "
            "Choose two, for example samples[..., [0, 3]]."
        )
    points = samples.reshape(-1, 2)
    if limits is None:
        low, high = points.min(axis=0), points.max(axis=0)
        margin = 0.05 * np.where(high > low, high - low, 1.0)
        (x_low, y_low), (x_high, y_high) = low - margin, high + margin
        limits = ((x_low, x_high), (y_low, y_high))
    if energy is not None:
        x, y = (np.linspace(*ends, 201) for ends in limits)
        grid = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), axis=-1)
        heights = np.asarray(jax.jit(jax.vmap(jax.vmap(energy)))(grid), np.float64)
        levels = np.nanmin(heights) + np.arange(1.0, 7.0)
        ax.contour(x, y, heights, levels=levels, colors="0.35", linewidths=0.6, linestyles="solid", zorder=1)
    points = points[thinned(len(points), max_points)]
    ax.plot(*points.T, ".", color=color, markersize=3.0, alpha=0.6, markeredgewidth=0.0, rasterized=True, label=label)
    ax.set(xlabel="first coordinate", ylabel="second coordinate", xlim=limits[0], ylim=limits[1])
    return ax


@checked()
def temperature_ramp(
    losses: Any, temperatures: Any, *, strength: float = 0.85, ax: Axes | None = None, color: str = VERMILLION
) -> Axes:
    """A temperature range test: losses over the temperatures of the ramp, where they are lowest, and what is suggested.

    The shaded band is what the suggestion will move through, from the base temperature to the hottest. Without a suggestion the
    name of the finding stands in its place.

    Args:
      losses: as for :func:`ctld_optax.diagnostics.suggest_temperature`.
      temperatures: likewise.
      strength: likewise.
      ax: where to draw.
      color: of the smoothed loss.

    Example:
      >>> temperatures = np.geomspace(1e-6, 1e-2, 3_000)
      >>> losses = 2.0 / (1.0 + (temperatures / 1e-4) ** 2) + 0.1 * (temperatures / 1e-3) ** 2
      >>> ax = ctld_optax.plotting.temperature_ramp(losses, temperatures)
    """
    found = diagnostics.suggest_temperature(losses, temperatures, strength)
    ax = plt.gca() if ax is None else ax
    finite = found.losses[np.isfinite(found.losses)]
    start, bottom = float(finite[0]), float(finite.min())
    reach = max(start - bottom, 0.1 * abs(start))
    ax.plot(temperatures, losses, ".", color="0.75", markersize=1.5, rasterized=True, label="minibatch", zorder=1)
    ax.plot(found.temperatures[: finite.size], finite, color=color, linewidth=1.8, label="smoothed")
    ax.axvline(found.lowest, color="0.4", linewidth=0.9, linestyle=":")
    if found.temperature is None:
        said = ", ".join(finding.name for finding in found.findings)
    else:
        hottest = found.temperature / (1.0 - strength)
        ax.axvspan(found.temperature, hottest, color=SKY, alpha=0.25, linewidth=0, label="base to hottest")
        said = f"take T = {found.temperature:.1e}"
    ax.annotate(said, (0.02, 0.04), xycoords="axes fraction", color="0.2")
    # What a divergence does beyond this says nothing, and would flatten the rest.
    ax.set(xscale="log", xlabel="temperature  [units of the loss]", ylabel="loss", ylim=(bottom - 0.35 * reach, start + reach))
    return ax


def one_run(function: str, **arrays: Any) -> list[np.ndarray]:
    """The arrays in float64, once each is seen to be of shape (steps,)."""
    found = {name: as_numbers(name, array) for name, array in arrays.items()}
    for name, array in found.items():
        if array.ndim != 1:
            raise ValueError(f"{function} draws one run: {name} must have shape (steps,), got {array.shape}.")
    return list(found.values())


def steps(step: Any, like: np.ndarray) -> np.ndarray:
    """The number of each step, counted from one if not given."""
    if step is None:
        return np.arange(1, like.size + 1)
    step = as_numbers("step", step)
    if step.shape != like.shape:
        raise ValueError(f"step must have one number for each of the {like.size} entries, got shape {step.shape}.")
    return step


def thinned(size: int, max_points: int) -> slice:
    check_count("max_points", max_points, 1)
    return slice(None, None, max(-(-size // max_points), 1))
