"""Parameters of less than 32 bits: the update is right on average, whatever the sizes, and the law comes out right."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._arrays import rounding

NARROW = (jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize("dtype", NARROW)
def test_params_plus_update_is_exact_on_average(dtype):
    # 20,000 pairs whose sizes and signs are independent over eight decades; the uniforms are stratified, so the mean of
    # 128 of them is the expectation to 1/128 of the distance of the two results (which is 2 spacings at most).
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.uniform(-5, 3, (2, 20_000)) * rng.choice([-1, 1], (2, 20_000))
    param, update = jnp.asarray(size[0]).astype(dtype), jnp.asarray(size[1], jnp.float32)
    rounded = jax.vmap(rounding._round, (None, None, 0))(update, param, (jnp.arange(128) + 0.5) / 128)
    assert jnp.all(rounded.astype(dtype).astype(jnp.float32) == rounded)  # the cast to the gradients' dtype loses nothing

    result = np.asarray(optax.apply_updates(param, rounded.astype(dtype)), np.float64)
    exact = np.asarray(param, np.float64) + size[1]
    spacing = np.maximum(np.abs([*size, exact]).max(axis=0) * 2.0 ** -jnp.finfo(dtype).nmant, 2.0**-24)
    assert np.all(result.max(axis=0) - result.min(axis=0) <= 2 * spacing)  # no more noise than it needs
    np.testing.assert_array_less(np.abs(result.mean(axis=0) - exact), 2 * spacing / 128)


def test_nearest_rounding_would_fail_that_test():
    param, update = jnp.bfloat16(1.0), jnp.bfloat16(1e-3)
    assert optax.apply_updates(param, update) == param  # every such step is lost


def test_not_finite_updates_stay_not_finite():
    update = rounding._round(jnp.asarray([jnp.nan, jnp.inf, -jnp.inf]), jnp.ones((3,), jnp.bfloat16), jnp.full((3,), 0.5))
    assert not jnp.any(jnp.isfinite(update))


def test_float32_parameters_cost_nothing():
    tx = ctld_optax.ctld(0.1, 0.1, key=0)
    params = {"w": jnp.ones((3,))}
    state = tx.init(params)
    with_params = jax.make_jaxpr(lambda s: tx.update(params, s, params, value=jnp.float32(1.0)))(state)
    without = jax.make_jaxpr(lambda s: tx.update(params, s, value=jnp.float32(1.0)))(state)
    # In older JAX the text of a program has addresses in it.
    texts = [re.sub(r" at 0x\w+", "", str(program)) for program in (with_params, without)]
    assert texts[0] == texts[1]


def langevin_law(dtype, learning_rate, *, pass_params=True, num_chains=1024):
    """Mean and standard deviation of 1,024 chains that should have reached N(1, 0.25).

    They start far off, at N(2, 0.01), run for ten times the relaxation time (1 - momentum) / learning_rate, and are averaged
    over the last two fifths of it.
    """
    tx = ctld_optax.ctld(learning_rate, 0.25, 0.9, key=0, tempering=None)
    num_steps = round(10 * 0.1 / learning_rate)

    def step(carry, _):
        params, state = carry
        grads = params - jnp.asarray(1.0, dtype)
        updates, state = tx.update(grads, state, params if pass_params else None)
        params = optax.apply_updates(params, updates)
        wide = params.astype(jnp.float32)
        return (params, state), (wide.mean(), jnp.square(wide).mean())

    params = (2.0 + 0.1 * jax.random.normal(jax.random.key(1), (num_chains,))).astype(dtype)
    _, moments = jax.jit(lambda carry: jax.lax.scan(step, carry, length=num_steps))((params, tx.init(params)))
    mean, square = (np.asarray(moment, np.float64)[num_steps * 3 // 5 :].mean() for moment in moments)
    return mean, (square - mean**2) ** 0.5


def test_law_of_bfloat16_samples():
    # One step moves by 0.0022, and the numbers around 1 are 0.004 to 0.008 apart. Standard errors of
    # 1,024 chains: 0.016 and 0.011; measured 1.015 and 0.519 (the rounding noise adds 4 % to the
    # spread), to nearest 1.16 and 0.57.
    mean, std = langevin_law(jnp.bfloat16, 2e-5)
    assert abs(mean - 1.0) < 0.05
    assert abs(std - 0.5) < 0.04
    nearest_mean, nearest_std = langevin_law(jnp.bfloat16, 2e-5, pass_params=False)
    assert nearest_mean > 1.10
    assert nearest_std > 0.54


def test_both_paths_of_the_phase_switch_round_alike():
    sampler = ctld_optax.ctld(1e-3, 1e-3, 0.9, key=0)
    params = {"w": jnp.linspace(0.5, 2.0, 64).astype(jnp.bfloat16)}
    finals = []
    for tx in (sampler, ctld_optax.phase_switch(sampler, optax.sgd(1e-3, momentum=0.9), 20)):

        def step(carry, _, tx=tx):
            moving, state = carry
            updates, state = tx.update(moving, state, moving, value=jnp.float32(1.0))
            return (optax.apply_updates(moving, updates), state), None

        (moving, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=20)
        finals.append(moving["w"])
    assert jnp.all(finals[0] == finals[1])
    assert not jnp.all(finals[0] == params["w"])


WAYS = {
    "float32": (jnp.float32, True),
    "bfloat16, to nearest": (jnp.bfloat16, False),  # without params the update is cast, and apply_updates rounds to nearest
    "bfloat16, ours": (jnp.bfloat16, True),
}


def report():
    print("Mean and standard deviation of samples from N(1, 0.5^2); one step moves by sqrt(learning_rate * temperature)")
    for learning_rate in (1e-3, 1e-4, 2e-5, 4e-6):
        for name, (dtype, pass_params) in WAYS.items():
            mean, std = langevin_law(dtype, learning_rate, pass_params=pass_params)
            print(f"move {(learning_rate * 0.25) ** 0.5:.4f}  {name:22s} {mean:.3f}  {std:.3f}", flush=True)


if __name__ == "__main__":
    report()
