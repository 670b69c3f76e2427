"""The bias as it fills, moment by moment."""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes

from ctld_optax import diagnostics
from ctld_optax._checked import checked
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._validate import check_bias
from ctld_optax.plotting import _pictures as pictures


@checked()
def bias_filling(
    state: Any,
    bias: Bias,
    *,
    tempering: PolynomialTempering | None = None,
    ax: Axes | None = None,
    color: str = pictures.GREEN,
) -> FuncAnimation:
    """V_b over alpha as an animation, one frame a moment, with alpha as a dot on it; what was there before stays, pale.

    In a notebook `IPython.display.HTML(animation.to_jshtml())` shows it with a slider; `animation.save("bias.gif")` keeps it.

    Args:
      state: the sampler's states at the moments to be shown, stacked along a first axis, as `jax.lax.scan` stacks them.
      bias: the one given to `ctld`.
      tempering: likewise; None is the default one.
      ax: where to draw; None: the current axes.
      color: of the line.

    Raises:
      ValueError: if there is not one `CTLDState` in `state`, or no axis of moments.

    Example:
      >>> bias = ctld_optax.Metadynamics()
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias)
      >>> def step(state, _):
      ...     state = sampler.update(jnp.zeros(9), state, jnp.zeros(9), value=1.0)[1]
      ...     return state, state
      >>> _, states = jax.lax.scan(step, sampler.init(jnp.zeros(9)), length=200)
      >>> every_20th = jax.tree.map(lambda x: x[::20], states)
      >>> animation = ctld_optax.plotting.bias_filling(every_20th, bias)
      >>> film = animation.to_jshtml()
    """
    ax = plt.gca() if ax is None else ax
    found = diagnostics.ctld_state(state)
    alpha, count = np.asarray(found.alpha, np.float64), np.asarray(found.count)
    if alpha.ndim != 1:
        raise ValueError(f"bias_filling needs states stacked along one axis of moments; their alpha has shape {alpha.shape}.")
    # Not from its lowest point on, as `diagnostics.bias_potential` has it: what is to be seen is how it rises.
    limit = (tempering or PolynomialTempering()).delta_prime
    check_bias("the state's bias", found.bias, bias.num_bins)
    grid = bias.nodes(limit, found.bias.dtype)
    at_nodes = jax.vmap(lambda one: jax.vmap(bias.potential, (None, 0, None))(one, grid, limit))
    nodes, potential = np.asarray(grid, np.float64), np.asarray(at_nodes(found.bias), np.float64)
    potential = potential - min(0.0, potential.min())
    at = np.array([np.interp(a, nodes, v) for a, v in zip(alpha, potential, strict=True)])
    top = 1.1 * max(float(potential.max()), 1e-12)
    ax.set(xlim=(nodes[0], nodes[-1]), ylim=(-0.04 * top, top))
    ax.set(xlabel=r"tempering variable $\alpha$", ylabel=r"bias $V_b$  [$k_B T_c$]")
    past = [ax.plot([], [], color=color, alpha=0.25, linewidth=0.8)[0] for _ in range(8)]
    (line,) = ax.plot([], [], color=color, linewidth=2.0)
    (dot,) = ax.plot([], [], "o", color=pictures.VERMILLION, markersize=8)
    label = ax.text(0.02, 0.95, "", transform=ax.transAxes, va="top")

    def draw(frame: int) -> list[Any]:
        # Eight pale lines, at equal distances from the beginning up to here.
        for number, pale in enumerate(past):
            pale.set_data(nodes, potential[frame * number // len(past)])
        line.set_data(nodes, potential[frame])
        dot.set_data([alpha[frame]], [at[frame]])
        label.set_text(f"step {int(count[frame]):,}")
        return [*past, line, dot, label]

    figure: Any = ax.figure
    return FuncAnimation(figure, draw, frames=len(alpha), interval=120, blit=False)
