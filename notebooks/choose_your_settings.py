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
# # Temperature, learning rate and length of the sampling phase, for your own network
#
# Four steps, each of which ends in a number. Put your own network and loss into the first cell and run the rest as it stands.
#
# The example is a network that needs help: 20 hidden layers with weights N(0, 0.1²), on scikit-learn's digits. Plain SGD with
# momentum stays at chance.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import ctld_optax
from ctld_optax import diagnostics, plotting

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x, y = jnp.asarray(images[order] / 16.0, jnp.float32), jnp.asarray(labels[order])
train_x, train_y, valid_x, valid_y = x[:1_400], y[:1_400], x[1_400:], y[1_400:]


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        weights = nn.initializers.normal(stddev=0.1)
        for _ in range(20):
            x = nn.relu(nn.Dense(50, kernel_init=weights)(x))
        return nn.Dense(10, kernel_init=weights)(x)


model = MLP()


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()


def init(key):
    return model.init(key, train_x[:1])


MOMENTUM, BATCH, STEPS = 0.9, 128, 4_000  # what you would train with

# %% [markdown]
# ## Step 1: where to look for the temperature
#
# One run on a temperature that rises, as learning-rate finders do it, and as long as the sampling phase will be. The ramp
# covers three decades. It begins where the noise would add a tenth of the loss you start from, for in equilibrium each of the
# $d$ parameters holds $T/2$ of the loss:
#
# $$ T_\text{cold} = \frac{2}{d} \cdot \frac{\text{loss at the start}}{10} $$

# %%
start = init(jax.random.key(0))
num_params = sum(leaf.size for leaf in jax.tree.leaves(start))
start_loss = float(loss_fn(start, train_x, train_y))
coldest = 2.0 * start_loss / num_params / 10.0
HALF = STEPS // 2
usual_rate = 0.01
ramp = ctld_optax.temperature_ramp(coldest, 1_000 * coldest, HALF)


@jax.jit
def on_the_ramp(key):
    """The losses of the minibatches."""
    tx = ctld_optax.ctld(usual_rate, ramp, MOMENTUM, key=key, tempering=None)

    def step(carry, number):
        params, state = carry
        index = jax.random.randint(jax.random.fold_in(key, number), (BATCH,), 0, len(train_y))
        loss, grads = jax.value_and_grad(loss_fn)(params, train_x[index], train_y[index])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (start, tx.init(start)), jnp.arange(HALF))[1]


ramp_losses = on_the_ramp(jax.random.key(100))
ramp_temperatures = jax.vmap(ramp)(jnp.arange(HALF))
found = diagnostics.suggest_temperature(ramp_losses, ramp_temperatures)
print(found)

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
plotting.temperature_ramp(ramp_losses, ramp_temperatures, ax=ax)
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# The noise moves the network off its plateau, until it holds the loss up. The suggestion is good to a factor of two or so: the
# next step tries around it. (A ramp that shows no temperature says why; then begin at $T_\text{cold}$.)

# %%
suggested = coldest if found.temperature is None else found.temperature
temperatures = suggested * np.array([0.5, 1.0, 2.0, 4.0])
print(
    f"{num_params:,} parameters, loss at the start {start_loss:.2f}: try",
    ", ".join(f"{t:.1e}" for t in temperatures),
)

# %% [markdown]
# ## Step 2: the temperature, then the learning rate
#
# Whole runs, half of the steps sampling: one that is too short to arrive anywhere says nothing about where a longer one would.
# First the temperatures, at the learning rate that you would give to SGD with momentum; then half and double that rate, at the
# temperature found. Each setting is judged by the worse of its seeds on validation data: what works by luck does not count.


# %%
def train(learning_rate, temperature, seed, sampling_steps):
    """Accuracy on validation data, the losses of the minibatches and what the sampler did."""
    params_key, noise_key, batch_key = jax.random.split(jax.random.key(seed), 3)
    params = init(params_key)
    sampler = ctld_optax.ctld(learning_rate, temperature, MOMENTUM, key=noise_key)
    tx = ctld_optax.phase_switch(sampler, optax.sgd(learning_rate, MOMENTUM), sampling_steps)

    def step(carry, number):
        params, state = carry
        index = jax.random.randint(
            jax.random.fold_in(batch_key, number), (BATCH,), 0, len(train_y)
        )
        loss, grads = jax.value_and_grad(loss_fn)(params, train_x[index], train_y[index])
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), (
            loss,
            diagnostics.snapshot(state),
        )

    (params, _), (losses, trajectory) = jax.lax.scan(
        step, (params, tx.init(params)), jnp.arange(STEPS)
    )
    accuracy = jnp.mean(jnp.argmax(model.apply(params, valid_x), axis=1) == valid_y)
    return accuracy, losses, trajectory


SEEDS = 2
over_settings = jax.jit(jax.vmap(train, (0, 0, 0, None)), static_argnums=3)


