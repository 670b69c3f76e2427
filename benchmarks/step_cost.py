"""What an optimizer step costs, as a multiple of `optax.sgd(momentum=...)` measured beside it.

    python -m benchmarks.step_cost

A step is `update` and `apply_updates` in one compiled function, parameters and state donated, as in a training loop. Each
variant takes turns with SGD-M in one process; the table gives the median of the paired ratios with its quartiles. Absolute
times mean nothing on a shared machine; the last column sets them against the time that the machine needs to move the bytes
of SGD-M's step (3 reads and 2 writes a parameter) at the rate of a plain copy. Then whole training steps, forward and
backward pass included, ten to a call in `lax.scan`: handing over the twelve small arrays of our state from Python costs more
than what is done with them. The bare updates bear that cost, some 0.1 ms a call, which only shows below 10^6 parameters.
"""

import argparse
import functools
import itertools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib import pyplot as plt
from rich import box
from rich.console import Console
from rich.table import Table

import ctld_optax
from benchmarks.harness import files, provenance, summary, table
from ctld_optax import baselines, plotting

LEARNING_RATE = 1e-4
# Small, so that parameters stay finite over any number of steps; and a schedule, as users have it: where the temperature is a
# number, XLA leaves out what a step does at a temperature of 0.
TEMPERATURE = optax.linear_schedule(1e-8, 1e-9, 10**9)
STEPS_A_CALL = 10  # of whole training steps
REFERENCE = "SGD-M"
Shapes = list[tuple[int, ...]]


class Variant(NamedTuple):
    """A transformation, and what to do to its fresh state before the clock runs."""

    tx: Any
    prepare: Callable[[Any], Any] = lambda state: state


def variants() -> dict[str, Variant]:
    sgd = optax.sgd(LEARNING_RATE, 0.9)
    table = {
        REFERENCE: Variant(sgd),
        "Adam": Variant(optax.adam(LEARNING_RATE)),
        "noisy_sgd": Variant(optax.noisy_sgd(LEARNING_RATE, key=0)),
    }
    sampler = functools.partial(ctld_optax.ctld, LEARNING_RATE, TEMPERATURE, key=0)
    table |= {
        f"CTLD {noise}": Variant(sampler(noise=noise)) for noise in ("gaussian", "irwin_hall", "three_point", "rademacher")
    }
    table |= {  # the paper's order: one variate a step, and an error of the first order in it
        f"CTLD {noise}, Euler": Variant(sampler(noise=noise, integrator="euler"))
        for noise in ("gaussian", "irwin_hall", "three_point")
    }
    table["CTLD irwin_hall, no tempering"] = Variant(sampler(noise="irwin_hall", tempering=None))
    metrics = {
        "SecondMoment": ctld_optax.SecondMoment(),
        "SecondMoment, power 1": ctld_optax.SecondMoment(power=1.0),
        "LayerScale": ctld_optax.LayerScale(),
        "FixedMetric": ctld_optax.FixedMetric(1.0),
    }
    table |= {f"CTLD in {name}": Variant(sampler(preconditioner=metric)) for name, metric in metrics.items()}

    def switched(state: Any) -> Any:
        return state._replace(count=state.count + 10**9)

    table["switch, sampling"] = Variant(ctld_optax.phase_switch(sampler(), sgd, 10**9))
    table["switch, after"] = Variant(ctld_optax.phase_switch(sampler(), sgd, 10**9), switched)
    table["switch to Adam, after"] = Variant(ctld_optax.phase_switch(sampler(), optax.adam(LEARNING_RATE), 10**9), switched)
    table["Santa"] = Variant(baselines.santa(LEARNING_RATE, TEMPERATURE, key=0, exploration_steps=10**9))
    return table


def layouts(sizes: Sequence[int]) -> dict[str, Shapes]:
    """Name -> shapes of the parameters."""
    return {f"one leaf, 1e{math.log10(size):.3g}": [(size,)] for size in sizes} | {
        "400 leaves, 1e7": four_hundred_leaves(),
        "ResNet-18, 11.7M": resnet18(),
        "GPT, 124M": gpt124m(),
    }


def four_hundred_leaves() -> Shapes:
    """10 stages of 10 equal blocks of 4 leaves, wider from stage to stage: 40 different shapes, 1.0e7 parameters in all."""
    block = [[(3, 3, 16, width), (256, width), (width,), (256 + width,)] for width in range(80, 480, 40)]
    return [shape for stage in block for _ in range(10) for shape in stage]


def resnet18() -> Shapes:
    shapes: Shapes = [(7, 7, 3, 64), (64,), (64,)]
    width_in = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for block in range(2):
            first_in = width_in if block == 0 else width
            shapes += [(3, 3, first_in, width), (width,), (width,), (3, 3, width, width), (width,), (width,)]
            if block == 0 and stride == 2:
                shapes += [(1, 1, first_in, width), (width,), (width,)]
        width_in = width
    return [*shapes, (512, 1000), (1000,)]


def gpt124m() -> Shapes:
    width = 768
    block: Shapes = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *(shape for _ in range(12) for shape in block), (width,), (width,)]


