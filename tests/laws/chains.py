"""What the law tests share: many chains in one scan, errors from the effective sample size, and wrong kernels.

Arrays of draws have shape (chains, draws, ...), as ArviZ has them.
"""

import dataclasses
import inspect
from typing import NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np

import ctld_optax
from ctld_optax._dynamics import langevin


class Draws(NamedTuple):
    """One row a recorded step: parameters, the momentum that left them, and the scalars of the same step."""

    theta: np.ndarray
    momentum: np.ndarray
    value: np.ndarray
    kinetic_energy: np.ndarray
    alpha: np.ndarray
    r_alpha: np.ndarray

    def after(self, share):
        """Without the first `share` of each chain."""
        return Draws(*(rows[:, int(share * rows.shape[1]) :] for rows in self))


def simulate(transformation, loss, start, *, steps, chains, thin=1, seed):
    """`chains` replicas of `transformation` on `loss(theta)`.

    Returns:
      The draws, every `thin`-th step, and the final states.
    """
    keys = jax.random.split(jax.random.key(seed), chains)
    template = transformation.init(start)
    states = jax.vmap(lambda key: _seeded(transformation, template, start, key))(keys)
    value_and_grad = jax.value_and_grad(loss)

    def step(carry, _):
        theta, state, _, _ = carry
        value, grads = value_and_grad(theta)
        updates, new_state = transformation.update(grads, state, theta, value=value)
        return (theta + updates, new_state, theta, value), None

    def record(carry, _):
        carry, _ = jax.lax.scan(step, carry, None, length=thin)
        _, state, theta, value = carry
        return carry, Draws(theta, state.momentum, value, state.kinetic_energy, state.alpha, state.r_alpha)

    @jax.jit
    @jax.vmap
    def chain(state):
        carry, draws = jax.lax.scan(record, (start, state, start, jnp.zeros(())), None, length=steps // thin)
        return carry[1], draws

    states, draws = chain(states)
    return Draws(*(np.asarray(rows, np.float64) for rows in draws)), states


def _seeded(transformation, template, start, key):
    """The initial state with a key of its own; r_alpha and a stationary momentum are drawn from it in `init`."""
    kernel = dataclasses.replace(transformation.kernel, key=key)
    state = kernel.init(start)
    return jax.tree.map(lambda new, _: new, state, template)


def broken(transformation, kernel_class=None, alpha_class=None, **parts):
    """The same transformation with some parts of its kernel or of its alpha half replaced by wrong ones."""
    kernel = transformation.kernel
    of_alpha = {name: parts.pop(name) for name in list(parts) if name in {"tempering", "bias", "coupling", "walls"}}
    alpha = _as_class(dataclasses.replace(kernel.alpha, **of_alpha), alpha_class)
    kernel = _as_class(dataclasses.replace(kernel, alpha=alpha, **parts), kernel_class)
    return langevin.transformation(kernel)


def _as_class(settings, other):
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return settings if other is None else other(**values)


def estimate(samples, weights=None):
    """Mean of shape (...,) over chains and draws, and its standard error from ArviZ's effective sample size.

    With `weights` (chains, draws) the self-normalised mean; its error is that of the linearised ratio.
    """
    samples = np.asarray(samples, np.float64)
    tail = samples.shape[2:]
    samples = samples.reshape(*samples.shape[:2], -1)
    weights = np.ones(samples.shape[:2]) if weights is None else np.asarray(weights, np.float64)
    mean = np.einsum("cn,cni->i", weights, samples) / weights.sum()
    residual = weights[..., None] * (samples - mean) / weights.mean()
    error = np.array([_error_of_mean(one) for one in np.moveaxis(residual, -1, 0)])
    return mean.reshape(tail), error.reshape(tail)


def _error_of_mean(draws):
    spread = np.std(draws)
    return spread / np.sqrt(az.ess(draws, method="mean")) if spread > 0.0 else 0.0


def effective_size(samples, weights=None):
    """Number of independent draws whose plain mean had the same standard error."""
    mean, error = estimate(samples, weights)
    weights = np.ones(np.shape(samples)) if weights is None else weights
    variance = np.average((samples - mean) ** 2, weights=weights)
    return variance / error**2


def deviation(samples, truth, *, weights=None, slack=0.0):
    """The largest |mean - truth|, less `slack`, in standard errors: a law holds where it is below 4.

    Entries that no draw touches (an error of 0) count as infinitely wrong unless they are right to rounding.
    """
    mean, error = estimate(samples, weights)
    excess = np.maximum(np.abs(mean - truth) - slack, 0.0)
    return float(np.max(excess / np.maximum(error, 1e-6)))


SIGMAS = 4.0


def sampler(learning_rate=0.01, temperature=0.37, momentum=0.83, **changes):
    """The preset for posteriors with no constant equal to 1; `changes` may also be `ctld`'s own."""
    build = ctld_optax.posterior_sampler
    if changes.keys() - inspect.signature(build).parameters.keys():
        build = ctld_optax.ctld
        changes = {"coupling": "potential", "bias": ctld_optax.AdaptiveBiasingForce(), "alpha_step_size": 0.05} | changes
    return build(learning_rate, temperature, momentum, **({"key": 0} | changes))
