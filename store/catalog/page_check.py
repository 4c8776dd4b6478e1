"""Page check: every page of a catalog file, read without LMDB, before LMDB trusts it.

py-lmdb brings a verifier of everything but two things, which are checked here: the flags of the two trees that a meta
page leads to, and that nodes begin at even places. LMDB asserts both, and would end the process. The layout is that of
MDB_page and MDB_meta in mdb.c of LMDB 0.9, in little-endian order.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from ..disk import disk_errors
from ..errors import Corrupt

DATA_NAME = "data.mdb"
_HEAD = struct.Struct("=QHHHH")  # of a page: its number, padding, its kind, where its free space begins and ends
_BRANCH, _LEAF, _META = 1, 2, 8
_FLAGS = ((44, 8), (92, 0))  # where in a meta page the flags of the free list and of the list of tables stand
_PAGE_BYTES_AT = slice(40, 44)


def check_pages(directory: Path) -> None:
    """Check the structure of all pages of a catalog; raise Corrupt if LMDB could trip over one."""
    from lmdb.verify import verify

    with disk_errors(directory / DATA_NAME):
        try:
            problems = verify(str(directory)) or list(_oddities(directory))  # type: ignore[no-untyped-call]
        except OSError:
            raise
        except Exception as error:  # bytes can be wrong in more ways than the verifier foresees
            problems = [str(error)]
    if problems:
        raise Corrupt(str(directory / DATA_NAME), problems[0], hint="run 'arstore repair --rebuild-catalog'")


def _oddities(directory: Path) -> Iterator[str]:
    with (directory / DATA_NAME).open("rb") as file:
        page_bytes = int.from_bytes(file.read(44)[_PAGE_BYTES_AT], "little")
        file.seek(0)
        number = 0
        while len(page := file.read(page_bytes)) == page_bytes:
            own, _, kind, lower, upper = _HEAD.unpack_from(page)
            if kind == _META and number < 2:
                for at, flags in _FLAGS:
                    if int.from_bytes(page[at : at + 2], "little") != flags:
                        yield f"meta page {number}: a tree has flags that the store never sets"
            # Free pages that were in use once are as sound.
            elif own == number and kind in (_BRANCH, _LEAF) and _has_odd(page, lower, upper):
                yield f"page {number}: a node begins at an odd place"
            number += 1


def _has_odd(page: bytes, lower: int, upper: int) -> bool:
    return upper % 2 == 1 or any(low & 1 for low in page[_HEAD.size : lower : 2])
