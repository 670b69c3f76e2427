"""Posterior samples from a run: which steps count, how much each counts, and what is kept of them inside jit.

A training loop that keeps 64 parameter sets of the posterior::

    sampler = ctld_optax.posterior_sampler(learning_rate, 1 / num_examples, key=0)
    reservoir = ctld_optax.posterior.Reservoir(capacity=64, thin=100)
    ensemble = reservoir.init(params, key=1)

    def step(carry, batch):
        params, opt_state, ensemble = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = sampler.update(grads, opt_state, params, value=loss)
        ensemble = reservoir.update(ensemble, params, ctld_optax.posterior.in_window(opt_state.alpha))
        return (optax.apply_updates(params, updates), opt_state, ensemble), None

    mean_prediction = ctld_optax.posterior.predict(ensemble, model, inputs)

:class:`Reservoir` keeps networks, of which any input can be asked later; :class:`RunningMean` keeps one mean, such as that of
the predictions on a fixed set, over as many steps as you like. A network with batch normalisation is kept whole: give the
reservoir `(params, batch_stats)`, since each network has statistics of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ctld_optax._arrays.dtypes import mean_dtype_of
from ctld_optax._checked import check_fields, checked
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.coupling import COUPLINGS
from ctld_optax._dynamics.integrators import INTEGRATORS, IntegratorName
from ctld_optax._dynamics.tempering import GeometricTempering, PolynomialTempering
from ctld_optax._running_mean import RunningMean, RunningMeanState
from ctld_optax._sample import sample
from ctld_optax._validate import as_key, check_arrays, check_bias, check_count, check_range

__all__ = [
    "Reservoir",
    "ReservoirState",
    "RunningMean",
    "RunningMeanState",
    "in_window",
    "log_weights",
    "log_weights_of_step",
    "predict",
    "sample",
]


@checked()
def in_window(alpha: ArrayLike, tempering: PolynomialTempering = PolynomialTempering()) -> jax.Array:
    """True for the steps that are posterior samples: |alpha| <= delta, where g = 1. Same shape as `alpha`.

    With a bias that stands still their parameters follow exp(-value/temperature) (Theorem 1 and Eq. 7). `alpha` is
    the state's after an `update`, and belongs to the parameters that this update was made from.

    Example:
      >>> ctld_optax.posterior.in_window(jnp.array([0.0, -0.3, 1.2]))
      Array([ True,  True, False], dtype=bool)
    """
    return tempering.in_window(jnp.asarray(alpha))


@checked()
def log_weights(
    value: ArrayLike,
    temperature: ArrayLike,
    num_params: int,
    *,
    momentum: float = 0.9,
    integrator: IntegratorName = "baoab",
    coupling: Literal["potential", "hamiltonian"] = "potential",
    bias: Bias | None = None,
    bias_state: jax.Array | None = None,
    tempering: PolynomialTempering = GeometricTempering(),
) -> jax.Array:
    r"""Log of the weight with which *every* step, also a hot one, counts as a posterior sample.

    The weight is the probability that alpha is in its window, given the parameters,

    .. math::
        w = P(|\alpha| \le \delta \mid \theta)
          = \frac{e^{-U} \int_{|a| \le \delta} e^{-V_b(a)} da}
                 {\int e^{-g(a) U - V_b(a)} da},
        \qquad U = \text{value} / T.

    It replaces the mask by its expectation (Rao-Blackwell), with the momenta integrated out. In the hamiltonian coupling their
    partition function :math:`g(a)^{-d/2}` belongs into the integral (in Euler's order, whose momenta are hotter by 2/(1+mu),
    with d/(1+mu) for d/2). The paper's own weight, exp((g - 1) H + V_b), is right as well, and noisier:
    :func:`log_weights_of_step`.

    Effective sample size of the mean of the skewed double well, T = 0.37, 60,000 steps x 64 chains, hamiltonian coupling:
    14,000 from the window, 25,000 from the paper's weight and 27,000 from this one with
    :class:`~ctld_optax.AdaptiveBiasingForce`; 10,000, 29,000 and 47,000 without a bias.

    Args:
      value: the loss, any shape.
      temperature: T > 0, as given to `ctld`.
      num_params: d, how many parameters there are (not arrays).
      momentum: mu, as given to `ctld`; it matters in Euler's order only.
      integrator: as given to `ctld`.
      coupling: as given to `ctld`; "potential" is that of `posterior_sampler`.
      bias: as given to `ctld`.
      bias_state: the final state's `bias`, of one chain; needed with a bias.
      tempering: as given to `ctld`; the default is that of `posterior_sampler`.

    Returns:
      log w <= 0, same shape as `value`. Normalise as you please: `jax.nn.softmax(log_weights(...))` sums to 1.

    Raises:
      ValueError: if there is a bias without its state.

    Example:
      >>> losses = jnp.array([0.1, 0.2, 0.9])
      >>> log_weights = ctld_optax.posterior.log_weights(losses, temperature=0.1, num_params=2)
      >>> weights = jax.nn.softmax(log_weights)
      >>> bool(weights[0] > weights[2])  # low losses are those of the cold steps
      True
    """
    check_count("num_params", num_params, 1)
    check_range("temperature", temperature, minimum=0.0, minimum_open=True)
    check_range("momentum", momentum, minimum=0.0, maximum=1.0, maximum_open=True)
    energy = jnp.asarray(value) / temperature
    limit = tempering.delta_prime
    nodes = jnp.linspace(-limit, limit, 601, dtype=energy.dtype)
    beta = tempering.beta(nodes)
    exponent = -_potential(bias, bias_state, nodes, limit)
    if COUPLINGS[coupling].heats_momenta:
        exponent = exponent - num_params * INTEGRATORS[integrator].momenta_exponent(momentum) * jnp.log(beta)
    # Relative to exp(-U), so that an offset of the loss costs no digits in the window.
    everywhere = jax.vmap(lambda e: jax.nn.logsumexp(exponent + (1.0 - beta) * e))(energy.reshape(-1)).reshape(energy.shape)
    window = jax.nn.logsumexp(jnp.where(beta >= 1.0, exponent, -jnp.inf))
    return window - everywhere


@checked()
def log_weights_of_step(
    value: ArrayLike,
    kinetic_energy: ArrayLike,
    alpha: ArrayLike,
    temperature: ArrayLike,
    *,
    coupling: Literal["potential", "hamiltonian"] = "potential",
    bias: Bias | None = None,
    bias_state: jax.Array | None = None,
    tempering: PolynomialTempering = GeometricTempering(),
) -> jax.Array:
    r"""Log of the paper's weight, :math:`(g(\alpha) - 1) H + V_b(\alpha)` with :math:`H = (\text{value} + K)/T`.

    It turns the joint density exp(-g H - V_b) of (theta, r, alpha) into exp(-H), with alpha uniform. With
    `coupling="potential"` H is value/T, as there. Its spread grows with
    the number of parameters; :func:`log_weights` is the better estimate of the same.

    Args:
      value: the loss, any shape.
      kinetic_energy: the state's, in units of `value`; same shape.
      alpha: the state's; same shape.
      temperature: T > 0, as given to `ctld`.
      coupling: as given to `ctld`; "potential" is that of `posterior_sampler`.
      bias: as given to `ctld`.
      bias_state: the final state's `bias`, of one chain; needed with a bias.
      tempering: as given to `ctld`; the default is that of `posterior_sampler`.

    Returns:
      Log weights up to a constant, same shape as `value`.

    Raises:
      ValueError: if there is a bias without its state.

    Example:
      >>> losses, kinetic = jnp.array([0.1, 0.2, 0.9]), jnp.array([0.1, 0.1, 0.4])
      >>> alpha = jnp.array([0.0, 0.2, 1.4])
      >>> ctld_optax.posterior.log_weights_of_step(losses, kinetic, alpha, temperature=0.1).shape
      (3,)
    """
    check_range("temperature", temperature, minimum=0.0, minimum_open=True)
    alpha = jnp.asarray(alpha)
    energy = COUPLINGS[coupling].energy(jnp.asarray(value), jnp.asarray(kinetic_energy)) / temperature
    potential = _potential(bias, bias_state, alpha, tempering.delta_prime)
    return (tempering.beta(alpha) - 1.0) * energy + potential


def _potential(bias: Bias | None, bias_state: jax.Array | None, alpha: jax.Array, limit: float) -> jax.Array:
    if bias is None:
        return jnp.zeros_like(alpha)
    if bias_state is None:
        raise ValueError("the weights need the bias as the run left it: pass bias_state=state.bias.")
    check_bias("bias_state", bias_state, bias.num_bins)
    at = jax.vmap(lambda a: bias.potential(bias_state.astype(alpha.dtype), a, limit))
    return at(alpha.reshape(-1)).reshape(alpha.shape)


class ReservoirState(NamedTuple):
    """State of a :class:`Reservoir`. Same structure, shapes and dtypes from `init` to every `update`.

    Attributes:
      samples: like params, with a leading axis of length capacity.
      num_open: shape (), int32: steps so far at which the window was open.
      num_offered: shape (), int32: thinned steps so far.
      key: shape (), typed PRNG key.

    Example:
      >>> reservoir = ctld_optax.posterior.Reservoir(capacity=3)
      >>> ensemble = reservoir.init({"w": jnp.zeros(2)}, key=0)
      >>> for number in range(10):
      ...     params = {"w": jnp.full(2, float(number))}
      ...     ensemble = reservoir.update(ensemble, params, number % 2 == 0)
      >>> ensemble.samples["w"].shape
      (3, 2)
    """

    samples: Any
    num_open: jax.Array
    num_offered: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Reservoir:
    """A uniform sample of fixed size of all parameters seen while the window is open.

    Every `thin`-th open step is offered; the n-th offer takes a free slot, or from then on a random slot with probability
    capacity/n. At any time the slots hold a uniform sample of all offers, so the run may end whenever it likes.

    Args:
      capacity: number of slots >= 1; memory is that many copies of the parameters.
      thin: >= 1, offer every so many open steps; about the autocorrelation time of the parameters keeps them independent.

    Raises:
      ValueError, TypeError: if one is no Python integer >= 1.

    Source: Vitter, "Random Sampling with a Reservoir", ACM TOMS 11 (1985), algorithm R.

    Example:
      >>> reservoir = ctld_optax.posterior.Reservoir(capacity=3)
      >>> ensemble = reservoir.init({"w": jnp.zeros(2)}, key=0)
      >>> for number in range(10):
      ...     params = {"w": jnp.full(2, float(number))}
      ...     ensemble = reservoir.update(ensemble, params, number % 2 == 0)
      >>> int(ensemble.num_offered)  # every second one, of which three were kept
      5
    """

    capacity: int
    thin: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("capacity", self.capacity, 1)
        check_count("thin", self.thin, 1)

    @checked()
    def init(self, params: Any, *, key: int | jax.Array) -> ReservoirState:
        """An empty reservoir: zeros in every slot."""
        check_arrays(params)
        samples = jax.tree.map(lambda p: jnp.zeros((self.capacity, *p.shape), p.dtype), params)
        # A clone: the state never holds the caller's own key, which a donation would delete.
        return ReservoirState(samples, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jax.random.clone(as_key(key)))

    @checked(state="Write state = reservoir.init(params, key=0).")
    def update(self, state: ReservoirState, params: Any, is_open: bool | jax.Array) -> ReservoirState:
        """Takes in the parameters of one step if `is_open`, one boolean such as :func:`in_window` gives."""
        open_now: jax.Array = jnp.asarray(is_open)
        if open_now.shape != () or open_now.dtype != jnp.bool:
            raise ValueError(f"is_open must be one boolean, got an array of dtype {open_now.dtype}, shape {open_now.shape}.")
        check_arrays(params)
        given, known = jax.tree.structure(params), jax.tree.structure(state.samples)
        if given != known:
            raise ValueError(f"params must have the structure that init saw, {known}, got {given}.")
        for p, kept in zip(jax.tree.leaves(params), jax.tree.leaves(state.samples), strict=True):
            if p.shape != kept.shape[1:]:
                raise ValueError(f"params must have the shapes that init saw, got {p.shape} for {kept.shape[1:]}.")
        is_offered = open_now & (state.num_open % self.thin == 0)
        seen = state.num_offered + 1
        draw = jax.random.randint(jax.random.fold_in(state.key, state.num_offered), (), 0, seen, seen.dtype)
        slot = jnp.where(state.num_offered < self.capacity, state.num_offered, draw)
        # A slot beyond the end is dropped: no branch, and the buffers are written in place.
        slot = jnp.where(is_offered, slot, self.capacity)
        samples = jax.tree.map(lambda kept, p: kept.at[slot].set(p, mode="drop"), state.samples, params)
        return ReservoirState(
            samples=samples,
            num_open=state.num_open + open_now.astype(jnp.int32),
            num_offered=state.num_offered + is_offered.astype(jnp.int32),
            key=state.key,
        )


@checked()
def predict(state: ReservoirState, function: Callable[..., Any], *args: Any, batch_size: int | None = None) -> Any:
    """The mean of `function(params, *args)` over the parameters in a reservoir: the posterior predictive.

    Args:
      state: a reservoir's. If it is empty the result is NaN.
      function: gives an array, or a pytree of them; average probabilities, not logits.
      *args: handed on.
      batch_size: how many parameter sets to evaluate at once; None: one after the other.

    Returns:
      What `function` gives, averaged.

    Example:
      >>> reservoir = ctld_optax.posterior.Reservoir(capacity=3)
      >>> ensemble = reservoir.init({"w": jnp.zeros(2)}, key=0)
      >>> for number in range(10):
      ...     params = {"w": jnp.full(2, float(number))}
      ...     ensemble = reservoir.update(ensemble, params, number % 2 == 0)
      >>> model = lambda params, x: x @ params["w"]
      >>> ctld_optax.posterior.predict(ensemble, model, jnp.ones((4, 2))).shape
      (4,)
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    capacity = jax.tree.leaves(state.samples)[0].shape[0]
    filled = jnp.arange(capacity, dtype=state.num_offered.dtype) < state.num_offered
    outputs = jax.lax.map(lambda params: function(params, *args), state.samples, batch_size=batch_size)

    def mean(output: jax.Array) -> jax.Array:
        dtype = mean_dtype_of(output.dtype)
        mask = filled.reshape(-1, *(1,) * (output.ndim - 1))
        total = jnp.where(mask, output.astype(dtype), jnp.zeros((), dtype)).sum(axis=0)
        return (total / filled.sum().astype(dtype)).astype(output.dtype if jnp.issubdtype(output.dtype, jnp.inexact) else dtype)

    return jax.tree.map(mean, outputs)
