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
# # Replace SGD-M in a Flax training state
#
# A deep network with badly scaled weights: SGD with momentum does not move it. We replace the optimizer by
# continuously tempered Langevin dynamics that hands over to the same SGD-M, and look at what the temperature did.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import ctld_optax
from ctld_optax import diagnostics, plotting

images, labels = load_digits(return_X_y=True)
x, y = jnp.asarray(images, jnp.float32) / 16.0, jnp.asarray(labels)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        weights = nn.initializers.normal(stddev=0.1)
        for _ in range(20):
            x = nn.relu(nn.Dense(50, kernel_init=weights)(x))
        return nn.Dense(10, kernel_init=weights)(x)


model = MLP()


# %% [markdown]
# One training loop for both. The only line that differs from an ordinary Flax loop is the one that passes the loss as `value`;
# `TrainState.apply_gradients` cannot forward it.


# %%
STEPS, SAMPLING_STEPS = 4_000, 2_000


def train(tx, seed=0):
    def step(carry, _):
        state, key = carry
        key, batch_key = jax.random.split(key)
        index = jax.random.randint(batch_key, (128,), 0, len(y))

        def loss_fn(params):
            logits = state.apply_fn(params, x[index])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[index]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = state.tx.update(grads, state.opt_state, state.params, value=loss)
        new_params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=new_params, opt_state=opt_state)
        tempered = optax.tree.get(opt_state, "alpha") is not None
        return (state, key), (loss, diagnostics.snapshot(opt_state) if tempered else None)

    init_key, batch_key = jax.random.split(jax.random.key(seed))
    params = model.init(init_key, x[:1])
    state = TrainState.create(
        apply_fn=model.apply, params=params, tx=optax.with_extra_args_support(tx)
    )
    (state, _), (losses, trajectory) = jax.lax.scan(step, (state, batch_key), length=STEPS)
    return losses, trajectory, state.opt_state


# %% [markdown]
# The recipe has two safeguards. The gradient is clipped, so that a step at the hottest moment cannot throw the network away;
# and the learning rate of the second phase falls to zero, so that the run ends at rest and not on a minibatch that shook it.
# (Clipping changes what is sampled where gradients are long: for exploring that does not matter, for posteriors leave it out.)


# %%
def recipe(key):
    sampler = ctld_optax.ctld(learning_rate=0.01, temperature=2.5e-5, momentum=0.9, key=key)
    falling = optax.cosine_decay_schedule(0.01, STEPS - SAMPLING_STEPS)
    phases = ctld_optax.phase_switch(sampler, optax.sgd(falling, momentum=0.9), SAMPLING_STEPS)
    return sampler, optax.chain(optax.clip_by_global_norm(1.0), phases)


sampler, tx = recipe(0)
sgd_loss, *_ = jax.jit(lambda: train(optax.sgd(0.01, momentum=0.9)))()
ctld_loss, trajectory, last = jax.jit(lambda: train(tx))()

# %% [markdown]
# ## The loss
#
# SGD with momentum stays where it started. While CTLD samples, the noise holds the loss up; from the hand-over on it falls.

# %%
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.semilogy(sgd_loss, color=plotting.BLUE, label="SGD-M")
ax.semilogy(ctld_loss, color=plotting.VERMILLION, label="CTLD, then SGD-M", linewidth=0.8)
plotting.mark_switch(SAMPLING_STEPS, ax=ax)
ax.set(xlabel="step", ylabel="minibatch loss  [nats]")
ax.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# ## What the temperature did, on one page

# %%
num_params = sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0), x[:1])))
plotting.dashboard(trajectory, sampler, value=ctld_loss, num_params=num_params, state=last)
plt.show()

# %% [markdown]
# One panel of it, larger: each step a point, where alpha and its momentum were, coloured by the temperature.

# %%
figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
sampled = jax.tree.map(lambda row: row[:SAMPLING_STEPS], trajectory)
plotting.phase_portrait(sampled.alpha, sampled.r_alpha, ax=ax)
plt.show()

# %% [markdown]
# The share of steps at the base temperature should be near delta / delta' = 0.27, and no step should have been skipped.

# %%
alpha = trajectory.alpha[:SAMPLING_STEPS]
print("share of steps in the window:", round(diagnostics.fraction_in_window(alpha), 3))
print(
    "round trips:",
    diagnostics.round_trips(alpha),
    " steps skipped:",
    int(trajectory.skipped[-1]),
)
print(
    "last losses: SGD-M",
    round(float(sgd_loss[-100:].mean()), 3),
    " CTLD",
    round(float(ctld_loss[-100:].mean()), 4),
)

# %% [markdown]
# ## Ten seeds
#
# One run may be lucky. Ten, each with weights, minibatches and noise of its own, side by side:

# %%
losses, *_ = jax.jit(jax.vmap(lambda seed: train(recipe(seed)[1], seed)))(jnp.arange(10))
ends = losses[:, -100:].mean(axis=1)
print("last losses, sorted:", [round(float(end), 4) for end in jnp.sort(ends)])
print("runs that left the plateau:", int((ends < 0.1).sum()), "of 10")
