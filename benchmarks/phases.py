"""How long to sample, and how to hand over: what the paper leaves open about CTLD's two phases.

    python -m benchmarks.phases     after benchmarks.char_rnn: one variant at a time, about 3 minutes on 2 cores

The character LSTM of benchmarks/char_rnn.py at the learning rate, temperature and momentum that it chose for CTLD. One thing
is changed at a time: the share of the steps that sample (0: SGD-M from the start), the temperature, the second phase's learning
rate, whether the sampler cools down linearly before it hands over instead of stopping wherever alpha happens to be.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks import char_rnn
from benchmarks.harness import methods, summary, sweep
from benchmarks.harness.sweep import Method, Row

NAME = "phases"
STANDARD, UNSAMPLED = "as in the comparison", "no sampling"


def variant(
    *,
    share: float = methods.SAMPLING_SHARE,
    heat: float = 1.0,
    second_rate: float = 1.0,
    cools: bool = False,
) -> Method:
    """CTLD -> SGD-M with `heat` times the temperature and `second_rate` times the second phase's learning rate."""

    def make(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
        base = heat * hyper["temperature"]

        def cooling(count: Any) -> Any:
            return base * (1.0 - count / methods.sampling_steps(steps, share))

        changed = {**hyper, "temperature": cooling if cools else base}
        return methods.two_phases(changed, key, steps, share=share, second_rate=second_rate)

    return Method({}, make)


VARIANTS = {
    STANDARD: variant(),
    UNSAMPLED: variant(share=0.0),
    "sampling a quarter": variant(share=0.25),
    "sampling three quarters": variant(share=0.75),
    "ten times as hot": variant(heat=10.0),
    "second phase at a third of the rate": variant(second_rate=1.0 / 3.0),
    "cools before the hand-over": variant(cools=True),
}


def introduction(of: str, rows: Sequence[Row]) -> str:
    """What all variants share, and how to read the table."""
    shared = summary.in_words(summary.chosen(rows, rows[0].method))
    return f"{of} at {shared}, one thing changed at a time; the last column is the change on the test set."


def table(rows: Sequence[Row], what: str) -> str:
    """Each variant, its change against the standard on the same seeds, and what that says about `what`, say test perplexity."""
    found = summary.names(rows)
    standard = summary.final(rows, STANDARD, "test") if STANDARD in found else None

    change = {
        name: summary.interval(summary.final(rows, name, "test") - standard)
        for name in found
        if standard is not None and name != STANDARD
    }
    surely = [f"{name} ({one})" for name, one in change.items() if abs(one.mean) > one.half]
    said = "; ".join(surely) or "none, so that the phases matter little here"
    lines = [
        [name, *(str(summary.interval(summary.final(rows, name, c))) for c in ("train", "test")), str(change.get(name, ""))]
        for name in found
    ]
    best = min(found, key=lambda name: summary.finite(float(summary.final(rows, name, "test").mean())))
    return "\n\n".join(
        [
            summary.markdown(["CTLD", "train", "test", "difference"], lines),
            f"Lowest mean {what}: {best}. Changes beyond the spread of the seeds: {said}.",
            *gains(rows, what),
        ]
    )


def gains(rows: Sequence[Row], what: str) -> list[str]:
    """What sampling changes, seed by seed; nothing if a variant is missing."""
    if not {STANDARD, UNSAMPLED} <= set(summary.names(rows)):
        return []
    sampled, unsampled = (summary.final(rows, name, "test") for name in (STANDARD, UNSAMPLED))
    diverged = not np.isfinite([sampled, unsampled]).all()
    change = "unknown, since runs diverged" if diverged else str(summary.interval(sampled - unsampled))
    return [f"What sampling in the first half adds to the {what}: {change}."]


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    del folder
    return "\n\n".join(
        [
            "## The two phases",
            introduction("Perplexity of the character LSTM", rows),
            table(rows, "test perplexity"),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.phases", __doc__)
    parser.add_argument("--text", choices=tuple(char_rnn.data.TEXTS), default="war_and_peace")
    options = parser.parse_args(arguments)
    mpl.use("agg")
    text, steps = char_rnn.load(options)
    made = char_rnn.experiment(text, options.text, steps, full=options.full, experiment_name=NAME, points=1)
    hyper = char_rnn.tuned(sweep.read(options.csv), options.text)
    wanted = {name: (VARIANTS[name], [hyper]) for name in options.methods or VARIANTS}
    sweep.fixed_from_command_line(made, wanted, options, summarize, seeds=sweep.reported(options))


if __name__ == "__main__":
    main()
