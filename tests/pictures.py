"""The pictures that tests/baseline holds: `python -m tests.pictures` draws them anew (look at each before you keep it).

They show what is not text: letters differ with the FreeType of a machine, and tests/test_plotting.py reads them back from the
axes.
"""

import pathlib

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.text import Text

import ctld_optax
from ctld_optax import diagnostics, plotting
from ctld_optax._arrays import compat
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.walls import ReflectingWall

BASELINE = pathlib.Path(__file__).parent / "baseline"
NUM_PARAMS, TEMPERATURE = 50, 0.01


def walk():
    """A smooth walk through all of alpha's range, and the momenta that belong to it."""
    time = np.linspace(0.0, 30.0, 400)
    alpha = 1.5 * np.sin(time) * np.cos(0.21 * time)
    beta = np.asarray(ctld_optax.PolynomialTempering().beta(jnp.asarray(alpha)))
    scatter = 1.0 + np.sqrt(2.0 / NUM_PARAMS) * np.random.default_rng(0).normal(size=400)
    kinetic_energy = 0.5 * NUM_PARAMS * diagnostics.kinetic_temperature_target(TEMPERATURE, 0.9, beta) * scatter
    empty = np.zeros(400)
    return diagnostics.Snapshot(np.arange(400), alpha, np.gradient(alpha) * 20, beta, kinetic_energy, empty, empty, empty)


def filled(bias):
    """A sampler's state with hills (or forces) at some places."""
    state = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias).init(jnp.zeros(2))
    for alpha in np.linspace(-1.2, 0.9, 25, dtype=np.float32):
        visit = Visit(jnp.asarray(alpha), jnp.float32(1.0 + alpha))
        state = state._replace(bias=bias.deposit(state.bias, visit, ReflectingWall(1.5)))
    return state


def two_wells(x):
    return jnp.minimum(jnp.sum(jnp.square(x - 1.0)), jnp.sum(jnp.square(x + 1.0)) + 0.5) / 0.3


def cloud():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 100, 2)) * 0.4 + rng.choice([-1.0, 1.0], size=(3, 100, 1))


def ramp():
    """A plateau that noise leaves, a bottom, and a divergence."""
    temperatures = np.geomspace(1e-6, 1e-2, 2_000)
    decades = np.log10(temperatures / 3e-4)
    losses = np.where(decades < 0.0, 0.5 + 1.8 / (1.0 + np.exp(8.0 * (decades + 0.7))), 0.5 + 4.0 * decades**2)
    losses *= np.exp(0.05 * np.random.default_rng(0).normal(size=losses.shape))
    return np.where(temperatures > 4e-3, np.nan, losses), temperatures


PICTURES = {
    "temperature": lambda ax: plotting.temperature_trajectory(walk().beta, switch_step=300, ax=ax),
    "occupation": lambda ax: plotting.alpha_occupation(walk().alpha, ax=ax),
    "hills": lambda ax: plotting.bias_potential(filled(b := ctld_optax.Metadynamics(width=0.1, num_bins=100)), b, ax=ax),
    "force": lambda ax: plotting.bias_potential(filled(b := ctld_optax.AdaptiveBiasingForce()), b, ax=ax),
    "kinetic": lambda ax: plotting.kinetic_temperature(walk(), NUM_PARAMS, TEMPERATURE, ax=ax),
    "portrait": lambda ax: plotting.phase_portrait(walk().alpha, walk().r_alpha, ax=ax),
    "ramp": lambda ax: plotting.temperature_ramp(*ramp(), ax=ax),
    "cloud": lambda ax: plotting.sample_cloud(cloud(), energy=two_wells, ax=ax),
}


def save(name, path):
    """Draws one picture as a small PNG, without text."""
    with mpl.rc_context(mpl.rcParamsDefault), compat.enable_x64(False):
        figure, ax = plt.subplots(figsize=(3.2, 2.4), dpi=100)
        PICTURES[name](ax)
        for text in figure.findobj(Text):
            text.set_visible(False)
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    mpl.use("agg")
    BASELINE.mkdir(exist_ok=True)
    for name in PICTURES:
        save(name, BASELINE / f"{name}.png")
