"""The hand-over does no harm to anything that Optax exports."""

import pytest

from .handover import OTHERS, ROWS, outcome


def test_the_rows_are_found():
    assert len(ROWS) > 90
    assert {"sgd", "adam", "lars", "rmsprop", "schedule_free", "dog", "scale_by_adam, rate, trace"} <= ROWS.keys()


@pytest.mark.filterwarnings("ignore")  # of Optax's deprecations, and ours that a trace is left alone
@pytest.mark.parametrize("name", ROWS)
def test_the_loss_stays_down_after_the_switch(name):
    found = outcome(ROWS[name])
    assert not found.harm, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("number", "name"), list(enumerate(ROWS)), ids=list(ROWS))
def test_the_loss_stays_down_after_other_samplers_too(number, name):
    """Each optimizer after one of them, in turn."""
    found = outcome(ROWS[name], OTHERS[number % len(OTHERS)])
    assert not found.harm, (OTHERS[number % len(OTHERS)], found)