class Row(NamedTuple):
    """One line of the CSV: a variant against SGD-M of the same layout."""

    layout: str
    variant: str
    parameters: int
    rounds: int
    ratio: float
    ratio_q1: float
    ratio_q3: float
    step_ms: float
    compile_s: float
    compile_ratio: float
    temporary_bytes: int
    extra_temporary_bytes: int
    extra_state_bytes: int
    times_memory_limit: float


KEY = ("layout", "variant")  # of a row; no two runs measure the same times, so that none is measured twice


class Prepared(NamedTuple):
    """A compiled step with its own arrays, ready to be called again and again."""

    call: Callable[[], None]
    compile_seconds: float
    temporary_bytes: int
    state_bytes: int


def prepare_update(variant: Variant, shapes: Shapes) -> Prepared:
    """Update + apply_updates on given gradients."""
    params = [jnp.full(shape, 0.01, jnp.float32) for shape in shapes]
    grads = [jnp.full(shape, 0.01, jnp.float32) for shape in shapes]

    def step(params: Any, state: Any, grads: Any, value: Any) -> tuple[Any, Any]:
        tx = optax.with_extra_args_support(variant.tx)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state = variant.prepare(variant.tx.init(params))
    return _prepare(step, params, state, (grads, jnp.float32(1.0)))


def prepare_training(variant: Variant, loss_fn: Callable[..., Any], params: Any, batch: Any) -> Prepared:
    """Forward and backward pass, update, apply_updates; ten times."""
    params = jax.tree.map(jnp.copy, params)
    batches = jax.tree.map(lambda x: jnp.stack([x] * STEPS_A_CALL), batch)

    def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        tx = optax.with_extra_args_support(variant.tx)
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    def steps(params: Any, state: Any, batches: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, (params, state), batches)[0]

    return _prepare(steps, params, variant.prepare(variant.tx.init(params)), (batches,))


def _prepare(step: Callable[..., Any], params: Any, state: Any, rest: tuple[Any, ...]) -> Prepared:
    began = time.process_time()  # of this process alone: a busy machine does not count
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *rest).compile()
    compile_seconds = time.process_time() - began
    memory = compiled.memory_analysis()
    state_bytes = sum(
        jax.random.key_data(leaf).nbytes if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.nbytes
        for leaf in jax.tree.leaves(state)
    )
    carry = [params, state]

    def call() -> None:
        carry[:] = compiled(*carry, *rest)
        jax.block_until_ready(carry[0])  # the parameters; waiting for a dozen scalars one by one takes longer than a small step

    return Prepared(call, compile_seconds, memory.temp_size_in_bytes if memory is not None else -1, state_bytes)


