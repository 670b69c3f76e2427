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
# # What the temperature does, and what the knobs do to it
#
# Nobody schedules the temperature of continuously tempered Langevin dynamics. An extra variable $\alpha$ walks about between
# two walls, pushed by the energy of the network, and the temperature is $T / g(\alpha)$: the base temperature $T$ in the
# window $|\alpha| \le \delta$, and up to $T / (1 - S)$ at the walls. A bias $V_b(\alpha)$, filled while the run goes on,
# keeps $\alpha$ from settling anywhere. Here we watch all three, then turn one knob after the other.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import ctld_optax
from ctld_optax import (
    AdaptiveBiasingForce,
    Metadynamics,
    PolynomialTempering,
    diagnostics,
    plotting,
)

plt.rcParams.update(plotting.STYLE)

# %% [markdown]
# The network is small, 64-32-10 on scikit-learn's handwritten digits, so that a run takes seconds. `run` is an ordinary
# training loop; it keeps the scalars of the sampler's state (`snapshot`) and the loss of every step.

# %%
images, labels = load_digits(return_X_y=True)
x, y = jnp.asarray(images, jnp.float32) / 16.0, jnp.asarray(labels)
rng = np.random.default_rng(0)
params = {
    "w": jnp.asarray(rng.normal(size=(64, 32)) * np.sqrt(2 / 64), jnp.float32),
    "b": jnp.zeros(32),
    "v": jnp.asarray(rng.normal(size=(32, 10)) * np.sqrt(2 / 32), jnp.float32),
    "c": jnp.zeros(10),
}
num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
temperature = 5e-4
make = functools.partial(ctld_optax.ctld, learning_rate=0.01, temperature=temperature, key=0)


def loss_fn(params, key):
    index = jax.random.randint(key, (64,), 0, len(y))
    hidden = jax.nn.relu(x[index] @ params["w"] + params["b"])
    return optax.softmax_cross_entropy_with_integer_labels(
        hidden @ params["v"] + params["c"], y[index]
    ).mean()


def run(sampler, steps):
    def step(carry, key):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, key)
        updates, state = sampler.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), (
            diagnostics.snapshot(state),
            loss,
        )

    return jax.lax.scan(
        step, (params, sampler.init(params)), jax.random.split(jax.random.key(1), steps)
    )[1]


# %% [markdown]
# ## One run
#
# From top to bottom: the temperature in units of $T$; $\alpha$, its window shaded; the minibatch loss, each step as a dot and
# its mean over 25 of them as a line. Where it is hot the loss is high, and it comes down again when $\alpha$ comes back to
# the window.

# %%
sampler = make()
trajectory, losses = jax.jit(lambda: run(sampler, 4_000))()
figure, (top, middle, bottom) = plt.subplots(
    3, 1, figsize=(9, 8), sharex=True, layout="constrained"
)
plotting.temperature_trajectory(trajectory.beta, ax=top)
top.set(xlabel="", ylim=(0.0, 7.6))
middle.axhspan(-0.4, 0.4, color=plotting.SKY, alpha=0.25, linewidth=0)
middle.plot(trajectory.alpha, color=plotting.BLUE, linewidth=0.9)
middle.set(
    ylabel=r"tempering variable $\alpha$", ylim=(-1.6, 1.6), yticks=[-1.5, -0.4, 0.4, 1.5]
)
bottom.semilogy(losses, ".", color=plotting.GREEN, markersize=3, alpha=0.4, markeredgewidth=0)
bottom.semilogy(
    np.arange(24, 4_000),
    np.convolve(losses, np.ones(25) / 25, "valid"),
    color=plotting.GREEN,
    linewidth=1.4,
)
bottom.set(xlabel="step", ylabel="minibatch loss  [nats]", xlim=(0, 4_000))
plt.show()

# %% [markdown]
# Is it healthy? `report` looks at all that can be told from these scalars.

# %%
print(diagnostics.report(trajectory, sampler, value=losses, num_params=num_params))

