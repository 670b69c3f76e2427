# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explore the temperature: sliders over 486 runs
#
# Move a slider: each position is a run of its own, made before. The target is a Gaussian of some dimensions whose directions
# differ in width by a factor of ten. What each knob does is said below.

# %%
import base64
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.animation import PillowWriter

import ctld_optax
from ctld_optax import (
    AdaptiveBiasingForce,
    Metadynamics,
    PolynomialTempering,
    diagnostics,
    plotting,
)

plt.rcParams.update(plotting.STYLE)
knobs = {
    "coupling": ["standardized", "hamiltonian"],
    "dimensions": [2, 20, 200],
    "delta": [0.1, 0.4, 1.0],
    "strength S": [0.5, 0.85, 0.95],
    "height": [0.01, 0.1, 1.0],
    "alpha's step": [0.005, 0.02, 0.05],
}
steps, every = 4_000, 10


def run(coupling, dimensions, delta, strength, height, step_size):
    curvature = jnp.geomspace(1.0, 100.0, dimensions)
    sampler = ctld_optax.ctld(
        learning_rate=0.01,
        temperature=1.0,
        key=0,
        tempering=PolynomialTempering(delta=delta, strength=strength),
        bias=Metadynamics(height=height),
        coupling=coupling,
        alpha_step_size=step_size,
    )

    def step(carry, _):
        x, state = carry
        value, grads = jax.value_and_grad(lambda x: 0.5 * jnp.sum(curvature * x**2))(x)
        updates, state = sampler.update(grads, state, x, value=value)
        return (x + updates, state), diagnostics.snapshot(state)

    start = jax.random.normal(jax.random.key(1), (dimensions,)) / jnp.sqrt(curvature)
    return jax.lax.scan(step, (start, sampler.init(start)), length=steps)[1]


# Numbers may be traced, so the 81 runs of one coupling and dimension are one program.
names = list(knobs)
settings = jnp.asarray(
    list(itertools.product(*[knobs[name] for name in names[2:]])), jnp.float32
)
runs = [
    jax.jit(jax.vmap(functools.partial(run, coupling, dimensions)))(*settings.T)
    for coupling, dimensions in itertools.product(knobs["coupling"], knobs["dimensions"])
]
shape = tuple(len(values) for values in knobs.values())
trajectories = jax.tree.map(lambda *rows: np.stack(rows).reshape(*shape, steps), *runs)

# %% [markdown]
# ## The explorer

# %%
at_base = np.mean(np.asarray(trajectories.beta) > 1.0 - 1e-6, axis=-1)
trips = np.zeros(shape)
for index in np.ndindex(shape):
    delta = knobs["delta"][index[names.index("delta")]]
    trips[index] = diagnostics.round_trips(trajectories.alpha[index], delta)
shown = plotting.explorer(
    jax.tree.map(lambda row: row[..., every - 1 :: every], trajectories),
    knobs,
    readings={"share of steps at the base temperature": at_base, "round trips": trips},
    step=np.arange(every, steps + 1, every),
    max_rows=steps // every,
)
shown

# %% [markdown]
# - **coupling**: the paper's energy (`hamiltonian`) pushes alpha the harder the more dimensions there are; from some hundred
#   of them on it is thrown from wall to wall. The default, `standardized`, walks alike at any size.
# - **delta**: the width of the window, and so the share of steps at the base temperature.
# - **strength S**: how hot it gets, $1/(1-S)$.
# - **height**: low hills let alpha diffuse, high ones drive it.
# - **alpha's step**: the speed of its clock.
#
# `shown.save("explorer.html")` writes the explorer as a page of its own. In the same way you can look at runs of your own.
#
# ## The same as pictures
#
# Alpha over the steps: the energy of the paper couples more strongly in more dimensions, the standardized one does not.

# %%
middle = trajectories.alpha[:, :, 1, 1, 1, 1], trips[:, :, 1, 1, 1, 1]
figure, axes = plt.subplots(
    2, 3, figsize=(12, 5.4), sharex=True, sharey=True, layout="constrained"
)
for row, coupling in enumerate(knobs["coupling"]):
    for column, dimensions in enumerate(knobs["dimensions"]):
        ax = axes[row, column]
        ax.axhspan(-0.4, 0.4, color=plotting.SKY, alpha=0.25, linewidth=0)
        ax.plot(middle[0][row, column], color=plotting.BLUE, linewidth=0.7)
        number = int(middle[1][row, column])
        ax.set_title(f"{coupling}, d = {dimensions}: {number} round trips", fontsize=11)
