"""The hand-over to everything that Optax exports: it must never do harm. `python -m tests.compat.handover` prints the table.

Arguments name the samplers that are to go before, of `SAMPLERS`, which are found too: every coupling, every metric.

The rows are found, not typed: whatever `optax` and `optax.contrib` export that makes a transformation of the arguments below.
What has a learning rate, or wraps what has one, is an optimizer; anything else stands in front of a rate and a trace, where it
scales, clips, or decides on what the trace is a sum of.
"""

import dataclasses
import inspect
import itertools
import sys
import time
import typing
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import ctld_optax
from ctld_optax._dynamics.coupling import COUPLINGS

RATE, MOMENTUM, TEMPERATURE, STEPS = 0.02, 0.9, 1e-4, 100
# Far from the minimum, at 1: whoever starts from here at the switch is seen.
START = {"w": jnp.full((3, 4), 6.0, jnp.float32), "b": jnp.full(4, -5.0, jnp.float32)}

# What holds the loss up without anyone's fault: the thermal energy, which it may lie below at the switch, and steps of the
# learning rate each way, as those of a sign are.
FLOOR = 0.5 * sum(leaf.size for leaf in jax.tree.leaves(START)) * (TEMPERATURE + RATE**2)

# An argument without a value, or with None, gets one by its name; an argument without one also by the words of its annotation.
NAMED = {"learning_rate": RATE, "momentum": MOMENTUM, "mask": True, "freeze_mask": False, "step_size_fn": lambda _: 0.5}
NAMED |= {"max_linesearch_steps": 5, "max_backtracking_steps": 5}
ANNOTATED = {"GradientTransformation": optax.sgd(RATE), "float": 0.5, "int": 5}


def loss_fn(params: Any, obj_fn: Any = None) -> jax.Array:
    """Smooth, with curvatures from 0.5 to 2, of which a learning rate of 0.02 and a momentum of 0.9 make short work."""
    del obj_fn  # searches along a line hand all on that `step` gives them
    curvature = jnp.linspace(0.5, 2.0, 4)
    return 0.5 * sum(jnp.sum(curvature * jnp.square(leaf - 1.0)) for leaf in jax.tree.leaves(params))


def step(tx: Any, params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
    value, grads = jax.value_and_grad(loss_fn)(params)
    # Some search along a line, or estimate curvatures, and ask for more than the loss.
    updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss_fn, obj_fn=loss_fn)
    return optax.apply_updates(params, updates), state, value


def arguments(factory: Any) -> dict[str, Any]:
    """A value for each argument that needs one; an exception if there is none."""
    values = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.default in (None, parameter.empty) and name in NAMED:
            values[name] = NAMED[name]
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            words = str(parameter.annotation)
            values[name] = next(value for word, value in ANNOTATED.items() if word in words)
    return values


def row(name: str, factory: Any) -> tuple[str, Any]:
    values = arguments(factory)
    tx = optax.with_extra_args_support(factory(**values))
    names = inspect.signature(factory).parameters
    wraps = any(value is ANNOTATED["GradientTransformation"] for value in values.values())
    if not wraps and not any("learning_rate" in name for name in names):
        name, tx = f"{name}, rate, trace", optax.chain(tx, optax.scale((MOMENTUM - 1.0) * RATE), optax.trace(MOMENTUM))
    jax.eval_shape(lambda params: step(tx, params, tx.init(params)), START)
    return name, tx


def rows() -> Iterator[tuple[str, Any]]:
    for module in (optax, contrib):
        for name, factory in sorted(vars(module).items()):
            if inspect.isfunction(factory):
                with warnings.catch_warnings(action="ignore"):
                    try:
                        yield row(name, factory)
                    except Exception:  # noqa: BLE001, S112 - makes no transformation, or none of plain parameters and gradients
                        continue


ROWS = dict(rows())


def samplers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings by name; the first is the one that all rows are tried with."""
    yield "constant temperature", {"tempering": None}
    yield from ((name, {"coupling": name, "alpha_step_size": 0.1}) for name in COUPLINGS)
    annotation = inspect.signature(ctld_optax.ctld).parameters["preconditioner"].annotation
    masses: dict[str, tuple[Any, ...]] = {"FixedMetric": ({"w": 2.0, "b": 1.0}, jnp.diag(jnp.linspace(1.0, 2.0, 16)))}
    for kind in typing.get_args(annotation):
        if kind is not type(None):
            for number, mass in enumerate(masses.get(kind.__name__, (None,))):
                metric = kind() if mass is None else kind(mass)
                yield f"{kind.__name__}{number or ''}", {"tempering": None, "preconditioner": metric}


SAMPLERS = dict(samplers())
PLAIN, *OTHERS = SAMPLERS


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The loss at the switch, and the highest one after it: of what went on, and of what begins there afresh."""

    switch: float
    after: float
    afresh: float

    @property
    def rises_by_itself(self) -> bool:
        return not self.afresh <= 10.0 * max(self.switch, FLOOR)  # so that NaN rises

    @property
    def harm(self) -> bool:
        """Ten times above where it was, or above what the optimizer does at this rate by itself if that rises too."""
        return np.isfinite(self.afresh) and not self.after <= 10.0 * max(self.switch, FLOOR, self.afresh)


def outcome(tx: Any, sampler_name: str = PLAIN) -> Outcome:
    sampler = ctld_optax.ctld(RATE, TEMPERATURE, MOMENTUM, key=0, **SAMPLERS[sampler_name])
    switched = ctld_optax.phase_switch(sampler, tx, STEPS)

    @jax.jit
    def run(params: Any, state: Any) -> tuple[Any, jax.Array]:
        def body(carry: Any, _: Any) -> tuple[Any, jax.Array]:
            params, state, value = step(switched, *carry)
            return (params, state), value

        return jax.lax.scan(body, (params, state), None, STEPS)

    (params, state), _ = run(START, switched.init(START))
    _, after = run(params, state)
    _, afresh = run(params, switched.init(params)._replace(count=state.count))  # without a momentum
    return Outcome(*(float(x) for x in (loss_fn(params), jnp.max(after), jnp.max(afresh))))


def main() -> int:
    start, outcomes = time.time(), {}
    warnings.simplefilter("ignore")
    print(f"{'loss at the switch, highest after it, highest begun there afresh':>78}")
    for sampler, (name, tx) in itertools.product(sys.argv[1:] or [PLAIN], ROWS.items()):
        outcomes[sampler, name] = found = outcome(tx, sampler)
        words = "harm" if found.harm else "rises by itself" if found.rises_by_itself else ""
        print(f"{name:48} {found.switch:9.1e} {found.after:9.1e} {found.afresh:9.1e} {words}", flush=True)
    harmed, rising = (sum(getattr(found, kind) for found in outcomes.values()) for kind in ("harm", "rises_by_itself"))
    print(f"{len(outcomes)} rows, {harmed} harmed, {rising} rise by themselves at this rate, {time.time() - start:.0f} s.")
    return 1 if harmed else 0


if __name__ == "__main__":
    sys.exit(main())