# %% [markdown]
# The same run in two other pictures. In equilibrium $\alpha$ is uniform and its momentum $r_\alpha$ is N(0, 1) whatever
# $\alpha$ is: 95 % of the points lie between the dotted lines (some more are outside here, since the bias still pushes while
# it fills). And the momenta of the parameters must be as hot as the noise makes them, step for step, while the temperature
# changes.

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(12, 4.4), layout="constrained", width_ratios=(1.1, 1)
)
plotting.phase_portrait(trajectory.alpha, trajectory.r_alpha, ax=left)
part = slice(2_000, 2_700)
stretch = jax.tree.map(lambda row: row[part], trajectory)
plotting.kinetic_temperature(stretch, num_params, temperature, step=stretch.count, ax=right)
right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize="small")
plt.show()

# %% [markdown]
# ## The knobs, one at a time
#
# Each row moves one knob and leaves the others at their defaults, which are in the middle column: the half width $\delta$ of
# the window, the strength $S$ (the hottest temperature is $1/(1-S)$), the height of the hills, and $h$, the step size of
# alpha's clock. The twelve runs are one program: hyperparameters may be traced, so `vmap` does them all at once.

# %%
defaults = {r"$\delta$": 0.4, "$S$": 0.85, "height": 0.1, "$h$": 0.02}
moved = {
    r"$\delta$": (0.1, 0.4, 1.0),
    "$S$": (0.5, 0.85, 0.95),
    "height": (0.01, 0.1, 1.0),
    "$h$": (0.005, 0.02, 0.05),
}
settings = [defaults | {knob: value} for knob, values in moved.items() for value in values]


def run_with(delta, strength, height, step_size):
    tempering = PolynomialTempering(delta=delta, strength=strength)
    return run(
        make(tempering=tempering, bias=Metadynamics(height=height), alpha_step_size=step_size),
        3_000,
    )[0]


rows = jax.jit(jax.vmap(run_with))(
    *jnp.asarray([list(setting.values()) for setting in settings]).T
)
figure, axes = plt.subplots(4, 3, figsize=(13, 11), sharex=True, layout="constrained")
for index, (ax, setting) in enumerate(zip(axes.flat, settings, strict=True)):
    knob = list(moved)[index // 3]
    alpha, delta, hottest = (
        rows.alpha[index],
        setting[r"$\delta$"],
        1.0 / (1.0 - setting["$S$"]),
    )
    ax.plot(1.0 / rows.beta[index], color=plotting.VERMILLION, linewidth=0.8)
    ax.axhline(hottest, color="0.6", linewidth=0.8, linestyle=":")
    share, trips = (
        diagnostics.fraction_in_window(alpha, delta),
        diagnostics.round_trips(alpha, delta),
    )
    ax.set_title(
        f"{knob} = {setting[knob]:g}:  {share:.0%} at base, round trips: {trips}", fontsize=11
    )
    ax.set_ylim(0.0, 1.08 * hottest)
for ax in axes[:, 0]:
    ax.set_ylabel(r"temperature  [base $T$]")
for ax in axes[-1]:
    ax.set_xlabel("step")
plt.show()

# %% [markdown]
# - A wide window gives more steps at the base temperature, about $\delta/\delta'$ of them, $\delta' = 1.5$ being the wall.
# - The strength sets how hot it gets, and leaves the walk much as it is.
# - Low hills let $\alpha$ diffuse, high ones drive it: more round trips, but the parameters have less time to follow each.
# - The step size is the speed of the clock: much the same walk, slower or faster.
#
# ## The coupling
#
# The paper lets the full energy $H$ push $\alpha$. It grows with the number of parameters, and already the 2,410 of this
# network throw $\alpha$ from wall to wall: between reflecting walls the temperature flickers from step to step, and with the
# paper's force wall $\alpha$ is nearly always outside, with the temperature at its hottest. The default coupling standardizes
# the energy first.

# %%
couplings = {
    "standardized": sampler,
    "hamiltonian, reflecting walls": make(coupling="hamiltonian"),
    "hamiltonian, force wall": make(coupling="hamiltonian", confinement="force"),
}
figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), sharey=True, layout="constrained")
for ax, (name, setting) in zip(axes, couplings.items(), strict=True):
    rows, values = jax.jit(lambda setting=setting: run(setting, 2_000))()
    ax.plot(1.0 / rows.beta[:600], color=plotting.VERMILLION, linewidth=0.9)
    ax.set(title=name, xlabel="step", ylim=(0.0, 7.2))
    for finding in diagnostics.report(
        rows, setting, value=values, num_params=num_params
    ).findings:
        print(f"{name}: {finding.name}. {finding.says}\n  -> {finding.advice}\n")
