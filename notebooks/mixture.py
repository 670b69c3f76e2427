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
# # Sampling a mixture: trapped, and not
#
# Twenty-five Gaussians on a grid, started in one corner. Between neighbours lies a barrier of 12 temperatures: a sampler at a
# constant temperature has to wait for a fluctuation of that size. One whose temperature moves by itself crosses while it is
# hot, and keeps what it sees while it is at the right temperature. Both are `posterior_sampler`: with `tempering=None` it is
# SGHMC.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ctld_optax
from ctld_optax import diagnostics, plotting, posterior

plt.rcParams.update(plotting.STYLE)

spread = 0.2
centres = np.array([[2.0 * i, 2.0 * j] for i in range(-2, 3) for j in range(-2, 3)])


def energy(x):
    """-log density, up to a constant, in units of the temperature."""
    return -jax.nn.logsumexp(-jnp.sum(jnp.square(x - centres), axis=-1) / (2 * spread**2))


# %% [markdown]
# ## The two samplers
#
# The same learning rate, momentum and base temperature. `posterior_sampler` is `ctld` with the settings for samples rather than
# an optimum: the exact coupling and the adaptive biasing force. Twelve chains each, side by side under `vmap`; every tenth
# step is kept.

# %%
learning_rate, momentum, temperature = 0.1 * spread**2, 0.8, 1.0
settings = {"SGHMC": {"tempering": None}, "CTLD": {}}
thin, steps, chains = 10, 100_000, 12
start = jnp.asarray(centres[0], jnp.float32)