for ax in axes[:, 0]:
    ax.set_ylabel(r"tempering variable $\alpha$")
for ax in axes[1]:
    ax.set_xlabel("step")
plt.show()

# %% [markdown]
# The share of steps at the base temperature follows the width of the window: a uniform alpha gives $\delta/\delta'$, the dashed
# line.

# %%
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
for number, dimensions in enumerate(knobs["dimensions"]):
    ax.plot(
        knobs["delta"],
        at_base[0, number, :, 1, 1, 1],
        "o-",
        color=plotting.PALETTE[number],
        label=f"{dimensions} dimensions",
    )
ax.plot([0.0, 1.2], [0.0, 0.8], "--", color="0.3", label=r"$\delta/\delta'$")
ax.set(
    xlabel=r"half width $\delta$ of the window",
    ylabel="share of steps at the base temperature",
)
ax.legend()
plt.show()

# %% [markdown]
# ## The bias fills
#
# For a posterior of few parameters the bias has a goal, minus the free energy of alpha. For a Gaussian in $d$ dimensions that
# is $-\tfrac d2 \log g(\alpha)$, here dashed. The hills are dropped where alpha stands, the dot; pale, what was there before.

# %%
dimensions, moments, apart = 8, 60, 400
bias = Metadynamics(bias_factor=20.0)
tempering = PolynomialTempering()
sampler = ctld_optax.posterior_sampler(0.05, key=1, bias=bias, tempering=tempering)


def step(carry, _):
    theta, state = carry
    energy, grads = jax.value_and_grad(lambda theta: 0.5 * jnp.sum(theta**2))(theta)
    updates, state = sampler.update(grads, state, theta, value=energy)
    return (theta + updates, state), None


def moment(carry, _):
    carry, _ = jax.lax.scan(step, carry, length=apart)
    return carry, carry[1]


start = jnp.zeros(dimensions)
_, states = jax.jit(lambda c: jax.lax.scan(moment, c, length=moments))(
    (start, sampler.init(start))
)

figure, ax = plt.subplots(figsize=(7.2, 4.2), dpi=80, layout="constrained")
film = plotting.bias_filling(states, bias, ax=ax)
grid = jnp.linspace(-1.5, 1.5, 301)
goal = -dimensions / 2 * np.log(tempering.beta(grid)) * (1.0 - 1.0 / 20.0)
level = float(bias.potential(states.bias[-1], jnp.float32(0.0), 1.5))
ax.plot(
    grid,
    goal + level,
    "--",
    color="0.3",
    linewidth=1.2,
    label="where it goes, up to a constant",
)
ax.legend(loc="lower right")
film.save("bias.gif", writer=PillowWriter(fps=8))
plt.close(figure)
picture = base64.b64encode(pathlib.Path("bias.gif").read_bytes()).decode()
HTML(f'<img alt="The bias as it fills, an animation" src="data:image/gif;base64,{picture}">')

# %% [markdown]
# The adaptive biasing force learns the mean force on alpha instead, and takes it away: it is there sooner, and makes no hills.

# %%
other = AdaptiveBiasingForce()
sampler = ctld_optax.posterior_sampler(0.05, key=1, bias=other, tempering=tempering)
_, forced = jax.jit(lambda c: jax.lax.scan(moment, c, length=moments))(
    (start, sampler.init(start))
)
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
for name, kind, last, color in (
    ("well-tempered hills", bias, states, plotting.GREEN),
    ("adaptive biasing force", other, forced, plotting.BLUE),
):
    errors = []
    for number in range(moments):
        state = jax.tree.map(lambda row, number=number: row[number], last)
        nodes, potential = diagnostics.bias_potential(state, kind)
        truth = -dimensions / 2 * np.log(np.asarray(tempering.beta(jnp.asarray(nodes))))
        errors.append(np.std(potential - truth))
    ax.plot(apart * np.arange(1, moments + 1), errors, color=color, label=name)
ax.set(
    xlabel="step", ylabel=r"error of the bias, root mean square  [$k_B T_c$]", ylim=(0.0, None)
)
ax.legend()
plt.show()