def try_out(learning_rates, temperatures, first_seed=0, sampling_steps=HALF):
    """All of `train`, with axes (setting, seed)."""
    settings = [
        (rate, t, first_seed + i)
        for rate, t in zip(learning_rates, temperatures, strict=True)
        for i in range(SEEDS)
    ]
    rates, heats, seeds = (jnp.asarray(column) for column in zip(*settings, strict=True))
    results = over_settings(rates, heats, seeds, sampling_steps)
    return jax.tree.map(
        lambda array: np.asarray(array).reshape(-1, SEEDS, *array.shape[1:]), results
    )


accuracies, losses, _ = try_out([usual_rate] * len(temperatures), temperatures)
temperature = float(temperatures[accuracies.min(axis=1).argmax()])

rates = [usual_rate / 2, usual_rate * 2]
other_accuracies, _, _ = try_out(rates, [temperature] * len(rates))
tried = {
    usual_rate: accuracies.min(axis=1).max(),
    **dict(zip(rates, other_accuracies.min(axis=1), strict=True)),
}
learning_rate = max(tried, key=tried.get)
print(
    f"temperature {temperature:.1e}; the worse seed's accuracy by learning rate:",
    {r: round(float(a), 3) for r, a in tried.items()},
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
left.semilogx(temperatures, accuracies, "o", color=plotting.BLUE)
left.semilogx(
    temperatures, accuracies.min(axis=1), color=plotting.BLUE, label="the worse of two seeds"
)
left.set(
    ylabel="accuracy on validation data", ylim=(0, 1.03), title=f"after all {STEPS:,} steps"
)
right.loglog(
    temperatures, losses[:, :, HALF - 500 : HALF].mean(axis=2), "o", color=plotting.VERMILLION
)
right.axhline(start_loss, color="0.4", linewidth=0.9, linestyle=":", label="loss at the start")
right.loglog(
    temperatures,
    temperatures * num_params / 2,
    color="0.2",
    linestyle="--",
    label=r"$d\,T/2$",
)
right.set(ylabel="mean loss while sampling  [nats]", title="the last 500 steps of sampling")
right.set_yticks([0.1, 0.25, 0.5, 1, 2, 4], ["0.1", "0.25", "0.5", "1", "2", "4"])
for ax in (left, right):
    ax.minorticks_off()
    ax.set_xticks(temperatures, [f"{t:.1e}" for t in temperatures])
    ax.set_xlabel("temperature  [units of the loss]")
    ax.legend(frameon=False)
plt.show()

# %% [markdown]
# To the left the noise is too weak to move the network from where it started, and the loss stays there. Where it is strong
# enough, the loss falls until the noise itself holds it up, at $d\,T/2$ or below, since flat directions hold nothing. Further
# to the right runs diverge; their points are missing on the right side. If the best temperature is the first or the last,
# shift the range and repeat.
#
# ## Step 3: how long to sample
#
# Long enough that $\alpha$ has gone from the window to the hot end and back a few times, and no longer than leaves SGD with
# momentum time to finish. Here a half and a quarter of the steps, with seeds that the choices above have not seen.

# %%
runs = {
    steps: try_out([learning_rate], [temperature], 10, steps) for steps in (HALF, STEPS // 4)
}
for steps, (accuracy, _, trajectory) in runs.items():
    trips = diagnostics.round_trips(trajectory.alpha[..., :steps])
    print(
        f"{steps:,} of {STEPS:,} steps sampling: accuracy {accuracy[0].round(3)}, "
        f"{trips / SEEDS:g} round trips a run"
    )
sampling_steps = max(runs, key=lambda steps: runs[steps][0].min())

# %% [markdown]
# ## Step 4: does it look healthy, and is it worth it?
#
# A finding is advice, not a verdict. Momenta somewhat hotter than the noise makes them are the minibatches' own noise: harmless
# for exploring, not for posterior samples.

# %%
_, losses, trajectory = jax.tree.map(lambda array: array[0, 0], runs[sampling_steps])
sampler = ctld_optax.ctld(learning_rate, temperature, MOMENTUM, key=0)
print(
    diagnostics.report(
        trajectory, sampler, value=losses, num_params=num_params, initial_value=start_loss
    )
)

sgd_losses = jax.jit(train, static_argnums=3)(learning_rate, 0.0, 10, 0)[1]
figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), layout="constrained")
top.semilogy(
    sgd_losses, color=plotting.BLUE, label="SGD with momentum, from the first step on"
)
top.semilogy(losses, color=plotting.VERMILLION, linewidth=0.8, label="with these settings")
top.set(xlabel="step", ylabel="minibatch loss  [nats]")
top.legend(frameon=False)
plotting.temperature_trajectory(trajectory.beta, switch_step=sampling_steps, ax=bottom)
plt.show()

# %% [markdown]
# The sampling phase on one page:

# %%
plotting.dashboard(trajectory, sampler, value=losses, num_params=num_params)
plt.show()

# %% [markdown]
# If SGD with momentum alone gets as far, you do not need this. Otherwise, these are your settings:

# %%
print(
    f"sampler = ctld_optax.ctld({learning_rate:g}, temperature={temperature:.1e}, "
    f"momentum={MOMENTUM}, key=0)"
)
print(
    f"tx = ctld_optax.phase_switch(sampler, optax.sgd({learning_rate:g}, "
    f"momentum={MOMENTUM}), {sampling_steps=})"
)
