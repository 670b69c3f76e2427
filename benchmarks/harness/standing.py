"""The table that RESULTS.md opens with: where CTLD wins, where it is level, where it loses. Every word of it is computed.

A line is the verdict of one comparison, with the best of those beside CTLD, each chosen or tuned as its own experiment has it.
Counts are compared by Fisher's exact test, errors of weights by Mann and Whitney's, means over seeds by their 95 % t-intervals,
and CTLD wins or loses where these leave no doubt.
"""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks import ensembles, minibatches, transformer
from benchmarks.harness import multimodal_run, posterior_run, right_weights_run, summary, sweep, table

WINS, LEVEL, LOSES = "wins", "level", "**loses**"
OURS, NUTS = multimodal_run.OURS, "NUTS, dense"
TRAINED = 0.9  # test accuracy of a network that has left its plateau


class Line(NamedTuple):
    """A comparison.

    Attributes:
      question: what was compared.
      verdict: one of `WINS`, `LEVEL` and `LOSES`.
      figures: of CTLD and of the best beside it.
      source: what they are computed from: a file of the results, or a heading of the page.
    """

    question: str
    verdict: str
    figures: str
    source: str


def by_counts(ours: int, theirs: int, of: int) -> str:
    test: Any = stats.fisher_exact([[ours, of - ours], [theirs, of - theirs]])
    if test.pvalue >= 0.05:
        return LEVEL
    return WINS if ours > theirs else LOSES


