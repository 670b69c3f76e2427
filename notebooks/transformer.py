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
# # A transformer: AdamW, then sampling, then an ensemble
#
# AdamW trains a transformer well. What sampling adds begins where AdamW has arrived: from there the sampler walks through
# networks that fit about as well, and those it passes at its own temperature are an ensemble. Here a small vision transformer
# learns scikit-learn's digits from 300 images, row by row. We ask three things of the ensemble on images it has not seen: is it
# more often right, is its probability of the right class higher, and is it as sure as it may be?

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import ctld_optax
from ctld_optax import diagnostics, plotting, posterior

plt.rcParams.update(plotting.STYLE)
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x = jnp.asarray(images[order].reshape(-1, 8, 8) / 16.0, jnp.float32)  # 8 rows of 8 pixels
y = jnp.asarray(labels[order])
train_x, train_y = x[:300], y[:300]
valid_x, valid_y = x[300:600], y[300:600]
test_x, test_y = x[600:], y[600:]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)
        x = x + attention(nn.LayerNorm()(x))
        return x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, rows):
        places = self.param("places", nn.initializers.normal(0.1), (8, 32))
        x = nn.Dense(32)(rows) + places
        for _ in range(2):
            x = Block()(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=-2))


model = Transformer()


def loss_fn(params, x, y):
    logits = model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


num_params = sum(
    leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0), train_x[:1]))
)
print(f"{num_params:,} parameters, {len(train_y)} images to learn from")

# %% [markdown]
# ## One loop for both phases
#
# The reservoir keeps networks at the base temperature; with AdamW it stays empty.

# %%
ADAM_STEPS, SAMPLING_STEPS, SEEDS = 1_000, 2_000, 3
reservoir = posterior.Reservoir(capacity=30, thin=20)


