"""What a step makes beside its new state, made late: of that state, so that no loop need carry it out in a buffer."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

# Arithmetic entry by entry, which XLA fuses into whatever takes its result. A reduction, a product of matrices or random bits
# stay in the step, which makes them in its own turn alone.
ENTRYWISE = {
    *("abs", "add", "add_any", "clamp", "div", "exp", "integer_pow", "log", "max", "min", "mul", "neg", "pow", "rsqrt", "sign"),
    *("sqrt", "square", "sub", "tanh", "and", "or", "not", "eq", "ne", "ge", "gt", "le", "lt", "is_finite", "select_n"),
    *("broadcast_in_dim", "convert_element_type", "copy", "optimization_barrier", "reshape", "slice", "squeeze"),
    "dynamic_slice",
}
CALLS = {"jit", "pjit", "custom_jvp_call"}


def made_late(step: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[[Any, Any], Any] | None:
    """What `step(state) -> (made, new_state)` makes, as a function of both states.

    Args:
      step: a step.
      state: what it changes.

    Returns:
      `late(state, new_state) -> made`, the step's own arithmetic, which reads nothing of the old state but numbers; None where
      that is not enough, or it takes more than arithmetic entry by entry.
    """
    program, (made, _) = jax.make_jaxpr(step, return_shape=True)(state)
    jaxpr, structure = program.jaxpr, jax.tree.structure(made)
    made_of, results = jaxpr.outvars[: structure.num_leaves], jaxpr.outvars[structure.num_leaves :]
    # A state may be a cast of what it is to its own dtype, and the rest made of what was cast.
    casts = {equation.outvars[0]: equation.invars[0] for equation in jaxpr.eqns if _changes_nothing(equation)}
    names = [list(_names(result, casts)) for result in results]
    known = {name for each in names for name in each}
    wanted = set(_variables(made_of)) - known
    needed: list[JaxprEqn] = []
    for equation in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(equation.outvars):
            if not _is_entrywise(equation):
                return None
            needed.append(equation)
            wanted |= set(_variables(equation.invars)) - known
    read: list[Any] = [old.aval for old in wanted.intersection(jaxpr.invars)]
    if any(aval.ndim > 0 for aval in read):
        return None

    def late(state: Any, new_state: Any) -> Any:
        inputs = dict(zip(jaxpr.invars, jax.tree.leaves(state), strict=True))
        values = dict(zip(jaxpr.constvars, program.consts, strict=True))
        for each, value in zip(names, jax.tree.leaves(new_state), strict=True):
            for name in each:
                (inputs if name in inputs else values)[name] = value
        rest = ClosedJaxpr(jaxpr.replace(constvars=list(values), eqns=needed[::-1]), list(values.values()))
        return structure.unflatten(jaxpr_as_fun(rest)(*inputs.values())[: structure.num_leaves])

    return late


def _variables(atoms: Iterable[Any]) -> Iterator[Var]:
    return (atom for atom in atoms if not isinstance(atom, Literal))


def _names(atom: Any, casts: dict[Var, Any]) -> Iterator[Var]:
    """The variable, and what it is another name of."""
    while not isinstance(atom, Literal):
        yield atom
        if atom not in casts:
            return
        atom = casts[atom]


def _changes_nothing(equation: JaxprEqn) -> bool:
    before, after = ([atom.aval for atom in atoms] for atoms in (equation.invars, equation.outvars))
    return equation.primitive.name == "convert_element_type" and before[0].strip_weak_type() == after[0].strip_weak_type()


def _is_entrywise(equation: JaxprEqn) -> bool:
    avals: list[Any] = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    if equation.effects or any(jnp.issubdtype(aval.dtype, jax.dtypes.prng_key) for aval in avals):
        return False
    if all(aval.ndim == 0 for aval in avals):
        return True
    if equation.primitive.name in CALLS:
        inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        return all(map(_is_entrywise, inner.eqns))
    return equation.primitive.name in ENTRYWISE
