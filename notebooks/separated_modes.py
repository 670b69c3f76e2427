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
# # A posterior with separated modes: many chains, and what ArviZ says of them
#
# Three microphones stand all but in a line and measure how far away a sound was. It may have been on either side of the line:
# the posterior of its place has two modes, mirror images of each other, and neither the data nor the prior rule one out. Chains
# at the posterior's own temperature stay on the side where they begin, and may agree with each other perfectly. With
# `tempering=` they cross, and find how probable each side is.

# %%
import arviz
import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import ctld_optax
from ctld_optax import plotting, posterior

plt.rcParams.update(plotting.STYLE)

microphones = jnp.array([[-1.0, 0.04], [0.0, -0.04], [1.0, 0.02]])
distances = jnp.array([1.60, 0.91, 1.02])  # measured
HALF = 0.1  # the prior of the error of a measurement: half-normal of this deviation


def misfit(params):
    """The negative log likelihood: Gaussian errors of unknown size, kept as its logarithm."""
    error = jnp.exp(params["log_error"])
    true = jnp.linalg.norm(params["place"] - microphones, axis=-1)
    return jnp.sum(jnp.square((distances - true) / error)) / 2 + 3 * params["log_error"]


def prior(params):
    """The place from N((0, 0.2), 1), the error half-normal, in its logarithm."""
    place = jnp.sum(jnp.square(params["place"] - jnp.array([0.0, 0.2]))) / 2
    return place + jnp.exp(2 * params["log_error"]) / (2 * HALF**2) - params["log_error"]


def initial(key):
    """Each chain begins at a draw from the prior."""
    return {"place": jax.random.normal(key, (2,)), "log_error": jnp.log(HALF)}


def natural(params):
    return {"place": params["place"], "error": jnp.exp(params["log_error"])}


# %% [markdown]
# ## The truth
#
# Three parameters can be integrated on a grid.

# %%
x, y = jnp.linspace(-2.2, 2.2, 221), jnp.linspace(-2.2, 2.2, 221)
log_errors = jnp.linspace(-6.0, 0.0, 121)


def log_density(place):
    """Of a place alone: the error is summed over."""
    at = lambda e: {"place": place, "log_error": e}
    energies = jax.vmap(lambda e: misfit(at(e)) + prior(at(e)))(log_errors)
    return jax.nn.logsumexp(-energies)


grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
log_place = jax.jit(jax.vmap(jax.vmap(log_density)))(grid)
density = np.asarray(jnp.exp(log_place - jax.nn.logsumexp(log_place)))
truth = float(density[np.asarray(grid[..., 1]) > 0].sum())
print(f"The sound came from above with probability {truth:.3f}")

# %% [markdown]
# ## Eight chains, without tempering and with it
#
# The same budget for both. `prior_fn` is not heated; the misfit is.

# %%
CHAINS, SAMPLES = 8, 20_000
settings = {"constant temperature": None, "tempered": ctld_optax.GeometricTempering()}
runs = {
    name: posterior.sample(
        misfit,
        initial,
        key=2,
        prior_fn=prior,
        constrain=natural,
        num_chains=CHAINS,
        num_samples=SAMPLES,
        tempering=tempering,
    )
    for name, tempering in settings.items()
}
for name, data in runs.items():
    print(
        f"{name}: {data.posterior.sizes['draw']:,} samples of a chain at the base temperature"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.5, 5), layout="constrained", sharey=True)
for ax, (name, data) in zip(axes, runs.items(), strict=True):
    places = data.posterior["place"].to_numpy()
    for number, chain in enumerate(places):
        color = mpl.colors.to_hex(plt.get_cmap("cividis")(number / (CHAINS - 1)))
        plotting.sample_cloud(
            chain, limits=((-2, 2), (-2, 2)), max_points=400, color=color, ax=ax
        )
    levels = np.max(density) * np.exp(-np.array([4.5, 2.0, 0.5]))
    ax.contour(x, y, density, levels=levels, colors="0.2", linewidths=0.7)
    ax.plot(*microphones.T, "v", color=plotting.VERMILLION, markersize=9, label="microphones")
    ax.set(title=name, aspect="equal", xlabel="$x_1$", ylabel="$x_2$" if ax is axes[0] else "")
axes[0].legend(loc="lower right")
plt.show()

# %% [markdown]
# Each shade is a chain; the lines are the true density. To the left a chain has one side or the other, to the right both.
#
# ## What ArviZ says
#
# R-hat compares the chains with each other: near 1 they agree. It can warn of modes that the chains have divided among
# themselves. It cannot warn of one that no chain has found.

# %%
for name, data in runs.items():
    print(f"\n{name}")
    print(
        arviz.summary(data, kind="all").loc[
            :, ["mean", "sd", "mcse_mean", "ess_bulk", "r_hat"]
        ]
    )

# %% tags=["thumbnail"]
figure, axes = plt.subplots(2, 1, figsize=(10, 5), sharey=True, layout="constrained")
for ax, (name, data) in zip(axes, runs.items(), strict=True):
    heights = data.posterior["place"].to_numpy()[:3, :, 1]
    for number, chain in enumerate(heights):
        ax.plot(
            chain[:4_000],
            ".",
            color=plotting.PALETTE[number],
            markersize=2,
            label=f"chain {number}",
        )
    ax.set(title=f"{name}: three chains", ylabel="$x_2$", ylim=(-2, 2))
axes[0].legend(ncols=3, markerscale=5)
axes[1].set_xlabel("sample")
plt.show()

# %% [markdown]
# ## How probable is each side?
#
# The share of the samples above, chain by chain, beside the truth.

# %%
figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
for (name, data), color, shift in zip(
    runs.items(), (plotting.ORANGE, plotting.BLUE), (-0.1, 0.1), strict=True
):
    above = (data.posterior["place"].to_numpy()[..., 1] > 0).mean(axis=1)
    ax.plot(np.arange(CHAINS) + shift, above, "o", color=color, label=name)
    print(f"{name}: {above.mean():.3f} above, over all chains (truth {truth:.3f})")
ax.axhline(truth, color="0.3", linestyle="--", linewidth=1, label="truth")
ax.set(xlabel="chain", ylabel="share of samples above", ylim=(-0.05, 1.05))
ax.legend(loc="center right")
plt.show()

# %% [markdown]
# Where do the samples of one long, tempered chain cross? While it is hot: the samples are only those at the base temperature,
# so neighbours in the file may lie on different sides. [Which sampler, which settings](../which.md) says when to take what.
