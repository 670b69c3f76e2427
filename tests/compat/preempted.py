"""A training program that can be killed at any moment: `python -m tests.compat.preempted DIRECTORY`.

It saves after every step, starts where the newest sound checkpoint left off, and writes its final state to
DIRECTORY/final.npz. The phase switch lies in the middle.
"""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ctld_optax
from ctld_optax import checkpoint

STEPS = 60
PAUSE = 0.01  # seconds a step, so that kills fall everywhere


def transformation() -> Any:
    return ctld_optax.phase_switch(ctld_optax.ctld(0.05, 0.01, key=1), optax.sgd(0.05, momentum=0.9), STEPS // 2)


def fresh() -> dict[str, Any]:
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "h": jnp.ones((3,), jnp.bfloat16)}
    return {"params": params, "opt_state": transformation().init(params), "step": 0}


@jax.jit
def update(params: Any, opt_state: Any) -> Any:
    value = 0.5 * sum(jnp.sum(jnp.square(p.astype(jnp.float32))) for p in jax.tree.leaves(params))
    updates, opt_state = transformation().update(params, opt_state, params, value=value)
    return optax.apply_updates(params, updates), opt_state


def one_step(state: dict[str, Any]) -> dict[str, Any]:
    params, opt_state = update(state["params"], state["opt_state"])
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}


def main(directory: Path) -> None:
    found = checkpoint.restore_latest(directory, like=fresh())
    state = found[1] if found else fresh()
    print(f"starts at step {state['step']}", flush=True)
    while state["step"] < STEPS:
        state = one_step(state)
        checkpoint.save(directory, state["step"], state)
        print(f"step {state['step']}", flush=True)
        time.sleep(PAUSE)
    checkpoint.save(directory / "final", STEPS, state)


if __name__ == "__main__":
    warnings.simplefilter("always")
    main(Path(sys.argv[1]))
