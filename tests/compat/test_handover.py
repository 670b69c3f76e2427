"""The hand-over does no harm to anything that Optax exports."""

import pytest

from .handover import ROWS, outcome


def test_the_rows_are_found():
    assert len(ROWS) > 90
    assert {"sgd", "adam", "lars", "rmsprop", "schedule_free", "dog", "scale_by_adam, rate, trace"} <= ROWS.keys()


@pytest.mark.filterwarnings("ignore")  # of Optax's deprecations, and ours that a trace is left alone
@pytest.mark.parametrize("name", ROWS)
def test_the_loss_stays_down_after_the_switch(name):
    found = outcome(ROWS[name])
    assert not found.harm, found
