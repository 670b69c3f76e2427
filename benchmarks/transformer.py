"""A transformer on Tiny Shakespeare: AdamW against CTLD in Adam's metric and then AdamW, one network and the mean of a run.

    python -m benchmarks.transformer

Two layers of 64 units read 64 characters at a time. Each method has three tuned hyperparameters, the same settings of two of
them (learning rate and weight decay), the same steps, clip and warm-up; `sweep.settings` draws the trials. The learning rate of
AdamW falls by a cosine from the warm-up on. CTLD samples at a constant one for three quarters of the steps, and AdamW goes on
from there, falling by a cosine to 0; "AdamW, held" has that schedule without the sampler, and so shows what the noise does. Of
each run two things are read:

- "point": the last network;
- "average": the mean prediction of `MEMBERS` networks, a uniform sample of a quarter of the run: of CTLD's window in the last
  third of its sampling; of AdamW, for which the end of a run is best, all networks of its last quarter.

Each method is tuned for each reading by itself, by the loss on the validation part, and reported on new seeds. Losses are in
nats a character. Runs are kept in a CSV, and only what it lacks is run.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console

import ctld_optax
from benchmarks.harness import data, summary, sweep, table
from benchmarks.harness.sweep import Hyperparameters, Method, Range, Stage
from ctld_optax import posterior

CSV = pathlib.Path(__file__).parent / "results" / "transformer.csv"
WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 2, 64
BATCH = 32  # windows of LENGTH characters
STEPS = 400
TRIALS = 8  # settings a method; three hyperparameters, 8 values of each
WARM_UP = 0.05  # of the steps
CLIP = 1.0  # norm of the gradient
SAMPLING_SHARE = 0.75
STRETCH = 0.25  # of the steps, from which the members of the average are
MEMBERS = 16
MEASURED = 128  # windows of each of the two other parts
READINGS = ("point", "average")

RATES, DECAYS = Range(1e-3, 3e-2), Range(1e-3, 1.0)
FRICTION = Range(0.03, 0.3)  # 1 - b1
TEMPERATURES = Range(1e-8, 1e-5)  # 2/d of the loss at the start is 7.5e-5: from a tenth of that down


class Block(nn.Module):
    """Pre-norm, causal."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = nn.make_causal_mask(jnp.ones(x.shape[:-1]))
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS, deterministic=True)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    """Characters, shape (windows, length) -> logits of the next ones."""

    vocabulary: int

    @nn.compact
    def __call__(self, characters: jax.Array) -> jax.Array:
        places = self.param("places", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        x = nn.Embed(self.vocabulary, WIDTH)(characters) + places[: characters.shape[-1]]
        for _ in range(LAYERS):
            x = Block()(x)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


def adamw(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up(steps), steps)
    rate = lambda count: hyper["learning_rate"] * shape(count)
    tx = optax.adamw(rate, 1.0 - hyper["friction"], weight_decay=hyper["weight_decay"])
    return optax.chain(optax.clip_by_global_norm(CLIP), tx)


def adamw_held(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    """The learning rate stands as long as CTLD samples."""
    sampling = sampling_steps(steps)
    falling = optax.cosine_decay_schedule(1.0, max(steps - sampling, 1))
    shape = optax.join_schedules([optax.linear_schedule(0.0, 1.0, warm_up(steps)), falling], [sampling])
    rate = lambda count: hyper["learning_rate"] * shape(count)
    tx = optax.adamw(rate, 1.0 - hyper["friction"], weight_decay=hyper["weight_decay"])
    return optax.chain(optax.clip_by_global_norm(CLIP), tx)


def ctld_then_adamw(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """The learning rate of the first phase is that of the second, times 1 - momentum."""
    rate, momentum, sampling = hyper["learning_rate"], 0.9, sampling_steps(steps)
    rising = optax.linear_schedule(0.0, (1.0 - momentum) * rate, warm_up(steps))
    sampler = ctld_optax.ctld(
        rising, hyper["temperature"], momentum, key=key, preconditioner=ctld_optax.SecondMoment(decay=0.999)
    )
    falling = optax.cosine_decay_schedule(rate, max(steps - sampling, 1))
    # A scheduled optimizer begins its own count at the switch; Adam's comes from the metric.
    tx = optax.adamw(falling, momentum, weight_decay=hyper["weight_decay"])
    return optax.chain(optax.clip_by_global_norm(CLIP), ctld_optax.phase_switch(sampler, tx, sampling))


OURS = "CTLD -> AdamW"
SHARED = {"learning_rate": RATES, "weight_decay": DECAYS}
METHODS = {
    "AdamW": Method({**SHARED, "friction": FRICTION}, adamw),
    OURS: Method({**SHARED, "temperature": TEMPERATURES}, ctld_then_adamw),
    "AdamW, held": Method({**SHARED, "friction": FRICTION}, adamw_held),
}


def warm_up(steps: int) -> int:
    return max(round(WARM_UP * steps), 1)


def sampling_steps(steps: int) -> int:
    return round(SAMPLING_SHARE * steps)


class Texts(NamedTuple):
    """What is read: all of the training part, and windows of the other two, shape (MEASURED, LENGTH + 1)."""

    train: jax.Array
    validation: jax.Array
    test: jax.Array


def texts(found: data.Text, measured: int = MEASURED) -> Texts:
    def windows(part: np.ndarray) -> jax.Array:
        """Equally spaced over the part."""
        starts = np.linspace(0, len(part) - LENGTH - 1, measured).astype(int)
        return jnp.asarray(part[starts[:, None] + np.arange(LENGTH + 1)])

    return Texts(jnp.asarray(found.train), windows(found.validation), windows(found.test))


Trainer = Callable[[Mapping[str, jax.Array], jax.Array, Texts], dict[str, jax.Array]]


def trainer(method: Method, vocabulary: int, steps: int) -> Trainer:
    """A compiled `(hyper, seed, texts)` -> by reading, the losses on the validation and the test part, shape (2,)."""
    model: Any = Transformer(vocabulary)
    reservoir = posterior.Reservoir(capacity=MEMBERS)

    def log_likelihoods(params: Any, windows: jax.Array) -> jax.Array:
        windows = windows.astype(jnp.int32)
        logits = model.apply(params, windows[:, :-1])
        return -optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])

    def train(hyper: Mapping[str, jax.Array], seed: jax.Array, read: Texts) -> dict[str, jax.Array]:
        init_key, method_key, batch_key, member_key = jax.random.split(jax.random.key(seed), 4)
        params = model.init(init_key, jnp.zeros((1, LENGTH), jnp.int32))
        tx = optax.with_extra_args_support(method.make(hyper, method_key, steps))

        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            params, state, members = carry
            starts = jax.random.randint(jax.random.fold_in(batch_key, index), (BATCH,), 0, len(read.train) - LENGTH)
            windows = read.train[starts[:, None] + jnp.arange(LENGTH + 1)]
            value, grads = jax.value_and_grad(lambda p: -log_likelihoods(p, windows).mean())(params)
            updates, state = tx.update(grads, state, params, value=value)
            members = reservoir.update(members, params, is_member(state, index))
            return (optax.apply_updates(params, updates), state, members), None

        def is_member(state: Any, index: jax.Array) -> jax.Array:
            """Alpha after the update belongs to the parameters before it."""
            alpha = optax.tree.get(state, "alpha")
            end = steps if alpha is None else sampling_steps(steps)
            in_stretch = (index < end) & (index >= end - STRETCH * steps)
            return in_stretch if alpha is None else in_stretch & posterior.in_window(alpha)

        carry = (params, tx.init(params), reservoir.init(params, key=member_key))
        (params, _, members), _ = jax.lax.scan(step, carry, jnp.arange(steps))
        others = jnp.concatenate([read.validation, read.test])
        likelihood = {
            "point": jnp.exp(log_likelihoods(params, others)),
            "average": posterior.predict(members, lambda p: jnp.exp(log_likelihoods(p, others))),
        }
        return {name: -jnp.log(found).reshape(2, -1).mean(1) for name, found in likelihood.items()}

    return jax.jit(train)


# What is kept.


class Row(NamedTuple):
    """A reading of a run."""

    config: str
    method: str
    stage: str
    hyperparameters: str
    seed: int
    reading: str
    validation: float
    test: float  # NaN while tuning
    seconds: float  # of the run, of a machine that others use too


KEY = ("config", "method", "stage", "hyperparameters", "seed", "reading")


def run(
    config: str, name: str, train: Trainer, stage: Stage, wanted: Sequence[tuple[Hyperparameters, int]], read: Texts,
    path: pathlib.Path, console: Console,
) -> None:  # fmt: skip
    """Those of the wanted runs that the CSV lacks, both readings of each."""
    for hyper, seed in wanted:
        setting = sweep.as_json(hyper)
        if (config, name, stage, setting, seed, READINGS[-1]) in {tuple(getattr(row, c) for c in KEY) for row in rows(path)}:
            continue
        began = time.perf_counter()
        arrays = {key: jnp.asarray(value, jnp.float32) for key, value in hyper.items()}
        losses = {key: [float(loss) for loss in found] for key, found in train(arrays, jnp.asarray(seed), read).items()}
        seconds = round(time.perf_counter() - began, 2)
        made = [
            Row(config, name, stage, setting, seed, reading, losses[reading][0],
                losses[reading][1] if stage == "report" else math.nan, seconds)
            for reading in READINGS
        ]  # fmt: skip
        table.add(path, Row, made, key=KEY, varying=["seconds"])
        told = ", ".join(f"{row.reading} {row.validation:.3f}" for row in made)
        console.print(f"{name}, {stage}, {setting}, seed {seed}, {seconds:.0f} s: {told}", soft_wrap=True)


def rows(path: pathlib.Path = CSV) -> list[Row]:
    return table.read(path, Row)


def best(found: Sequence[Row], config: str, method: str, reading: str) -> str:
    """The setting of the best validation loss, mean over the tuning seeds; a run that diverged is the worst of all."""
    own = [row for row in found if (row.config, row.method, row.stage, row.reading) == (config, method, "tune", reading)]
    scores: dict[str, list[float]] = {}
    for row in own:
        scores.setdefault(row.hyperparameters, []).append(row.validation if math.isfinite(row.validation) else math.inf)
    return min(scores, key=lambda setting: float(np.mean(scores[setting])))


# What the rows say.


class Told:
    """The study that was written last: what was reported of each method and reading, at its best setting."""

    def __init__(self, found: Sequence[Row]) -> None:
        self.config = found[-1].config
        self.rows = [row for row in found if row.config == self.config]
        reported = {row.method for row in self.rows if row.stage == "report"}
        self.names = [name for name in METHODS if name in reported]
        self.chosen = {(name, r): best(self.rows, self.config, name, r) for name in self.names for r in READINGS}

    def losses(self, name: str, reading: str) -> dict[int, float]:
        """Test loss by seed."""
        key = (name, "report", reading, self.chosen[name, reading])
        return {r.seed: r.test for r in self.rows if (r.method, r.stage, r.reading, r.hyperparameters) == key}

    def behind(self, other: str, reading: str) -> summary.Interval:
        """What CTLD's loss is above the other's, seed by seed: a seed has the same first weights and minibatches in both."""
        ours, theirs = self.losses(OURS, reading), self.losses(other, reading)
        return summary.interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])

    def figure(self, name: str, reading: str) -> summary.Interval:
        return summary.interval(list(self.losses(name, reading).values()))

    def edges(self, name: str, reading: str) -> list[str]:
        tried = [json.loads(row.hyperparameters) for row in self.rows if (row.method, row.stage) == (name, "tune")]
        ends = {key: [f([one[key] for one in tried]) for f in (min, max)] for key in tried[0]}
        return [key for key, value in json.loads(self.chosen[name, reading]).items() if value in ends[key]]

    def budget(self) -> str:
        """Counted."""
        tuned = [row for row in self.rows if row.stage == "tune"]
        tried = {name: len({row.hyperparameters for row in tuned if row.method == name}) for name in self.names}
        seeds = {len(self.losses(*reading)) for reading in self.chosen}
        unequal = "" if len(set(tried.values())) == len(seeds) == 1 else "**Unequal budgets.** "
        each, new = (" or ".join(map(str, sorted(found))) for found in (set(tried.values()), seeds))
        on = len({row.seed for row in tuned})
        return f"{unequal}{each} settings of each method on {on} seeds, the best one for each reading on {new} new seeds."


