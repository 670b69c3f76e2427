"""All there is to see of one run, on one page."""

import textwrap
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctld_optax import diagnostics
from ctld_optax._checked import checked
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax._dynamics.layers import Layers
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._validate import as_numbers
from ctld_optax.plotting import _pictures as pictures

LAYOUT = (("temperature",) * 3, ("occupation", "bias", "report"), ("energy", "kinetic", "report"))
STRETCH = 400  # rows of the kinetic temperature, the last ones: more of them are a blot
LINE, LINES = 46, 24  # what the report's panel holds


@checked(sampler="It is what `ctld` returned, the one that was given to `phase_switch`.")
def dashboard(
    trajectory: diagnostics.Snapshot,
    sampler: LangevinTransformation | None = None,
    *,
    value: Any = None,
    num_params: int | None = None,
    state: Any = None,
    step: Any = None,
    figure: Figure | None = None,
) -> Figure:
    """One run on one page, fit for a talk: `plotting.dashboard(trajectory)`.

    Above, the temperature over the steps, up to the hand-over if there was one; below, where alpha has been, the bias, the
    energy against the temperature, the temperature of the momenta beside its target, and what
    :func:`~ctld_optax.diagnostics.report` says. A panel that needs more than was given says what.

    Args:
      trajectory: snapshots of one run, fields of shape (steps,), each step or equally spaced ones.
      sampler: what `ctld` returned, for its settings; None: the defaults, learning rate and temperature unknown.
      value: the losses given as `value`, shape (steps,).
      num_params: d, how many parameters there are (not arrays).
      state: the state after the run, for the bias.
      step: number of each step, shape (steps,); None: as the sampler counted them.
      figure: an empty one to draw on; None: a new one, of 16 to 9.

    Raises:
      ValueError: for several runs, a sampler without `tempering`, or a `value` of another shape.

    Example:
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0)
      >>> def step(state, _):
      ...     state = sampler.update(jnp.zeros(9), state, jnp.zeros(9), value=1.0)[1]
      ...     return state, ctld_optax.diagnostics.snapshot(state)
      >>> _, trajectory = jax.lax.scan(step, sampler.init(jnp.zeros(9)), length=500)
      >>> figure = ctld_optax.plotting.dashboard(trajectory, sampler, num_params=9)
      >>> len(figure.axes)
      6
    """
    for name in ("alpha", "count"):
        pictures.one_run("dashboard", **{f"trajectory.{name}": getattr(trajectory, name)})
    tempering = PolynomialTempering() if sampler is None else sampler.kernel.alpha.tempering
    if tempering is None:
        raise ValueError(
            "dashboard shows a temperature that moves, and this sampler has tempering=None: it has nothing to draw."
        )
    count = as_numbers("trajectory.count", trajectory.count)
    moved = np.diff(count, prepend=count[0] - 1) > 0  # after the hand-over the sampler stands still
    step = _counted(count, moved) if step is None else pictures.steps(step, count)
    rows = jax.tree.map(lambda row: np.asarray(row)[moved], trajectory)
    value = None if value is None else as_numbers("value", value)
    if value is not None and value.shape != count.shape:
        raise ValueError(f"value must have the shape of the trajectory, {count.shape}, got {value.shape}.")

    figure = plt.figure(figsize=(13.3, 7.5), layout="constrained") if figure is None else figure
    axes = figure.subplot_mosaic([list(row) for row in LAYOUT], height_ratios=(1.0, 1.1, 1.1))
    switch = None if moved.all() else int(step[moved][-1])
    pictures.temperature_trajectory(trajectory.beta, step=step, switch_step=switch, tempering=tempering, ax=axes["temperature"])
    axes["temperature"].set_ylabel(r"$1/g(\alpha)$  [base $T$]")  # the panel is low, and its title says the rest
    pictures.alpha_occupation(rows.alpha, tempering=tempering, ax=axes["occupation"])
    axes["occupation"].legend(loc="upper center", ncols=3, fontsize="x-small", columnspacing=1.0, handlelength=1.2)
    _bias(axes["bias"], sampler, state, tempering)
    _energy(axes["energy"], rows, None if value is None else value[moved])
    _kinetic(axes["kinetic"], rows, step[moved], sampler, num_params)
    report = diagnostics.report(trajectory, sampler, value=value, num_params=num_params, state=state)
    _report(axes["report"], report)
    axes["bias"].margins(y=0.25)
    for name, title in {
        "temperature": "Temperature",
        "occupation": r"Where $\alpha$ has been",
        "bias": r"The bias on $\alpha$",
        "energy": "Energy against temperature",
        "kinetic": "How hot the momenta are",
    }.items():
        axes[name].set_title(title, loc="left", fontsize="medium", fontweight="bold")
        axes[name].spines[["top", "right"]].set_visible(False)
    return figure