def by_means(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Lower is better; a run that diverged is the worst of all."""
    one, other = summary.interval(ours), summary.interval(theirs)
    difference, doubt = one.mean - other.mean, float(np.hypot(one.half, other.half))
    if np.isnan(one.mean) != np.isnan(other.mean):
        return LOSES if np.isnan(one.mean) else WINS
    return LEVEL if not abs(difference) > doubt else WINS if difference < 0.0 else LOSES


def stuck_network(folder: pathlib.Path) -> list[Line]:
    """The digits: runs that train, beside the best optimizer, and beside a constant temperature that is as cold."""
    found = json.loads((folder / "digits.json").read_text())["results"]
    trained = {name: sum(end > TRAINED for end in row["test_accuracy"]) for name, row in found.items()}
    of = len(next(iter(found.values()))["test_accuracy"])
    cold = next(name for name in trained if name.startswith(OURS))
    temperature = cold.partition("T = ")[2]
    optimizer = max((name for name in trained if "T = " not in name), key=lambda name: trained[name])
    constants = [name for name in trained if name.startswith("SGHMC")]
    as_cold = next(name for name in constants if name.endswith(f"T = {temperature}"))
    chosen = max(constants, key=lambda name: trained[name])

    def line(question: str, other: str) -> Line:
        figures = f"{trained[cold]} of {of} runs train; {other}: {trained[other]}"
        return Line(question, by_counts(trained[cold], trained[other], of), figures, "results/digits.json")

    return [
        line("a network that is stuck, beside the best optimizer", optimizer),
        line("a network that is stuck, beside a constant temperature that is too cold", as_cold),
        line("a network that is stuck, beside a constant temperature that is well chosen", chosen),
    ]


def real_posteriors(folder: pathlib.Path) -> list[Line]:
    """Gradients an independent sample, the dearer of means and squares, median over sound runs, where both have some."""
    rows = [row for row in table.read(folder / "posteriordb.csv", posterior_run.Row) if row.start == "wide" and row.is_sound]
    price: dict[str, dict[str, float]] = {}
    for row in rows:
        own = [max(r.price, r.price_square) for r in rows if (r.posterior, r.method) == (row.posterior, row.method)]
        price.setdefault(row.posterior, {})[row.method] = statistics.median(own)
    both = [(found[OURS], found[NUTS]) for found in price.values() if OURS in found and NUTS in found]
    cheaper = sum(ours < theirs for ours, theirs in both)
    alike = stats.binomtest(cheaper, len(both)).pvalue >= 0.05
    verdict = LEVEL if alike else WINS if 2 * cheaper > len(both) else LOSES
    ratio = statistics.median(theirs / ours for ours, theirs in both)
    told = (
        f"fewer gradients an independent sample on {cheaper} of {len(both)}; {NUTS}: {ratio:.2g} times as many, at the median"
    )
    return [Line("real posteriors, beside NUTS with a dense metric", verdict, told, "results/posteriordb.csv")]


def many_rows(folder: pathlib.Path) -> list[Line]:
    rows = table.read(folder / "minibatches.csv", minibatches.Row)
    names = "in one call", "NUTS, all rows"
    ours, theirs = (statistics.median(row.all_passes for row in rows if row.method == name) for name in names)
    truth = minibatches.reference(rows)
    worst = max(float(np.max(np.abs(row.variance / truth - 1.0))) for row in rows if row.method == "in one call")
    verdict = LOSES if worst > 0.05 or ours > theirs else WINS
    told = f"{ours:,.0f} passes over the data for {theirs:,.0f}; variances within {worst:.1%} of the reference"
    return [
        Line(f"a posterior of {rows[0].rows:,} rows, in minibatches, beside NUTS", verdict, told, "results/minibatches.csv")
    ]


def separated_modes(folder: pathlib.Path) -> list[Line]:
    """The weights of the modes, a line a problem, as it comes, beside the peer that errs least, which is tuned."""
    lines: list[Line] = []
    for problem, runs in multimodal_run.reported(table.read(folder / "multimodal.csv", multimodal_run.Row)).items():
        found = multimodal_run.beside_the_best(runs)
        verdict = LEVEL if found.better is None else WINS if found.better == OURS else LOSES
        question = f"weights of separated modes, {problem.replace('_', ' ')}, beside the best peer: total variation"
        lines.append(Line(question, verdict, found.told, "results/multimodal.csv"))
    return lines


def right_weights(folder: pathlib.Path) -> list[Line]:
    """Gradients until every seed has the weights of all modes right, a line a posterior. No other is asked beyond CTLD's."""
    lines: list[Line] = []
    for problem, budgets in right_weights_run.compared(table.read(folder / "right_weights.csv", right_weights_run.Row)).items():
        needed = {method: math.inf if budget is None else budget for method, budget in budgets.items()}
        ours = needed.pop(OURS)
        best = min(needed, key=lambda method: needed[method])
        told = f"{best}: {needed[best]:,}" if budgets[best] else f"the other {len(needed)}: more"
        verdict = WINS if ours < needed[best] else LEVEL if ours == needed[best] else LOSES
        question = f"gradients until every seed has all weights right, {problem.replace('_', ' ')}"
        lines.append(Line(question, verdict, f"{OURS}: {ours:,}; {told}", "results/right_weights.csv"))
    return lines


def wrong_labels(folder: pathlib.Path) -> list[Line]:
    """Accuracy of the mean prediction, seed by seed, beside the best of each kind."""
    lines: list[Line] = []
    words = {ensembles.BETTER: WINS, ensembles.LEVEL: LEVEL, ensembles.WORSE: LOSES, ensembles.UNKNOWN: LEVEL}
    for told in ensembles.told(ensembles.newest(table.read(folder / "ensembles.csv", ensembles.Row))):
        if ensembles.WINDOW not in told.names:
            continue
        kinds: dict[str, list[str]] = {}
        for name in told.names:
            if name != ensembles.WINDOW:
                kinds.setdefault(ensembles.METHODS[name].kind.name, []).append(name)
        for kind, names in kinds.items():
            if all(OURS in name for name in names):
                continue  # itself, read in another way
            best = max(names, key=lambda name: float(np.nan_to_num(told.values(name, "accuracy").mean())))
            figures = f"{told.figure(ensembles.WINDOW, 'accuracy')}; {best}: {told.figure(best, 'accuracy')}"
            question = f"{told.wrong:.0%} wrong labels, the mean of a run beside the best of: {kind}"
            lines.append(Line(question, words[ensembles.verdict(told.gain(best))], figures, "results/ensembles.csv"))
    return lines


def transformers(folder: pathlib.Path) -> list[Line]:
    """The loss, seed by seed, of one network and of the mean of a run, beside the better AdamW, once both have run."""
    rows = table.read(folder / "transformer.csv", transformer.Row)
    told = transformer.Told(rows) if rows else None
    if told is None or told.names != list(transformer.METHODS):
        return []
    others = [name for name in told.names if name != transformer.OURS]
    lines: list[Line] = []
    for reading, what in (("point", "one network"), ("average", "the mean of a run")):
        best = min(others, key=lambda name: told.figure(name, reading).mean)
        behind = told.behind(best, reading)
        verdict = WINS if behind.mean + behind.half < 0.0 else LEVEL if abs(behind.mean) <= behind.half else LOSES
        figures = "; ".join(f"{name}: {told.figure(name, reading)} nats" for name in (transformer.OURS, best))
        lines.append(Line(f"a transformer, {what}, beside AdamW", verdict, figures, "#a-transformer-beside-adamw"))
    return lines


def of_the_paper(rows: Sequence[sweep.Row], name: str, question: str, heading: str) -> list[Line]:
    """The figure on the test set at the end of the reported runs of an experiment of the paper: lower is better."""
    own = [row for row in sweep.newest(rows, name) if row.stage == "report"]
    last = max((row.step for row in own), default=0)
    ends: dict[str, list[float]] = {}
    for row in own:
        if row.step == last:
            ends.setdefault(row.method, []).append(row.test)
    peers = [method for method in ends if not method.startswith(OURS)]
    if OURS not in ends or not peers:
        return []
    best = min(peers, key=lambda method: float(np.mean(ends[method])))
    told = "; ".join(f"{method}: {summary.interval(ends[method])}" for method in (OURS, best))
    return [Line(f"{question}, beside the best of {len(peers)}", by_means(ends[OURS], ends[best]), told, heading)]


def text(rows: Sequence[sweep.Row], folder: pathlib.Path) -> str:
    """The table.

    Args:
      rows: of the paper's experiments.
      folder: where the results of the others are.
    """
    parts: list[Callable[[pathlib.Path], list[Line]]] = [
        stuck_network,
        real_posteriors,
        many_rows,
        separated_modes,
        right_weights,
        wrong_labels,
        transformers,
    ]
    lines = [line for part in parts for line in part(folder)]
    lines += of_the_paper(rows, "sda", "stacked autoencoders", "#stacked-denoising-autoencoders-section-51-figure-2")
    lines += of_the_paper(rows, "char_rnn", "a character LSTM", "#character-level-lstm-section-52-figure-3")
    order = (WINS, LEVEL, LOSES)
    lines = sorted(lines, key=lambda line: order.index(line.verdict))
    cells = [[f"[{line.question}]({line.source})", line.verdict, line.figures] for line in lines]
    counts = ", ".join(f"{sum(line.verdict == verdict for line in lines)} {verdict}" for verdict in order)
    head = f"Where CTLD wins, where it is level with the best beside it, and where it loses ({counts}):"
    return f"{head}\n\n{summary.markdown(['question', 'CTLD', 'figures'], cells)}"