def verdict(behind: summary.Interval) -> str:
    if not math.isfinite(behind.mean):
        return "cannot be compared with"
    return "is below" if behind.mean + behind.half < 0 else "is **above**" if behind.mean - behind.half > 0 else "is level with"


def section(found: Sequence[Row]) -> str:
    """Every number from the rows."""
    told = Told(found)
    config = json.loads(told.config)
    lines = [
        [
            name,
            reading,
            str(told.figure(name, reading)),
            summary.in_words(json.loads(told.chosen[name, reading]), told.edges(name, reading)),
        ]
        for name in told.names
        for reading in READINGS
    ]
    missing = [name for name in METHODS if name not in told.names]
    answers = [
        f"- **{reading}**: {OURS} {verdict(behind)} {other}: {behind} in loss, seed by seed."
        for reading in READINGS
        for other in told.names
        if OURS in told.names and other != OURS
        for behind in [told.behind(other, reading)]
    ]
    introduction = (
        f"{LAYERS} layers of {WIDTH} units, Tiny Shakespeare, {config['steps']} steps of {BATCH} windows of {LENGTH} "
        f"characters; test loss in nats a character, ± half the 95 % t-interval over seeds. The average is that of {MEMBERS} "
        f"networks of one run: of CTLD's window, of AdamW's last quarter. {told.budget()}"
    )
    return "\n\n".join(
        [
            "## A transformer, beside AdamW",
            introduction,
            summary.markdown(["method", "reading", "test loss", "chosen (* edge of the range)"], lines),
            *(["\n".join(answers)] if answers else []),
            *([f"Not run yet: {', '.join(missing)}. So this does not tell the schedule from the noise."] if missing else []),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.transformer", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (default %(default)s)")
    parser.add_argument("--trials", type=int, default=TRIALS, help="settings a method may try (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=len(sweep.REPORT_SEEDS), help="number reported (default %(default)s)")
    parser.add_argument("--measured", type=int, default=MEASURED, help="windows that a loss is of (default %(default)s)")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("steps", "trials", "seeds", "measured"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    console = Console()
    table.add(options.csv, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    found = data.text("shakespeare")
    read = texts(found, options.measured)
    config = sweep.as_json({"text": "shakespeare", "steps": options.steps, "batch": BATCH, "measured": options.measured})
    try:
        for name, method in METHODS.items():
            train, tried = trainer(method, len(found.vocabulary), options.steps), sweep.settings(method, options.trials)
            tuning = [(hyper, seed) for hyper in tried for seed in sweep.TUNING_SEEDS]
            run(config, name, train, "tune", tuning, read, options.csv, console)
            chosen = dict.fromkeys(best(rows(options.csv), config, name, reading) for reading in READINGS)
            reported = [(json.loads(setting), seed) for setting in chosen for seed in sweep.reported(options)]
            run(config, name, train, "report", reported, read, options.csv, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    own = [row for row in rows(options.csv) if row.config == config]
    if any(row.stage == "report" for row in own):
        console.print(section(own), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