def _counted(count: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The sampler's own count of steps, which goes on at the same pace after it has stopped."""
    stride = max(float(np.median(np.diff(count[moved]))), 1.0) if np.count_nonzero(moved) > 1 else 1.0
    return np.where(moved, count, count.max() + stride * np.cumsum(~moved))


def _missing(ax: Axes, what: str) -> None:
    ax.text(0.5, 0.5, f"needs {what}", transform=ax.transAxes, ha="center", va="center", color="0.45")
    ax.set(xticks=[], yticks=[])


def _bias(ax: Axes, sampler: LangevinTransformation | None, state: Any, tempering: PolynomialTempering) -> None:
    bias = None if sampler is None else sampler.kernel.alpha.bias
    if sampler is None or state is None:
        return _missing(ax, "sampler and state=")
    if bias is None:
        return _missing(ax, "a bias: it had none")
    pictures.bias_potential(state, bias, tempering=tempering, ax=ax)
    ax.legend(fontsize="x-small")
    return None


def _energy(ax: Axes, rows: diagnostics.Snapshot, value: np.ndarray | None) -> None:
    """The loss where it was given, else the kinetic energy: a dot a row, and the middle half of each bin of temperatures."""
    energy = as_numbers("trajectory.kinetic_energy", rows.kinetic_energy) if value is None else value
    heat = 1.0 / as_numbers("trajectory.beta", rows.beta)
    ax.plot(heat, energy, ".", color=pictures.SKY, markersize=2.5, alpha=0.5, markeredgewidth=0.0, rasterized=True)
    edges = np.linspace(heat.min(), heat.max(), 11)
    place = np.clip(np.digitize(heat, edges) - 1, 0, 9)
    full = [i for i in range(10) if np.count_nonzero(place == i) > 4]
    at = np.array([heat[place == i].mean() for i in full])
    low, middle, high = (np.array([np.quantile(energy[place == i], q) for i in full]) for q in (0.25, 0.5, 0.75))
    ax.fill_between(at, low, high, color=pictures.BLUE, alpha=0.25, linewidth=0, label="middle half")
    ax.plot(at, middle, color=pictures.BLUE, marker="o", markersize=3.5, label="median")
    ax.set(xlabel=r"temperature $1/g(\alpha)$  [base $T$]", ylabel="loss" if value is not None else "kinetic energy")
    if energy.min() > 0.0 and energy.max() > 30.0 * energy.min():
        ax.set_yscale("log")
    ax.legend(fontsize="x-small")


def _kinetic(
    ax: Axes, rows: diagnostics.Snapshot, step: np.ndarray, sampler: LangevinTransformation | None, num_params: int | None
) -> None:
    if sampler is None or num_params is None:
        return _missing(ax, "sampler and num_params=")
    knob = sampler.kernel.temperature
    if isinstance(knob, Layers):
        return _missing(ax, "one temperature for all layers")
    last = jax.tree.map(lambda row: row[-STRETCH:], rows)
    # With a schedule, the temperature of the stretch's end.
    temperature = float(np.asarray(knob(np.maximum(last.count[-1] - 1, 0))))
    if temperature <= 0.0:
        return _missing(ax, "a temperature above 0")
    pictures.kinetic_temperature(
        last,
        num_params,
        temperature,
        float(sampler.kernel.decay),
        integrator=sampler.kernel.integrator.name,
        step=step[-STRETCH:],
        ax=ax,
    )
    ax.set_ylabel("kinetic temperature $2K/d$")
    ax.legend(fontsize="x-small")
    return None


def _report(ax: Axes, report: diagnostics.Report) -> None:
    lines: list[str] = []
    number = len(report.findings)
    for finding in report.findings:
        lines += [*textwrap.wrap(f"{finding.name}: {finding.says}", LINE)]
        lines += [*textwrap.wrap(f"-> {finding.advice}", LINE, initial_indent="  ", subsequent_indent="  "), ""]
    lines += [f"{name:<{LINE - 10}.{LINE - 10}} {_figure(figure):>9}" for name, figure in report.figures.items()]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "... print(diagnostics.report(...)) for all"]
    says = "Healthy: no finding" if report.healthy else "Not healthy: " + ("a finding" if number == 1 else f"{number} findings")
    ax.set_title(says, loc="left", fontsize="medium", fontweight="bold",
                 color=pictures.GREEN if report.healthy else pictures.VERMILLION)  # fmt: skip
    ax.text(0.0, 0.98, "\n".join(lines), transform=ax.transAxes, va="top", family="monospace", fontsize=8.5, linespacing=1.4)
    ax.set_axis_off()


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number == round(number) else f"{number:,.3g}"
