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
# In equilibrium each of the $d$ parameters holds $T/2$ of the loss. The noise shall add between a tenth and the whole of the
# loss you start from:
#
# $$ T = \frac{2}{d} \cdot \frac{\text{loss at the start}}{1 \ldots 10} $$

# %%
start = init(jax.random.key(0))
num_params = sum(leaf.size for leaf in jax.tree.leaves(start))
start_loss = float(loss_fn(start, train_x, train_y))
hottest = 2.0 * start_loss / num_params
temperatures = np.geomspace(hottest / 10.0, hottest, 4)
print(f"{num_params:,} parameters, loss at the start {start_loss:.2f}: try", ", ".join(f"{t:.1e}" for t in temperatures))

# %% [markdown]
# ## Step 2: learning rate and temperature, by short pilot runs
#
# Around the learning rate that you would give to SGD with momentum, a factor of three to either side. Each pilot samples for
# most of its steps and then lets SGD with momentum fine-tune, because only that shows whether it has arrived anywhere. All
# pilots are one compiled program.


# %%
def train(learning_rate, temperature, seed, steps, sampling_steps):
    """The last parameters, the losses of the minibatches and what the sampler did."""
    params_key, noise_key, batch_key = jax.random.split(jax.random.key(seed), 3)
    params = init(params_key)
    sampler = ctld_optax.ctld(learning_rate, temperature, MOMENTUM, key=noise_key)
    tx = ctld_optax.phase_switch(sampler, optax.sgd(learning_rate, MOMENTUM), sampling_steps)

    def step(carry, number):
        params, state = carry
        index = jax.random.randint(jax.random.fold_in(batch_key, number), (BATCH,), 0, len(train_y))
        loss, grads = jax.value_and_grad(loss_fn)(params, train_x[index], train_y[index])
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), (loss, diagnostics.snapshot(state))

    (params, _), (losses, trajectory) = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return params, losses, trajectory


PILOT, PILOT_SAMPLING, SEEDS = 1_600, 1_200, 2
learning_rates = np.array([0.003, 0.01, 0.03])
grid = np.stack([a.ravel() for a in np.meshgrid(learning_rates, temperatures, np.arange(SEEDS), indexing="ij")])


@jax.jit
@jax.vmap
def pilot(learning_rate, temperature, seed):
    params, losses, _ = train(learning_rate, temperature, seed.astype(int), PILOT, PILOT_SAMPLING)
    return losses, loss_fn(params, train_x, train_y)