axes[0].set_ylabel(r"temperature  [base $T$]")
plt.show()

# %% [markdown]
# ## The bias fills
#
# For a posterior of few parameters the loss itself is right, in units of the temperature, and exact. Then the bias has
# something to converge to: minus the free energy $F(\alpha) = -\log p(\alpha)$ of an unbiased run. For a Gaussian in $d$
# dimensions we know it, $F = \tfrac d2 \log g(\alpha)$.
#
# Three biases at eight moments, dark to light. Well-tempered hills converge to $(1 - 1/\gamma)$ of it, which leaves $\alpha$
# too often at the hot ends. Plain hills, the paper's (here a fifth as high as the others), make $\alpha$ uniform but never
# stop: the bias goes up and down about its goal. The adaptive biasing force learns the mean force on $\alpha$ and takes it
# away.

# %%
dimensions, moments = 8, (500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
biases = {
    r"well-tempered hills, $\gamma = 5$": (Metadynamics(), 0.8),
    "plain hills, height 0.02": (Metadynamics(height=0.02, bias_factor=None), 1.0),
    "adaptive biasing force": (AdaptiveBiasingForce(), 1.0),
}


def fill(bias):
    posterior = ctld_optax.posterior_sampler(
        0.05, key=1, bias=bias, tempering=PolynomialTempering()
    )

    def step(carry, _):
        theta, state = carry
        energy, grads = jax.value_and_grad(lambda theta: 0.5 * jnp.sum(theta**2))(theta)
        updates, state = posterior.update(grads, state, theta, value=energy)
        return (theta + updates, state), (state.alpha, state.bias)

    def keep(carry, _):
        carry, (alpha, grids) = jax.lax.scan(step, carry, None, length=500)
        return carry, (alpha, grids[-1])

    start = jnp.zeros(dimensions)
    (_, state), (alpha, grids) = jax.lax.scan(
        keep, (start, posterior.init(start)), None, length=moments[-1] // 500
    )
    return state, alpha.reshape(-1), grids


# %%
figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained", sharex=True)
colors = plt.get_cmap("cividis")(np.linspace(0.0, 0.95, len(moments)))
grid = jnp.linspace(-1.5, 1.5, 301)
free_energy = dimensions / 2 * np.log(PolynomialTempering().beta(grid))
for (upper, lower), (name, (bias, share)) in zip(axes.T, biases.items(), strict=True):
    state, alpha, grids = jax.jit(functools.partial(fill, bias))()
    for moment, color in zip(moments, colors, strict=True):
        nodes, potential = diagnostics.bias_potential(
            state._replace(bias=grids[moment // 500 - 1]), bias
        )
        upper.plot(nodes, potential, color=color, linewidth=1.4)
    upper.plot(
        grid,
        -share * free_energy,
        color="0.1",
        linestyle="--",
        linewidth=1.6,
        label="where it should go",
    )
    upper.set(title=name, ylim=(0.0, 11.0))
    plotting.alpha_occupation(alpha, ax=lower)
    lower.set(ylim=(0.0, 1.0), ylabel="")
axes[0, 0].set_ylabel(r"bias $V_b$  [$k_B T_c$]")
axes[1, 0].set_ylabel("density")
axes[0, 0].legend(loc="upper center")
axes[1, 1].legend(
    loc="upper center", ncols=3, fontsize="small", columnspacing=1.0, handlelength=1.2
)
norm = mpl.colors.BoundaryNorm(np.arange(len(moments) + 1), len(moments))
mapping = plt.cm.ScalarMappable(norm, mpl.colors.ListedColormap(colors))
bar = figure.colorbar(
    mapping, ax=axes[0], label="after so many steps", ticks=np.arange(len(moments)) + 0.5
)
bar.ax.set_yticklabels([f"{moment:,}" for moment in moments])
plt.show()
