"""The pictures beside the plotting calls of the pages: `python docs/pictures.py` draws them anew (look at each)."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl

mpl.use("agg")
import numpy as np
import optax
from matplotlib import pyplot as plt

import ctld_optax
from ctld_optax import diagnostics, plotting

FOLDER = pathlib.Path(__file__).parent / "pictures"
SAMPLING_STEPS, STEPS, SIZE, TEMPERATURE = 4_000, 5_000, 100, 1e-3


class Run:
    """The run of "Recording and reading a run", and what it left."""

    def __init__(self) -> None:
        targets = jnp.linspace(0.5, 2.0, SIZE)
        self.sampler = ctld_optax.ctld(0.05, TEMPERATURE, 0.9, key=0)
        tx = ctld_optax.phase_switch(self.sampler, optax.sgd(0.05, 0.9), SAMPLING_STEPS)

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(
                lambda p: 0.5 * jnp.sum(targets * jnp.square(p))
            )(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), (
                diagnostics.snapshot(state),
                value,
                state.sampler,
            )

        start = jnp.ones(SIZE)
        scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=STEPS))
        (_, self.state), (self.trajectory, self.value, self.states) = scan(
            (start, tx.init(start))
        )
        self.sampled = jax.tree.map(lambda row: row[:SAMPLING_STEPS], self.trajectory)


def cloud(ax: Any) -> None:
    """Two Gaussians, and samples of them."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(1_500, 2)) * 0.6 + rng.choice(
        [-1.0, 1.0], size=(1_500, 1), p=[0.3, 0.7]
    ) * [1.5, 1.0]

    def energy(x: jax.Array) -> jax.Array:
        centre = jnp.array([1.5, 1.0])
        left, right = (-jnp.sum(jnp.square(x + sign * centre)) / 0.72 for sign in (1, -1))
        return -jnp.logaddexp(jnp.log(0.3) + left, jnp.log(0.7) + right)

    plotting.sample_cloud(samples, energy=energy, ax=ax)


def ramp(ax: Any) -> None:
    """The saddle of the first page, left by noise."""
    x = jnp.linspace(-2.0, 2.0, 64)[:, None]
    y = jnp.sin(3.0 * x)
    params = {"w": jnp.zeros((1, 32)), "b": jnp.zeros(32), "v": jnp.zeros((32, 1))}
    schedule = ctld_optax.temperature_ramp(1e-5, 1e-1, SAMPLING_STEPS)
    tx = ctld_optax.ctld(0.05, schedule, key=0, tempering=None)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2)
        )(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=SAMPLING_STEPS)[1])
    losses = scan((params, tx.init(params)))
    plotting.temperature_ramp(losses, jax.vmap(schedule)(jnp.arange(SAMPLING_STEPS)), ax=ax)
    ax.legend(loc="upper left")


def kinetic(run: Run, ax: Any) -> None:
    stretch = jax.tree.map(lambda row: row[3_400:3_800], run.trajectory)
    plotting.kinetic_temperature(stretch, SIZE, TEMPERATURE, step=stretch.count, ax=ax)
    ax.legend()


def switch(run: Run, ax: Any) -> None:
    ax.semilogy(run.value, color=plotting.BLUE, linewidth=0.8)
    ax.set(xlabel="step", ylabel="loss", ylim=(1e-6, None))
    plotting.mark_switch(SAMPLING_STEPS, ax=ax)


def occupation(run: Run, ax: Any) -> None:
    plotting.alpha_occupation(run.sampled.alpha, ax=ax)
    ax.legend(ncols=3, loc="upper center")


def bias(run: Run, ax: Any) -> None:
    plotting.bias_potential(run.state, ctld_optax.Metadynamics(), ax=ax)
    ax.legend()


def filling(run: Run, ax: Any) -> None:
    """The film's last frame."""
    moments = jax.tree.map(lambda row: row[99:SAMPLING_STEPS:100], run.states)
    film = plotting.bias_filling(moments, ctld_optax.Metadynamics(), ax=ax)
    film._init_draw()  # noqa: SLF001 - a film has no public call that draws one frame
    film._draw_frame(len(moments.alpha) - 1)  # noqa: SLF001
    film._draw_was_started = True  # noqa: SLF001 - or it warns that nobody saw it


PICTURES: dict[str, Callable[[Run, Any], Any]] = {
    "temperature_trajectory": lambda run, ax: plotting.temperature_trajectory(
        run.trajectory.beta, switch_step=SAMPLING_STEPS, ax=ax
    ),
    "temperature_ramp": lambda _, ax: ramp(ax),
    "alpha_occupation": occupation,
    "bias_potential": bias,
    "kinetic_temperature": kinetic,
    "phase_portrait": lambda run, ax: plotting.phase_portrait(
        run.sampled.alpha, run.sampled.r_alpha, ax=ax
    ),
    "sample_cloud": lambda _, ax: cloud(ax),
    "mark_switch": switch,
    "bias_filling": filling,
}


def draw() -> None:
    FOLDER.mkdir(exist_ok=True)
    run = Run()
    with mpl.rc_context(plotting.STYLE):
        for name, picture in PICTURES.items():
            figure, ax = plt.subplots(figsize=(7.2, 3.9), dpi=110, layout="constrained")
            picture(run, ax)
            figure.savefig(FOLDER / f"{name}.png")
            plt.close(figure)
        figure = plotting.dashboard(
            run.trajectory, run.sampler, value=run.value, num_params=SIZE, state=run.state
        )
        figure.savefig(FOLDER / "dashboard.png", dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    draw()
