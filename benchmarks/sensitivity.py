"""How much the settings of the tempering matter: section 5.3 and Figure 4 of the paper.

    python -m benchmarks.sensitivity           after benchmarks.char_rnn: 20 settings, 3 seeds each, about 3 minutes
    python -m benchmarks.sensitivity --full    the size of `benchmarks.char_rnn --full`

The character LSTM on War and Peace, trained by CTLD at the learning rate and temperature that `benchmarks.char_rnn` chose for
it. The paper varies w (height) and sigma (width) around 20 and 0.04; its hills are constant, ours are well-tempered and start
from 0.1, so both ranges are here. S = 0 is a constant temperature: what is left then is what tempering does not do.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

import ctld_optax
from benchmarks import char_rnn
from benchmarks.harness import files, methods, summary, sweep
from benchmarks.harness.sweep import Method, Row
from ctld_optax import plotting

NAME = "sensitivity"
HEIGHTS = (0.1, 1.0, 10.0, 20.0, 40.0)  # w: our default, and the paper's 20 between half and twice of it
WIDTHS = (0.02, 0.04, 0.08)  # sigma: half and twice the default, which is the paper's
STRENGTHS = (0.0, 0.5, 0.7, 0.85, 0.95, 0.99)  # S
DEFAULT = {"height": 0.1, "width": 0.04, "strength": 0.85}
SEEDS = 3
LIMIT = 0.05  # of the perplexity: "robust"


def make(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    bias = ctld_optax.Metadynamics(height=hyper["height"], width=hyper["width"])
    tempering = ctld_optax.PolynomialTempering(strength=hyper["strength"])
    return methods.two_phases(hyper, key, steps, bias=bias, tempering=tempering)


def settings(base: Mapping[str, float]) -> list[dict[str, float]]:
    """All heights with all widths at the default S, then all S at the default hills; none twice."""
    hills = [{**base, **DEFAULT, "height": height, "width": width} for height in HEIGHTS for width in WIDTHS]
    return hills + [{**base, **DEFAULT, "strength": strength} for strength in STRENGTHS if strength != DEFAULT["strength"]]


def series(rows: Sequence[Row], vary: str, **fixed: float) -> dict[float, np.ndarray]:
    """Value of one hyperparameter -> test perplexity of every seed, where the others are as in `fixed`."""
    found: dict[float, list[float]] = {}
    for row in rows:
        hyper = json.loads(row.hyperparameters)
        if all(hyper[name] == value for name, value in fixed.items()):
            found.setdefault(hyper[vary], []).append(row.test)
    return {value: np.asarray(found[value]) for value in sorted(found)}


def variation(found: Mapping[str, np.ndarray], what: str) -> str:
    """Largest minus smallest mean over the mean of all, where it lies, and whether seeds alone could have done it."""
    if len(found) < 2:
        return f"- **{what}**: not enough settings in the CSV yet."
    mean = {name: float(group.mean()) for name, group in found.items()}
    if not np.isfinite(list(mean.values())).all():
        return f"- **{what}**: some settings **diverged**."
    share, worst = spread(list(mean.values())), max(mean, key=lambda name: mean[name])
    # A p-value needs a spread: two seeds or more.
    groups = list(found.values())
    chance = float(stats.f_oneway(*groups).pvalue) if min(len(group) for group in groups) > 1 else float("nan")
    rest = spread([value for name, value in mean.items() if name != worst])
    against = f"**not** less than 5 %, against the paper (without {worst} by {rest:.1%})"
    verdict = "less than 5 %, as the paper says" if share < LIMIT else against
    seeds = "more than seeds alone would give" if chance < 0.05 else "no more than seeds alone would give"
    return f"- **{what}**: test perplexity varies by {share:.1%}, {verdict}; {seeds} (analysis of variance, p = {chance:.2g})."


def spread(means: Sequence[float]) -> float:
    return (max(means) - min(means)) / float(np.mean(means))


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """Figure 4, and how much each curve varies."""
    base = {name: value for name, value in json.loads(rows[-1].hyperparameters).items() if name not in DEFAULT}
    rows = [row for row in rows if base.items() <= json.loads(row.hyperparameters).items()]
    by_height = {height: series(rows, "width", height=height, strength=DEFAULT["strength"]) for height in HEIGHTS}
    by_strength = series(rows, "strength", height=DEFAULT["height"], width=DEFAULT["width"])
    with summary.styled():
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        for place, (height, found) in enumerate(by_height.items()):
            beside = {width * 1.06 ** (place - 2): values for width, values in found.items()}  # so that no bar hides another
            errors(left, beside, plotting.PALETTE[place], label=f"height w = {height:g}")
        left.set(xscale="log", xlabel=r"width of the hills $\sigma$", ylabel="test perplexity per character")
        left.set_xticks(WIDTHS, [f"{width:g}" for width in WIDTHS])
        left.minorticks_off()
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=5, fontsize="small")
        errors(right, by_strength, plotting.VERMILLION)
        right.set(xlabel="strength S (0: constant temperature)", ylabel="test perplexity per character")
        files.save_figure(figure, folder / "sensitivity.png", dpi=150)
    hills = {
        f"w = {height:g}, sigma = {width:g}": found for height, widths in by_height.items() for width, found in widths.items()
    }
    cells = [
        [f"w = {height:g}", *(str(summary.interval(found)) for found in widths.values())]
        for height, widths in by_height.items()
    ]
    strengths = [[str(summary.interval(found)) for found in by_strength.values()]]
    return "\n\n".join(
        [
            "## Sensitivity (section 5.3, Figure 4)",
            f"CTLD's test perplexity at {summary.in_words(base)}; at its hottest the noise has 1/(1-S) times that temperature.",
            summary.markdown(["", *(f"sigma = {width:g}" for width in WIDTHS)], cells),
            summary.markdown([f"S = {strength:g}" for strength in by_strength], strengths),
            "![Test perplexity over height, width and strength](results/sensitivity.png)",
            "\n".join(
                [
                    variation(hills, "w and sigma"),
                    variation({f"S = {strength:g}": found for strength, found in by_strength.items()}, "S"),
                ]
            ),
        ]
    )


def errors(ax: Any, found: Mapping[float, np.ndarray], color: str, **options: Any) -> None:
    """Mean and 95 % interval over the seeds."""
    intervals = [summary.interval(values) for values in found.values()]
    halves = [one.half if np.isfinite(one.half) else 0.0 for one in intervals]
    means = [one.mean for one in intervals]
    ax.errorbar(list(found), means, yerr=halves, color=color, marker="o", capsize=3, linewidth=1.5, **options)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.sensitivity", __doc__)
    parser.add_argument("--text", choices=tuple(char_rnn.data.TEXTS), default="war_and_peace")
    parser.set_defaults(seeds=SEEDS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    text, steps = char_rnn.load(options)
    made = char_rnn.experiment(text, options.text, steps, full=options.full, experiment_name=NAME, points=1)
    tried = settings(char_rnn.tuned(sweep.read(options.csv), options.text))
    sweep.fixed_from_command_line(made, {"CTLD": (Method({}, make), tried)}, options, summarize, seeds=sweep.reported(options))


if __name__ == "__main__":
    main()
