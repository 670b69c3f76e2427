"""Every row against every column."""

from pathlib import Path

from .columns import COLUMNS, Column
from .rows import ROWS, Row

DOCS = Path(__file__).parents[2] / "docs" / "compatibility.md"


def run(row: Row, column: Column) -> str:
    """`"pass"` or `"refused"`; raises for anything else, also for a refusal that does not come or is not documented."""
    refusal = column.refusal(row)
    if refusal is None:
        column.check(row)
        return "pass"
    try:
        column.check(row)
    except refusal.error as error:
        if refusal.words not in str(error):
            raise AssertionError(f"refused with other words than documented: {error}") from error
        if refusal.words not in DOCS.read_text():
            raise AssertionError(f"docs/compatibility.md does not quote {refusal.words!r}") from error
        return "refused"
    raise AssertionError(f"{row.name} should refuse {column.name}: {refusal}")


PAIRS = [(row, column) for column in COLUMNS for row in ROWS]
