"""Settings that differ from layer to layer: how a user says so, and how the step holds them.

A setting of the step, the learning rate or the temperature, is of a step an array: of shape () if it is one for all parameters,
else of shape (leaves,), a number for each leaf in the order of `jax.tree.leaves`. Formulas made of such numbers are the same in
both cases; where they meet the parameters, `each` deals them out.

Nothing here knows of noise, of alpha or of Optax.
"""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax._arrays import compat
from ctld_optax._validate import as_schedule

Schedule = Callable[[Any], Any]
NUMBERS = numbers.Real | np.number | np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class PerLayer:
    r"""A learning rate or a temperature for each layer, all driven by one alpha.

    **A learning rate per layer changes how fast a layer moves, not what is sampled.** With :math:`\ell_i` that of layer i,

    .. math::
        m_i \leftarrow \mu m_i + \nabla_i \text{value} - \sqrt{\frac{2 (1-\mu) T}{\ell_i\, \beta}}\, \epsilon, \qquad
        \theta_i \leftarrow \theta_i - \ell_i m_i, \qquad K = \tfrac12 \sum_i \ell_i |m_i|^2,

    which is a mass of :math:`1/\ell_i`: the noise of a layer follows from its own learning rate, and the stationary density is
    :math:`\exp(-\text{value}/T)` as before. A :class:`~ctld_optax.FixedMetric` of one number a layer has the same law; here the
    momentum stays the sum of raw gradients that `optax.sgd` has, so that it can be handed over, a layer may have a schedule
    of its own, and there is room for a preconditioner beside it.

    **A temperature per layer samples no such density.** Layers that act on each other carry heat from the hot to the cold
    ones, and what comes of it depends on the learning rates too. It is a choice of how much noise a layer gets: 0 for one that
    is to be trained as by `optax.sgd`, bit for bit. The couplings "hamiltonian" and "potential", which sample exactly, refuse
    it, and so does what asks for the temperature (in :func:`ctld_optax.diagnostics.report` the kinetic temperature is not
    looked at). A :class:`~ctld_optax.SecondMoment` or :class:`~ctld_optax.LayerScale` goes by the highest.

    Example:
      >>> head = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
      >>> params = {"embedding": jnp.zeros((5, 3)), "head": head}
      >>> falling = optax.linear_schedule(1e-2, 1e-3, 1_000)
      >>> rates = ctld_optax.PerLayer({"embedding": 1e-3, "head": falling})
      >>> sampler = ctld_optax.ctld(rates, 1e-5, key=0)
      >>> sampler.init(params).learning_rate  # of embedding, head/b, head/w
      Array([0.001, 0.01 , 0.01 ], dtype=float32)
      >>> of_name = lambda name: 1e-3 if "embedding" in name else 1e-2
      >>> rates = ctld_optax.PerLayer(of_name)
      >>> optimizers = {"slow": optax.sgd(1e-3, 0.9), "fast": optax.sgd(1e-2, 0.9)}
      >>> kinds = {"embedding": "slow", "head": "fast"}
      >>> onto = optax.partition(optimizers, kinds)
      >>> tx = ctld_optax.phase_switch(ctld_optax.ctld(rates, 1e-5, key=0), onto, 1_000)
      >>> state = tx.init(params)

    Args:
      rule: a pytree prefix of the parameters whose leaves are numbers or schedules; or a function that gives one of these for
        the name of a parameter, its keys with "/" between them, "head/w" above.

    Raises:
      TypeError: if there is nothing in `rule`; and from what it is given to, for what is no number or schedule.
      ValueError: from what it is given to, for a number out of range, and from `init` if `rule` is no prefix of the parameters.
    """

    rule: Any

    def __post_init__(self) -> None:
        leaves = jax.tree.leaves(self.rule)
        wrong = [leaf for leaf in leaves if isinstance(leaf, bool | type) or not (callable(leaf) or isinstance(leaf, NUMBERS))]
        if wrong or not leaves:
            raise TypeError(
                "rule must be a pytree prefix of the parameters whose leaves are numbers or schedules, or a function of a "
                f"parameter's name; got {(wrong or [self.rule])[0]!r:.60}."
            )


class Layers:
    """A `PerLayer` as an argument of this name, checked.

    Args:
      name: of the argument.
      rule: as of `PerLayer`.
      minimum_open: whether 0 is left out.
    """

    def __init__(self, name: str, rule: Any, *, minimum_open: bool) -> None:
        def checked(path: str, given: Any) -> Schedule:
            return as_schedule(f"{name} of {path}" if path else name, given, minimum_open=minimum_open)

        def of(structure: Any) -> list[Schedule]:
            like = structure.unflatten(range(structure.num_leaves))
            if callable(rule):
                paths = [compat.path_name(path, "/") for path, _ in jax.tree_util.tree_leaves_with_path(like)]
                return [checked(path, rule(path)) for path in paths]
            return of_prefix(schedules, like, f"{name} must be a PerLayer of a prefix of the parameters")

        if not callable(rule):
            schedules = jax.tree_util.tree_map_with_path(lambda path, leaf: checked(compat.path_name(path, "/"), leaf), rule)
        self.of = of  # kept nowhere: a rule may make numbers of a trace, which must not outlive it

    def at(self, count: Any, like: Any, dtype: Any) -> jax.Array:
        """The numbers of a step for the leaves of `like`; a schedule that several leaves share is evaluated once."""
        schedules = self.of(jax.tree.structure(like))
        different = {id(schedule): schedule for schedule in schedules}
        values = {name: jnp.asarray(schedule(count), dtype) for name, schedule in different.items()}
        return jnp.asarray([values[id(schedule)] for schedule in schedules], dtype)


Knob = Schedule | Layers


def as_knob(name: str, given: Any, *, minimum_open: bool = False) -> Knob:
    """A number, a schedule or a `PerLayer`, checked as `as_schedule` does."""
    if isinstance(given, PerLayer):
        return Layers(name, given.rule, minimum_open=minimum_open)
    return as_schedule(name, given, minimum_open=minimum_open)


def at(knob: Knob, count: Any, like: Any, dtype: Any = None) -> jax.Array:
    """The number of a step, of shape (); or one for each leaf of `like`, of shape (leaves,)."""
    if isinstance(knob, Layers):
        return knob.at(count, like, jnp.result_type(float) if dtype is None else dtype)
    return jnp.asarray(knob(count), dtype)


def of_prefix(prefix: Any, tree: Any, must_be: str) -> list[Any]:
    """What a pytree prefix says of each leaf of `tree`; a `ValueError` that begins with what it must be if it is none."""
    try:
        return jax.tree.leaves(compat.broadcast(prefix, tree))
    except ValueError as error:
        structures = f"{jax.tree.structure(tree)}; got the structure {jax.tree.structure(prefix)}"
        raise ValueError(f"{must_be}, {structures}.") from error


def each(of_leaves: Any, like: Any) -> Any:
    """A pytree like `like`: of the one number, or of each leaf's own."""
    structure = jax.tree.structure(like)
    return structure.unflatten([of_leaves] * structure.num_leaves if jnp.ndim(of_leaves) == 0 else list(of_leaves))
