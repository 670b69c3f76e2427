"""The scalars of a state, wherever in a larger one it is."""

from typing import Any, NamedTuple

import jax

from ctld_optax._dynamics.langevin import CTLDState


class Snapshot(NamedTuple):
    """The scalars of a :class:`~ctld_optax.CTLDState`, cheap enough to record at every step.

    Attributes:
      count: int32: number of sampling steps made.
      alpha: tempering variable.
      r_alpha: its momentum.
      beta: g(alpha); the temperature is the base temperature over beta.
      kinetic_energy: in units of value.
      energy_mean: running mean of the energy that is coupled to alpha, in units of value.
      energy_var: its running variance.
      skipped: int32: steps skipped so far because value or gradient was not finite.

    Example:
      >>> state = ctld_optax.ctld(0.01, 1e-3, key=0).init(jnp.ones(3))
      >>> float(ctld_optax.diagnostics.snapshot(state).beta)
      1.0
    """

    count: Any
    alpha: Any
    r_alpha: Any
    beta: Any
    kinetic_energy: Any
    energy_mean: Any
    energy_var: Any
    skipped: Any


def snapshot(state: Any) -> Snapshot:
    """The scalars of the one `CTLDState` inside `state`, however deep it is wrapped.

    Args:
      state: a `CTLDState`, or the state of `phase_switch`, `optax.chain`, `optax.MultiSteps`, ... around one.

    Raises:
      ValueError: if there is no `CTLDState` in it, or more than one.

    Example:
      >>> sampler = ctld_optax.ctld(0.05, 1e-3, key=0)
      >>> tx = ctld_optax.phase_switch(sampler, optax.sgd(0.05, momentum=0.9), 2_000)
      >>> float(ctld_optax.diagnostics.snapshot(tx.init(jnp.ones(3))).alpha)
      0.0
    """
    found = ctld_state(state)
    # The leaf: in an `nnx.Optimizer` each array stands in a box of its own.
    return Snapshot(**{name: jax.tree.leaves(getattr(found, name))[0] for name in Snapshot._fields})


def ctld_state(state: Any) -> CTLDState:
    """The one `CTLDState` inside `state`, however deep it is wrapped.

    Raises:
      ValueError: if there is none, or more than one.

    Example:
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), ctld_optax.ctld(0.01, 1e-3, key=0))
      >>> ctld_optax.diagnostics.ctld_state(tx.init(jnp.ones(3))).momentum
      Array([0., 0., 0.], dtype=float32)
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, CTLDState))
    found = [leaf for leaf in leaves if isinstance(leaf, CTLDState)]
    if len(found) != 1:
        raise ValueError(
            f"exactly one CTLDState is needed in the state, found {len(found)} in a {type(state).__name__}. "
            "Pass the part that holds the one you mean."
        )
    return found[0]
