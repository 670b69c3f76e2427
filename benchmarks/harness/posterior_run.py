"""What is kept of a run over a posterior, and when it counts: for the command that makes the runs, and for the site's table."""

import math
from typing import Any, NamedTuple

KEY = ("posterior", "method", "start", "seed")  # of a row


class Row(NamedTuple):
    """One line of the CSV: a run of all chains."""

    posterior: str
    method: str
    start: str
    seed: int
    chains: int
    draws: int
    gradients: int
    warmup_gradients: int
    # Of the worst parameter, in the natural space:
    ess: float
    ess_square: float  # of (x - the reference's mean)^2
    rhat: float  # rank-normalised, split
    error: float  # of the mean, in the reference's standard deviations
    error_mc: float  # of the mean, in Monte Carlo errors of both sides
    sd_ratio: float  # to the reference's standard deviation, that farthest from 1
    seconds: float  # compilation apart, save in the first run of a method that compiles on the way
    by: str

    @property
    def run(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in KEY)

    @property
    def is_sound(self) -> bool:
        """Chains that agree, on means that are the reference's within chance or within a bias of a tenth of its spread."""
        return self.rhat < 1.05 and (self.error_mc < 5.0 or self.error < 0.1)

    @property
    def price(self) -> float:
        return self.gradients / self.ess if self.is_sound else math.inf

    @property
    def price_square(self) -> float:
        return self.gradients / self.ess_square if self.is_sound else math.inf