def train(tx, params, key, steps):
    """The last network, the ensemble, the losses with the sampler's scalars, the last state."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, number):
        params, state, ensemble = carry
        index = jax.random.randint(jax.random.fold_in(key, number), (64,), 0, len(train_y))
        loss, grads = jax.value_and_grad(loss_fn)(params, train_x[index], train_y[index])
        updates, state = tx.update(grads, state, params, value=loss)
        row = None
        if optax.tree.get(state, "alpha") is not None:
            row = diagnostics.snapshot(state)
            is_sample = posterior.in_window(row.alpha) & (number >= steps // 5)
            ensemble = reservoir.update(ensemble, params, is_sample)
        return (optax.apply_updates(params, updates), state, ensemble), (loss, row)

    carry = (
        params,
        tx.init(params),
        reservoir.init(params, key=jax.random.fold_in(key, steps)),
    )
    (params, state, ensemble), rows = jax.lax.scan(step, carry, jnp.arange(steps))
    return params, ensemble, rows, state


def with_adamw(seed, steps):
    schedule = optax.cosine_decay_schedule(2e-3, steps)
    params = model.init(jax.random.key(seed), train_x[:1])
    return train(optax.adamw(schedule, weight_decay=0.05), params, jax.random.key(seed), steps)


def sample(params, temperature, seed):
    sampler = ctld_optax.ctld(0.02, temperature, momentum=0.9, key=seed)
    return train(sampler, params, jax.random.key(100 + seed), SAMPLING_STEPS)


seeds = jnp.arange(SEEDS)
short = jax.jit(lambda: jax.lax.map(lambda s: with_adamw(s, ADAM_STEPS), seeds))()
# For a fair comparison: AdamW with as many steps as both phases together.
long = jax.jit(
    lambda: jax.lax.map(lambda s: with_adamw(s, ADAM_STEPS + SAMPLING_STEPS), seeds)
)()

# %% [markdown]
# ## The temperature, chosen on the validation images
#
# In equilibrium the noise holds the loss up by about $d\,T/2$, less where directions are flat. The rule for the start of a
# training, $2/d$ of the loss there, 2.3, divided by one to ten, gives 2.6e-5 to 2.6e-4. We try three around it, and look.


# %%
def predict(ensemble, x):
    probabilities = lambda params, x: jax.nn.softmax(model.apply(params, x))
    return np.asarray(jax.vmap(lambda e: posterior.predict(e, probabilities, x))(ensemble))


def predict_one(params, x):
    return np.asarray(jax.vmap(lambda p: jax.nn.softmax(model.apply(p, x)))(params))


def surprise(p, labels):
    """Mean negative log probability of the right class, in nats; one number a seed."""
    return -np.log(p[:, np.arange(len(labels)), labels] + 1e-12).mean(axis=1)


sample_all = jax.jit(
    lambda params, temperature: jax.lax.map(
        lambda pair: sample(pair[0], temperature, pair[1]), (params, seeds)
    )
)
temperatures = [1e-5, 1e-4, 1e-3]
runs = {t: sample_all(short[0], t) for t in temperatures}
scores = {t: surprise(predict(run[1], valid_x), valid_y) for t, run in runs.items()}
for t, score in scores.items():
    print(f"T = {t:.0e}: {score.mean():.3f} ± {score.std():.3f} nats a validation image")
best = min(scores, key=lambda t: scores[t].mean())
print(f"chosen: T = {best:.0e}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
smooth = lambda losses: np.convolve(losses, np.ones(25) / 25, "valid")
left.semilogy(
    np.arange(24, ADAM_STEPS), smooth(short[2][0][0]), color=plotting.BLUE, label="AdamW"
)
for t, color in zip(temperatures, plotting.PALETTE[1:], strict=False):
    at = ADAM_STEPS + np.arange(24, SAMPLING_STEPS)
    left.semilogy(at, smooth(runs[t][2][0][0]), color=color, label=f"sampling, T = {t:.0e}")
left.set(xlabel="step", ylabel="minibatch loss, mean of 25  [nats]")
left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small")
means = [scores[t].mean() for t in temperatures]
right.errorbar(
    temperatures, means, [scores[t].std() for t in temperatures], marker="o", capsize=4
)
adam = surprise(predict_one(short[0], valid_x), valid_y).mean()
right.axhline(adam, color="0.4", linestyle="--", linewidth=1, label="AdamW alone")
right.set(xscale="log", xlabel="temperature", ylabel="surprise, validation  [nats]")
right.legend()
plt.show()

# %% [markdown]
# ## What the temperature did

# %%
first = lambda tree: jax.tree.map(lambda row: row[0], tree)
sampler = ctld_optax.ctld(0.02, best, momentum=0.9, key=0)
losses, trajectory = first(runs[best][2])
plotting.dashboard(
    trajectory, sampler, value=losses, num_params=num_params, state=first(runs[best][3])
)
plt.show()

# %% [markdown]
# ## One network against the ensemble, on the test images


# %%
def reliability(p, labels, bins=10):
    """Confidence, accuracy and share of the images in each bin that has some."""
    confidence, is_right = p.max(axis=1), p.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [place == i for i in range(bins) if (place == i).sum() >= 20]
    return np.array([(confidence[m].mean(), is_right[m].mean(), m.mean()) for m in members]).T


def calibration_error(p, labels):
    confidence, accuracy, share = reliability(p, labels)
    return float(np.sum(share * np.abs(confidence - accuracy)))


methods = {
    f"AdamW, {ADAM_STEPS:,} steps": predict_one(short[0], test_x),
    f"AdamW, {ADAM_STEPS + SAMPLING_STEPS:,} steps": predict_one(long[0], test_x),
    "AdamW, then an ensemble": predict(runs[best][1], test_x),
}
print(f"mean ± deviation over {SEEDS} seeds")
print(f"{'':25} accuracy         surprise         calibration error")
for name, p in methods.items():
    readings = (
        (p.argmax(axis=2) == np.asarray(test_y)).mean(axis=1),
        surprise(p, test_y),
        np.array([calibration_error(one, np.asarray(test_y)) for one in p]),
    )
    print(f"{name:25} " + "  ".join(f"{r.mean():.4f} ± {r.std():.4f}" for r in readings))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
left.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":", label="perfect")
for (name, p), color in zip(methods.items(), plotting.PALETTE, strict=False):
    confidence, accuracy, _ = reliability(p.reshape(-1, 10), np.tile(test_y, SEEDS))
    left.plot(confidence, accuracy, "o-", color=color, markersize=4, label=name)
    sure = np.sort(p.max(axis=2).ravel())
    right.plot(sure, np.linspace(0, 1, sure.size), color=color, label=name)
left.set(xlabel="how sure it is", ylabel="how often it is right")
left.legend(fontsize="small")
right.set(xlabel="how sure it is", ylabel="share of the images below")
plt.show()

# %% [markdown]
# The ensemble is one of good networks, not a sample of the posterior: with the default coupling the window is not exact for a
# network of this size. What it is worth is what the table says. For a larger model, keep the last AdamW checkpoint, sample for
# some thousands of steps at a rate that plain SGD with momentum bears, and choose the temperature as above.