losses, ends = pilot(*(jnp.asarray(a, jnp.float32) for a in grid))
shape = (len(learning_rates), len(temperatures), SEEDS)
ends = np.nan_to_num(np.asarray(ends), nan=np.inf).reshape(shape)
sampled = np.asarray(losses[:, PILOT_SAMPLING - 500 : PILOT_SAMPLING].mean(axis=1)).reshape(shape).mean(axis=2)
score = ends.max(axis=2)  # the worse of the seeds: a setting that works by luck does not count
rate_index, temperature_index = np.unravel_index(score.argmin(), score.shape)
learning_rate, temperature = float(learning_rates[rate_index]), float(temperatures[temperature_index])
print(f"best of {score.size}: learning rate {learning_rate:g}, temperature {temperature:.1e}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
image = left.imshow(np.clip(score, 1e-3, 10), norm="log", cmap="cividis", aspect="auto")
for (row, column), value in np.ndenumerate(score):
    text = "diverged" if not np.isfinite(value) else f"{value:.2g}"
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none"}
    left.text(column, row, text, ha="center", va="center", bbox=box)
left.set(
    xticks=range(len(temperatures)),
    xticklabels=[f"{t:.1e}" for t in temperatures],
    yticks=range(len(learning_rates)),
    yticklabels=[f"{rate:g}" for rate in learning_rates],
    xlabel="temperature  [units of the loss]",
    ylabel="learning rate",
    title="after fine-tuning, the worse seed",
)
figure.colorbar(image, ax=left, label="training loss  [nats]")
for row, color, marker in zip(range(3), (plotting.BLUE, plotting.VERMILLION, plotting.GREEN), "os^", strict=True):
    right.loglog(temperatures, sampled[row], color=color, marker=marker, label=f"learning rate {learning_rates[row]:g}")
right.axhline(start_loss, color="0.4", linewidth=0.9, linestyle=":", label="loss at the start")
right.loglog(temperatures, temperatures * num_params / 2, color="0.2", linestyle="--", label=r"$d\,T/2$")
right.set(xlabel="temperature  [units of the loss]", ylabel="mean loss while sampling  [nats]", title="before fine-tuning")
right.set_xticks(temperatures, [f"{t:.1e}" for t in temperatures])
right.minorticks_off()
right.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
right.legend(frameon=False)
plt.show()

# %% [markdown]
# To the left the noise is too weak to move the network from where it started, and the loss stays there. Where it is strong
# enough, the loss falls until the noise itself holds it up, at about $d\,T/2$. To the right, and at large learning rates, runs
# diverge; their points are missing. If the best cell lies on the edge of the grid, shift the grid and repeat.
#
# ## Step 3: how long to sample
#
# Long enough that $\alpha$ has gone from the window to the hot end and back a few times, and no longer than leaves SGD with
# momentum time to finish. Try two or three shares of your steps, and take the one whose worse seed does best on validation
# data.

# %%
shares = (0.25, 0.5)
runs = {}
for share in shares:
    many = jax.jit(jax.vmap(lambda seed, share=share: train(learning_rate, temperature, seed, STEPS, int(share * STEPS))))
    runs[share] = many(jnp.arange(10, 10 + SEEDS))  # seeds that the choice has not seen

alpha = runs[shares[-1]][2].alpha[:, : int(shares[-1] * STEPS)]
print(f"{1_000 * diagnostics.round_trips(alpha) / alpha.size:.1f} round trips in 1,000 steps")


def accuracy(params):
    return jnp.mean(jnp.argmax(model.apply(params, valid_x), axis=1) == valid_y)


accuracies = {share: np.asarray(jax.vmap(accuracy)(params)) for share, (params, _, _) in runs.items()}
for share, values in accuracies.items():
    print(f"{share:.0%} of {STEPS:,} steps sampling: accuracy on validation data", values.round(3))
sampling_steps = int(STEPS * max(shares, key=lambda share: accuracies[share].min()))

# %% [markdown]
# ## Step 4: does it look healthy, and is it worth it?
#
# A finding is advice, not a verdict. Momenta somewhat hotter than the noise makes them are the minibatches' own noise: harmless
# for exploring, not for posterior samples.

# %%
params, losses, trajectory = runs[sampling_steps / STEPS]
first = jax.tree.map(lambda leaf: leaf[0], trajectory)
sampler = ctld_optax.ctld(learning_rate, temperature, MOMENTUM, key=0)
print(diagnostics.report(first, sampler, value=losses[0], num_params=num_params, initial_value=start_loss))

sgd_losses = jax.jit(lambda: train(learning_rate, 0.0, 10, STEPS, 0)[1])()
figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), layout="constrained")
top.semilogy(sgd_losses, color=plotting.BLUE, label="SGD with momentum, from the first step on")
top.semilogy(losses[0], color=plotting.VERMILLION, linewidth=0.8, label="with these settings")
top.set(xlabel="step", ylabel="minibatch loss  [nats]")
top.legend(frameon=False)
plotting.temperature_trajectory(first.beta, switch_step=sampling_steps, ax=bottom)
plt.show()

# %% [markdown]
# If SGD with momentum alone gets as far, you do not need this. Otherwise, these are your settings:

# %%
print(f"sampler = ctld_optax.ctld({learning_rate:g}, temperature={temperature:.1e}, momentum={MOMENTUM}, key=0)")
print(f"tx = ctld_optax.phase_switch(sampler, optax.sgd({learning_rate:g}, momentum={MOMENTUM}), {sampling_steps=})")
