"""A change that may or may not be made, without a copy of what it changes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def change_if(condition: jax.Array, change: Callable[[Any], Any], carry: Any) -> Any:
    """`change(carry)` if `condition` holds, else `carry`.

    A loop of one turn or none, not a `lax.cond`: XLA runs such a loop in place, and copies the whole carry for a branch that
    makes parts of it anew.
    """
    return jax.lax.fori_loop(0, condition.astype(jnp.int32), lambda _, carry: change(carry), carry)
