"""Use LMDB files as a store would, in a process that may end by that. It reads the path of one directory a line.

It prints a line for each. An error of LMDB is fine here, a signal is not.
"""

import random
import signal
import sys
from pathlib import Path

import lmdb

HANGS_S = 60  # then this process has ended by a signal


def opened(directory: str) -> lmdb.Environment:
    size = Path(directory, "data.mdb").stat().st_size
    return lmdb.open(directory, map_size=2 * size + (64 << 20), max_dbs=16, lock=False, create=False, sync=False)


def walk(env: lmdb.Environment) -> dict[bytes, list[bytes]]:
    """Read all rows of all tables, forth and back, and look each up; return the keys."""
    keys: dict[bytes, list[bytes]] = {}
    with env.begin() as txn:
        names = list(txn.cursor().iternext(values=False))
    for name in names:
        table = env.open_db(name, create=False)
        with env.begin() as txn:
            keys[name] = [key for key, value in txn.cursor(table) if bytes(value).count(0) >= 0]
            sum(1 for _ in txn.cursor(table).iterprev())
            for key in keys[name]:
                txn.get(key, db=table)
    return keys


def change(env: lmdb.Environment, keys: dict[bytes, list[bytes]], values: random.Random, deleted: float) -> None:
    """Add rows, replace some, and delete a part of those that were there, in one transaction a table."""
    for name, old in keys.items():
        table = env.open_db(name, create=False)
        with env.begin(write=True) as txn:
            for _ in range(150):
                txn.put(values.randbytes(40), values.randbytes(values.choice((8, 100, 1000, 9000))), db=table)
            for key in values.sample(old, min(len(old), 150)):
                txn.put(key, values.randbytes(values.choice((8, 100, 3000))), db=table)
            for key in values.sample(old, int(len(old) * deleted)):
                txn.delete(key, db=table)


def use(directory: str) -> None:
    values = random.Random(0)
    for deleted in (0.5, 0.1, 1.0, 0.0):
        with opened(directory) as env:
            change(env, walk(env), values, deleted)
    with opened(directory) as env:
        walk(env)


for line in sys.stdin:
    signal.alarm(HANGS_S)
    try:
        use(line.rstrip("\n"))
    except lmdb.Error as error:
        print(f"refused: {error}", flush=True)
    else:
        print("used", flush=True)
