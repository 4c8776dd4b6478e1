"""A process that reads or writes a catalog, for tests of processes beside each other. It speaks line by line.

    python -m tests.support.catalog_worker DIRECTORY WHAT [COUNT]

- `write`: adds one to both rows again and again, COUNT times; prints each number when it is durable.
- `read`: compares the rows COUNT times, by the table and by a scan; prints the last number that it saw.
- `hold-read`, `hold-write`: is inside a transaction, prints `inside`, and waits for a line.
- `fork-write`: as `hold-write`, with a forked child that outlives it.
"""

import os
import sys
from pathlib import Path

from arstore.store.catalog.tables import Rows, Tables
from tests.support.catalog_rows import ALL_TABLES

FIRST, SECOND = b"first", b"second"


def number(rows: Rows, key: bytes) -> int:
    return int.from_bytes(rows.get("names", key) or b"", "big")


def add_one(rows: Rows) -> int:
    """Add one to both rows, which are far apart, so that readers see whether they are of one commit."""
    value = number(rows, FIRST) + 1
    assert value == number(rows, SECOND) + 1
    for key in (FIRST, SECOND):
        rows.put("names", key, value.to_bytes(8, "big"))
    for at in range(30):  # pages that come and go
        rows.put("blobs", b"%d/%d" % (at, value % 7), os.urandom(900))
        rows.delete("blobs", b"%d/%d" % (at, (value - 3) % 7))
    return value


def read(tables: Tables) -> int:
    with tables.reading() as rows:
        value = number(rows, FIRST)
        blobs = sum(1 for _ in rows.scan("blobs", b""))
        assert value == number(rows, SECOND), "rows of two commits"
        assert blobs == 30 * min(value, 3), "blobs of another commit"
    return value


def hold(tables: Tables, what: str) -> None:
    def inside(rows: Rows) -> None:
        if what == "fork-write" and not os.fork():
            sys.stdin.read()  # until the test ends
            os._exit(0)
        print("inside", flush=True)
        sys.stdin.readline()

    if what == "hold-read":
        with tables.reading() as rows:
            inside(rows)
    else:
        tables.write(inside)


def main(directory: str, what: str, count: str = "0") -> None:
    tables = Tables(Path(directory), ALL_TABLES, bytes(32))
    if what == "write":
        for _ in range(int(count)):
            print(tables.write(add_one), flush=True)
    elif what == "read":
        values = [read(tables) for _ in range(int(count))]
        assert values == sorted(values), "an older commit came back"
        print(values[-1] if values else 0, flush=True)
    else:
        hold(tables, what)
    tables.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
