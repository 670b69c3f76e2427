import inspect

import optax
import pytest

import ctld_optax
from tests.helpers import public_objects

from .gauntlet import PAIRS, run
from .rows import ROWS


def makes_a_transformation(function):
    made = inspect.signature(function).return_annotation
    return isinstance(made, type) and issubclass(made, optax.GradientTransformation)


def test_every_transformation_has_a_row():
    wrappers = {ctld_optax.phase_switch, ctld_optax.accumulate}  # whose rows are of what is in them, and bear their names
    made = {found for _, found in public_objects() if inspect.isfunction(found) and makes_a_transformation(found)}
    assert wrappers | {ctld_optax.ctld, ctld_optax.posterior_sampler} < made
    assert made - wrappers <= {row.factory for row in ROWS}
    assert all(any(wrapper.__name__ in row.name for row in ROWS) for wrapper in wrappers)


@pytest.mark.parametrize(("row", "column"), PAIRS, ids=[f"{column.name}-{row.name}" for row, column in PAIRS])
def test_gauntlet(row, column):
    run(row, column)
