"""The variants of benchmarks/phases.py on the stacked denoising autoencoders.

    python -m benchmarks.sda_phases     after benchmarks.sda: one variant at a time, about 3 minutes on 2 cores

At the learning rate and temperature that benchmarks/sda.py chose for CTLD, the same in every layer.
"""

import pathlib
from collections.abc import Sequence

import matplotlib as mpl

from benchmarks import phases, sda
from benchmarks.harness import sweep
from benchmarks.harness.sweep import Row

NAME = "sda_phases"


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """A table, with each variant against the standard on the same seeds."""
    del folder
    return "\n\n".join(
        [
            "## The two phases of the autoencoders",
            phases.introduction("Square error per pixel of the whole stack", rows),
            phases.table(rows, "test error"),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sda.own_parser("benchmarks.sda_phases", __doc__)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    made = sda.experiment(*sda.load(options), experiment_name=NAME, whole_curve=False)
    hyper = sda.tuned(sweep.read(options.csv))
    wanted = {name: (phases.VARIANTS[name], [hyper]) for name in options.methods or phases.VARIANTS}
    sweep.fixed_from_command_line(made, wanted, options, summarize, seeds=sweep.reported(options))


if __name__ == "__main__":
    main()
