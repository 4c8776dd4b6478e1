"""Golden vectors: where they are, and how a test takes each of them."""

import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

import arstore
from arstore.formats.errors import FormatError
from tests.support import spec_reader

if TYPE_CHECKING:
    pass


ROOT = Path(__file__).resolve().parents[2]


VECTORS = ROOT / "tests" / "vectors"


WAYS = ("sealed", "plain")


@cache
def sheet(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_bytes())


def each(name: str, part: str, *say: str) -> pytest.MarkDecorator:
    """Return a decorator that runs a test over one list of vectors, each called by what it says of itself."""
    vectors = sheet(name)[part]
    ids = [" ".join(str(one.get(key)) for key in say) or str(number) for number, one in enumerate(vectors)]
    return pytest.mark.parametrize("vector", vectors, ids=ids)


def refuses(decode: Callable[..., object], *arguments: Any) -> str:
    """Check that a decoder raises FormatError, exactly; return what it says."""
    with pytest.raises(FormatError) as caught:
        decode(*arguments)
    assert type(caught.value) is FormatError
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spec_store(way: str, root: Path, told: Any) -> spec_reader.Store:
    secret = {"key-file": bytes.fromhex(told["key_file"]).strip()} if way == "sealed" else {}
    return spec_reader.Store(root, secret)


@pytest.fixture(params=WAYS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Any]:
    """Return a golden store as a directory of its own, its catalog made of its rows, its key file beside it."""
    way = request.param
    told, root = sheet(f"{way}-store"), tmp_path / "golden"
    shutil.copytree(VECTORS / f"{way}-store", root)
    for path in [root, *root.rglob("*")]:  # a checkout may be read-only
        path.chmod(0o700 if path.is_dir() else 0o600)
    with lmdb.open(str(root / "catalog"), max_dbs=16, map_size=1 << 20) as environment:
        for table, rows in told["catalog"].items():
            place = environment.open_db(table.encode())
            with environment.begin(write=True, db=place) as change:
                for key, value in rows.items():
                    change.put(bytes.fromhex(key), bytes.fromhex(value))
    if told["key_file"]:
        (tmp_path / "key").write_bytes(bytes.fromhex(told["key_file"]))
    return way, root, told


def opened(root: Path) -> arstore.Store:
    return arstore.open_store(root, key_file=root.parent / "key")


def check_slots(reader: spec_reader.Store) -> None:
    """Check that every key is that of a record with a row, lent, spare or doomed, and only one of these."""
    rows, mine = reader.catalog(), struct.pack(">I", reader.number)

    def of(table: str) -> dict[bytes, bytes]:
        return {key: reader.row(rows, table, key) for key in rows[table] if key.startswith(mine)}

    used = [struct.unpack_from("<Q", row, 16)[0] for table in ("blobs", "versions") for row in of(table).values()]
    lent = [slot for row in of("loans").values() for slot in spec_reader.parse_slots(row)]
    spare = [slot for row in of("spare").values() for slot in spec_reader.parse_slots(row)]
    doomed = [slot for row in of("doomed").values() for slot in spec_reader.parse_slots(row)]
    every = [slot for slot in (*used, *lent, *spare, *doomed) if slot]
    assert len(set(every)) == len(every)
    assert set(every) == reader.tenant.slots()
    assert bool(every) == reader.encrypted
