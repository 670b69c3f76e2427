"""`python -m tests.compat` prints the gauntlet's table: rows of ours, columns of theirs (turned by 90 degrees, to fit)."""

import sys
import time
import traceback

from .columns import COLUMNS
from .gauntlet import run
from .rows import ROWS


def main() -> int:
    start, failures = time.time(), []
    width = max(len(column.name) for column in COLUMNS) + 2
    for index, row in enumerate(ROWS):
        print(f"{chr(ord('A') + index)}: {row.name}")
    print("\n" + " " * width + "  ".join(f"{chr(ord('A') + index):7s}" for index in range(len(ROWS))))
    for column in COLUMNS:
        print(column.name.ljust(width), end="", flush=True)
        for row in ROWS:
            try:
                outcome = run(row, column)
            except Exception:  # noqa: BLE001 - a table shows every failure
                outcome = "FAIL"
                failures.append(f"{row.name} / {column.name}\n{traceback.format_exc()}")
            print(f"{outcome:7s}", end="  ", flush=True)
        print()
    print(f"\n{len(ROWS) * len(COLUMNS)} cells, {len(failures)} failures, {time.time() - start:.0f} s. ", end="")
    print("refused: raises the error that docs/compatibility.md quotes.")
    print("\n".join(failures), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