def chain(options, key):
    sampler = ctld_optax.posterior_sampler(
        learning_rate, temperature, momentum, key=key, **options
    )

    def step(carry, _):
        x, state, _, _ = carry
        value, grads = jax.value_and_grad(energy)(x)
        updates, state = sampler.update(grads, state, x, value=value)
        return (x + updates, state, x, value), None

    def keep(carry, _):
        carry, _ = jax.lax.scan(step, carry, None, length=thin)
        _, state, x, value = carry
        return carry, (x, value, diagnostics.snapshot(state))

    first = (start, sampler.init(start), start, jnp.float32(0.0))
    (_, state, _, _), rows = jax.lax.scan(keep, first, None, length=steps // thin)
    return *rows, state


keys = jax.random.split(jax.random.key(0), chains)
runs = {
    name: jax.jit(jax.vmap(lambda key, o=options: chain(o, key)))(keys)
    for name, options in settings.items()
}

# %% [markdown]
# ## Where they have been
#
# Left, all steps of SGHMC; in the middle, all steps of CTLD, hot ones too: they fill the gaps; right, those with $|\alpha|
# \le \delta$, at the base temperature. These are the samples, with no weights.

# %%
x, _, trajectory, _ = runs["CTLD"]
is_sample = np.asarray(posterior.in_window(trajectory.alpha))
clouds = {
    "SGHMC, all steps": (runs["SGHMC"][0], plotting.ORANGE),
    "CTLD, all steps": (x, plotting.SKY),
    r"CTLD, samples: $|\alpha| \leq \delta$": (np.asarray(x)[is_sample], plotting.BLUE),
}
figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained", sharey=True)
for ax, (name, (samples, color)) in zip(axes, clouds.items(), strict=True):
    plotting.sample_cloud(
        samples,
        energy=energy,
        limits=((-5.2, 5.2), (-5.2, 5.2)),
        max_points=10_000,
        color=color,
        ax=ax,
    )
    ax.plot(
        *start,
        "o",
        color=plotting.VERMILLION,
        markersize=11,
        fillstyle="none",
        markeredgewidth=1.8,
        label="start",
    )
    ax.set(title=name, aspect="equal", xlabel="$x_1$", ylabel="$x_2$" if ax is axes[0] else "")
axes[0].legend(loc="upper right", frameon=True)
plt.show()

# %% [markdown]
# ## How it gets across
#
# A piece of one chain: one coordinate above, the temperature below. It changes rows when it is hot, and settles in a row of
# modes (dotted) when it is cold.

# %% tags=["thumbnail"]
piece = slice(1_000, 1_800)
at = np.arange(steps // thin)[piece] * thin
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(11, 6), sharex=True, layout="constrained", height_ratios=(1.6, 1)
)
heat = 1.0 / np.asarray(trajectory.beta[0, piece])
points = top.scatter(at, x[0, piece, 0], c=heat, s=9, cmap="cividis", vmin=1.0, vmax=6.7)
for row in np.unique(centres[:, 0]):
    top.axhline(row, color="0.6", linewidth=0.7, linestyle=":", zorder=0)
top.set(ylabel="$x_1$", ylim=(-5.6, 5.6), yticks=[-4, -2, 0, 2, 4])
figure.colorbar(points, ax=top, label="temperature  [base $T$]", pad=0.01)
plotting.temperature_trajectory(trajectory.beta[0, piece], step=at, ax=bottom)
bottom.set_ylim(0.0, 7.6)
plt.show()

# %% [markdown]
# ## What they found
#
# Left, how many of the 25 modes a chain has visited after so many steps, each chain a thin line and their mean a thick one.
# Right, the weights of the modes over all chains; all should be 1/25, and the total variation is half the sum of what they
# are off.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
for name, color, marker, keep in (
    ("SGHMC", plotting.ORANGE, "s", np.ones_like(is_sample)),
    ("CTLD", plotting.BLUE, "o", is_sample),
):
    samples = np.asarray(runs[name][0])
    mode = np.argmin(np.square(samples[..., None, :] - centres).sum(axis=-1), axis=-1)
    visited = np.stack(
        [np.maximum.accumulate((mode == m) & keep, axis=1) for m in range(25)]
    ).sum(axis=0)
    for one in visited:
        left.semilogx(
            np.arange(1, steps // thin + 1) * thin,
            one,
            color=color,
            linewidth=0.6,
            alpha=0.45,
        )
    left.semilogx(
        np.arange(1, steps // thin + 1) * thin,
        visited.mean(axis=0),
        color=color,
        linewidth=2.4,
        label=name,
    )
    weights = np.bincount(mode[keep], minlength=25) / keep.sum()
    variation = 0.5 * np.abs(weights - 1 / 25).sum()
    right.semilogy(
        np.arange(1, 26),
        np.where(weights > 0, weights, np.nan),
        marker,
        color=color,
        markersize=6,
        label=f"{name}: total variation {variation:.2f}",
    )
    print(
        f"{name}: a chain found {visited[:, -1].min()} to {visited[:, -1].max()} modes of 25, "
        f"variation {variation:.3f}"
    )
left.set(xlabel="step", ylabel="modes visited", ylim=(0, 26), xlim=(thin, steps))
left.legend(loc="upper left")
right.axhline(1 / 25, color="0.3", linewidth=1.0, linestyle="--", label="1/25")
right.set(
    xlabel="mode, column by column from the start", ylabel="weight found", ylim=(0.008, 2.0)
)
right.legend(loc="upper right")
plt.show()

# %% [markdown]
# ## Is the run healthy?
#
# All chains pooled, with the bias they ended with.

# %%
x, values, trajectory, state = runs["CTLD"]
sampler = ctld_optax.posterior_sampler(learning_rate, temperature, momentum, key=0)
print(diagnostics.report(trajectory, sampler, value=values, num_params=2, state=state))

# %% [markdown]
# ## The same in one call
#
# `posterior.sample` makes the loop, finds the step by itself, and gives back the cold steps only. All chains begin at the start
# of above.

# %%
tempering = ctld_optax.GeometricTempering()
data = posterior.sample(
    energy, start, key=0, num_chains=chains, num_samples=steps // 5, tempering=tempering
)
samples = data.posterior["x"].to_numpy()
mode = np.argmin(np.square(samples[..., None, :] - centres).sum(axis=-1), axis=-1)
found = [len(np.unique(of_chain)) for of_chain in mode]
variation = 0.5 * np.abs(np.bincount(mode.ravel(), minlength=25) / mode.size - 1 / 25).sum()
print(
    f"{samples.shape[1]:,} samples a chain, which found {min(found)} to {max(found)} modes, "
    f"variation {variation:.3f}"
)

# %% [markdown]
# `python -m benchmarks.mixture` has the whole comparison: three targets, five samplers, an equal budget for tuning.
