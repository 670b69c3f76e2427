"""A temperature that rises, to find the one to take: what learning-rate finders are for the learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ctld_optax._checked import checked
from ctld_optax._validate import check_count, check_range


@checked()
def temperature_ramp(low: float, high: float, steps: int) -> optax.Schedule:
    r"""Geometric: :math:`T_t = \text{low} \cdot (\text{high}/\text{low})^{t / (\text{steps} - 1)}`, and `high` from then on.

    The temperature range test: train once on this ramp at a temperature that does not move by itself (`tempering=None`), with
    the learning rate and for as many steps as the sampling phase will have, and record the losses.
    :func:`ctld_optax.diagnostics.suggest_temperature` reads the base temperature from them. Three decades that begin at 2/d
    times a tenth of the loss at the start are a good first try, with d parameters.

    Args:
      low: > 0, in units of `value`; cold enough to change nothing.
      high: > low; hot enough to ruin the loss.
      steps: >= 2, of the ramp.

    Returns:
      A schedule, for `ctld`'s `temperature`.

    Raises:
      TypeError, ValueError: for a number of another kind or out of range.

    Example:
      >>> ramp = ctld_optax.temperature_ramp(1e-5, 1e-1, steps=2_000)
      >>> sampler = ctld_optax.ctld(0.05, ramp, key=0, tempering=None)
      >>> [f"{float(ramp(step)):.0e}" for step in (0, 1_999, 5_000)]
      ['1e-05', '1e-01', '1e-01']
    """
    check_range("low", low, minimum=0.0, minimum_open=True)
    check_range("high", high, minimum=low, minimum_open=True)
    check_count("steps", steps, 2)

    def schedule(count: Any) -> jax.Array:
        share = jnp.minimum(jnp.asarray(count) / (steps - 1), 1.0)
        # Not a power of high / low, whose float32 rounding would be seen at the ends.
        return jnp.exp((1.0 - share) * jnp.log(jnp.asarray(low)) + share * jnp.log(jnp.asarray(high)))

    return schedule
