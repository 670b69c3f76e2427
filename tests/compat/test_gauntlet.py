import pytest

from .gauntlet import PAIRS, run


@pytest.mark.parametrize(("row", "column"), PAIRS, ids=[f"{column.name}-{row.name}" for row, column in PAIRS])
def test_gauntlet(row, column):
    run(row, column)