def duel(reference: Prepared, other: Prepared, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each step, taking turns (the order changes with each round)."""
    for prepared in (reference, other, reference, other):
        prepared.call()
    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for turn in itertools.count():
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (reference, other)[which].call()
            times[which].append(time.perf_counter() - start)
        if turn >= 10 and time.perf_counter() - began > seconds:
            return times
    raise AssertionError  # the loop above has no other end


def copy_bandwidth(size: int, repeats: int = 15) -> float:
    """Bytes a second of a compiled, donated read-and-write of `size` float32: the best of some."""
    touch = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x, best = jax.block_until_ready(touch(jnp.zeros(size))), math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        x = jax.block_until_ready(touch(x))
        best = min(best, time.perf_counter() - start)
    return 8.0 * size / best


def compare(
    layout: str,
    names: Sequence[str],
    prepare: Callable[[Variant], Prepared],
    num_params: int,
    seconds: float,
    steps_a_call: int = 1,
) -> list[Row]:
    """One row a variant."""
    found = variants()
    bandwidth = copy_bandwidth(min(num_params, 10**8))
    reference = prepare(found[REFERENCE])
    rows: list[Row] = []
    for name in names:
        other = prepare(found[name])
        base, times = duel(reference, other, seconds)
        ratios = [b / a for a, b in zip(base, times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            Row(
                layout=layout,
                variant=name,
                parameters=num_params,
                rounds=len(ratios),
                ratio=middle,
                ratio_q1=low,
                ratio_q3=high,
                step_ms=1e3 * statistics.median(times) / steps_a_call,
                compile_s=other.compile_seconds,
                compile_ratio=other.compile_seconds / reference.compile_seconds,
                temporary_bytes=other.temporary_bytes,
                extra_temporary_bytes=other.temporary_bytes - reference.temporary_bytes,
                extra_state_bytes=other.state_bytes - reference.state_bytes,
                times_memory_limit=statistics.median(times) / steps_a_call / (20.0 * num_params / bandwidth),
            )
        )
    return rows


class MLP(nn.Module):
    """784-256-256-10, ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (256, 256):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions and a dense layer on 28x28 images."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (16, 32):
            x = nn.avg_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class CharLSTM(nn.Module):
    """Three LSTM layers of 64 units over a vocabulary of 87 characters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden: Any = nn.Embed(87, 64)(x)
        for _ in range(3):
            hidden = nn.RNN(nn.OptimizedLSTMCell(64))(hidden)
        return nn.Dense(87)(hidden)


def tasks() -> dict[str, tuple[nn.Module, Any, Any]]:
    """Name -> model, inputs, labels. Random data: the time of a step does not depend on them."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 10, 128))
    characters = jnp.asarray(rng.integers(0, 87, (50, 51)))
    return {
        "MNIST MLP, batch 128": (MLP(), jnp.asarray(rng.random((128, 784), np.float32)), labels),
        "small CNN, batch 128": (CNN(), jnp.asarray(rng.random((128, 28, 28, 1), np.float32)), labels),
        "char-LSTM, batch 50 x 50": (CharLSTM(), characters[:, :-1], characters[:, 1:]),
    }


def jobs(sizes: Sequence[float]) -> dict[str, tuple[Callable[[Variant], Prepared], int, int]]:
    """Name -> what prepares a variant, the number of parameters, steps a call: bare updates first, then whole steps."""
    found: dict[str, tuple[Callable[[Variant], Prepared], int, int]] = {
        layout: (functools.partial(prepare_update, shapes=shapes), sum(map(math.prod, shapes)), 1)
        for layout, shapes in layouts([int(size) for size in sizes]).items()
    }
    for task, (model, inputs, labels) in tasks().items():
        params = model.init(jax.random.key(0), inputs)

        def loss_fn(params: Any, x: Any, y: Any, model: Any = model) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        prepare = functools.partial(prepare_training, loss_fn=loss_fn, params=params, batch=(inputs, labels))
        found[f"{task}, {size} parameters"] = (prepare, size, STEPS_A_CALL)
    return found


def show(rows: Sequence[Row], console: Console) -> None:
    for layout, group in itertools.groupby(rows, key=lambda row: row.layout):
        shown = Table(title=layout, title_justify="left", box=box.SIMPLE_HEAD)
        shown.add_column("variant", no_wrap=True)
        for column in ("ratio", "quartiles", "compile", "+temp kB", "+state kB", "x limit"):
            shown.add_column(column, justify="right", no_wrap=True)
        for row in group:
            shown.add_row(
                row.variant,
                f"{row.ratio:.2f}",
                f"{row.ratio_q1:.2f}-{row.ratio_q3:.2f}",
                f"{row.compile_ratio:.1f}",
                f"{row.extra_temporary_bytes / 1024:.1f}",
                f"{row.extra_state_bytes / 1024:.1f}",
                f"{row.times_memory_limit:.1f}",
            )
        console.print(shown)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Step time over the number of parameters, one leaf, log-log."""
    rows = [row for row in rows if row.layout.startswith("one leaf")]
    styles = itertools.cycle(
        itertools.product(("o-", "s--", "^:"), ("0.1", *plotting.PALETTE)),
    )
    with summary.styled():
        figure, ax = plt.subplots(figsize=(9, 5.4), layout="constrained")
        for name in dict.fromkeys(row.variant for row in rows):
            line, color = next(styles)
            mine = [row for row in rows if row.variant == name]
            ax.loglog([row.parameters for row in mine], [row.step_ms for row in mine], line, color=color,
                      markersize=4, label=name)  # fmt: skip
        ax.set(xlabel="parameters (one float32 leaf)", ylabel="one step  [ms]", title="update + apply_updates, donated buffers")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
        files.save_figure(figure, path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_cost", description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6, 1e7, 1e8], help="parameters of the one leaf"
    )
    parser.add_argument("--variants", nargs="+", choices=tuple(variants()), default=tuple(variants()), metavar="NAME")
    parser.add_argument("--layouts", nargs="+", metavar="TEXT", help="only layouts and tasks whose name holds one of these")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="time for one pair, at least 11 rounds (default %(default)s)"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    options = parser.parse_args(arguments)
    mpl.use("agg")
    console = Console(width=max(100, Console().width))  # the tables need it, also where the output is no terminal
    console.print(provenance.nested())

    path = options.out / "step_cost.csv"
    planned = {name: job for name, job in jobs(options.sizes).items() if any(text in name for text in options.layouts or [""])}
    table.add(path, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    there = {(row.layout, row.variant) for row in table.read(path, Row)}
    if twice := sorted(there & set(itertools.product(planned, options.variants))):
        parser.error(
            f"{path} has {twice[0]} already, and {len(twice) - 1} others of these. Name another folder by --out, or move that "
            "file away; --layouts and --variants can leave out what is there."
        )
    try:
        for name, (prepare, size, steps_a_call) in planned.items():
            rows = compare(name, options.variants, prepare, size, options.seconds, steps_a_call)
            show(rows, console)  # before another process that measures the same can be in the way
            table.add(path, Row, rows, key=KEY)
    except KeyboardInterrupt:
        console.print("Interrupted; what is done so far is written.")
    draw(table.read(path, Row), options.out / "step_cost.png")
    console.print(f"Wrote {path} and {options.out / 'step_cost.png'}")


if __name__ == "__main__":
    main()
