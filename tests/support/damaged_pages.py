"""Catalog files made by real commits, and damage to their pages: as disks, copies and stray writers do, and worse."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.changes import NewVersion, commit_version, drop_version
from arstore.store.catalog.page_check import check_pages
from arstore.store.catalog.tables import Rows
from arstore.store.errors import Corrupt
from tests.support.catalog_rows import INDEX_KEY, digest, key_id, named, new_version, opened_tables, place

PAGE = 4096
_USER = Path(__file__).with_name("page_user.py")


def make_catalog(directory: Path, artifacts: int) -> tuple[bytes, bytes]:
    """Commit artifacts with blobs and with short and long identities, then drop some; return the file at both times."""
    step = max(artifacts // 8, 1)
    with opened_tables(directory) as tables:
        catalog = Catalog(tables, 0, INDEX_KEY)
        catalog.new_segment(0)
        for start in range(0, artifacts, step):
            commit_artifacts(catalog, range(start, start + step))
        older = (directory / "data.mdb").read_bytes()
        for start in range(0, artifacts, 2 * step):
            drop_artifacts(catalog, range(start, start + step, 2))
        commit_artifacts(catalog, [artifacts + step])
    return older, (directory / "data.mdb").read_bytes()


def commit_artifacts(catalog: Catalog, numbers: Iterable[int]) -> None:
    """Commit artifacts in one transaction."""
    new = [_artifact(n) for n in numbers]

    def commit(rows: Rows) -> None:
        for version in new:
            commit_version(rows, catalog.keys, version)

    catalog.tables.write(commit)


def drop_artifacts(catalog: Catalog, numbers: Iterable[int]) -> None:
    old = [_artifact(n) for n in numbers]

    def drop(rows: Rows) -> None:
        for version in old:
            drop_version(rows, catalog.keys, version.name, 1, version.needs, shred=True)

    catalog.tables.write(drop)


def _artifact(n: int) -> NewVersion:
    blobs = {digest(4 * n + m): place(1, 4 * n + m) for m in range(1, 4)}
    claims = ((key_id(n), named(*range(4 * n + 1, 4 * n + 4))), (key_id(2**64 + n), named(*[4 * n + 1] * 150)))
    return new_version(f"name {n}", 1, place(1, 4 * n), blobs, claims=claims[: n % 3])


def damaged(content: bytes, older: bytes, seed: int) -> bytes:
    """Return a file with the damage of this seed. `older` is the same file at an earlier time."""
    values = random.Random(seed)
    file = bytearray(content)
    for _ in range(values.choice((1, 1, 1, 2, 5))):
        values.choice(_KINDS)(file, older, values)
    return bytes(file)


def _any_page(file: bytearray, values: random.Random) -> int:
    """Return where a page starts. The metas and the pages that lead to others come up as often as all the rest."""
    pages = len(file) // PAGE
    if values.random() < 0.5:
        leading = [n for n in range(2, pages) if file[n * PAGE + 10] == 1]
        roots = [root for at in (80, 128, PAGE + 80, PAGE + 128) if (root := _u64(file, at)) < pages]
        return PAGE * values.choice((0, 1, *leading, *roots))
    return PAGE * values.randrange(pages)


def _u16(file: bytearray, at: int) -> int:
    return int.from_bytes(file[at : at + 2], "little")


def _u64(file: bytearray, at: int) -> int:
    return int.from_bytes(file[at : at + 8], "little")


def _zero(file: bytearray, older: bytes, values: random.Random) -> None:
    at = _any_page(file, values)
    length = PAGE * values.choice((1, 1, 4)) if values.random() < 0.7 else values.randrange(PAGE)
    file[at : at + length] = bytes(len(file[at : at + length]))


def _fill(file: bytearray, older: bytes, values: random.Random) -> None:
    at = _any_page(file, values) + values.choice((0, 16, values.randrange(PAGE)))
    length = len(file[at : at + values.choice((1, 8, 500, PAGE))])
    file[at : at + length] = values.choice((values.randbytes(length), b"\xff" * length))


def _copy(file: bytearray, older: bytes, values: random.Random) -> None:
    """Put a page over another one, or let two change places; with the right number, or as it is."""
    first, second = _any_page(file, values), _any_page(file, values)
    one, other = file[first : first + PAGE], file[second : second + PAGE]
    if values.random() < 0.5:
        one[:8], other[:8] = other[:8], one[:8]
    file[second : second + PAGE] = one
    if values.random() < 0.5:
        file[first : first + PAGE] = other


def _cut(file: bytearray, older: bytes, values: random.Random) -> None:
    at = _any_page(file, values) + values.choice((0, values.randrange(PAGE)))
    if values.random() < 0.5:
        del file[max(at, 2 * PAGE) :]
    elif values.random() < 0.5:
        del file[at : at + PAGE]
    else:
        file[at:at] = values.randbytes(PAGE)


def _flip(file: bytearray, older: bytes, values: random.Random) -> None:
    for _ in range(values.choice((1, 1, 20))):
        file[(_any_page(file, values) + values.randrange(PAGE)) % len(file)] ^= 1 << values.randrange(8)


def _set_back(file: bytearray, older: bytes, values: random.Random) -> None:
    """Lose writes: pages are as they were before."""
    for _ in range(values.choice((1, 1, 5, 50))):
        at = _any_page(file, values)
        if at + PAGE <= min(len(older), len(file)):
            file[at : at + PAGE] = older[at : at + PAGE]


def _edit(file: bytearray, at: int, size: int, values: random.Random) -> None:
    """Change a number: a little, much, to a special one, or to one that stands elsewhere in such a place."""
    old, page = int.from_bytes(file[at : at + size], "little"), at // PAGE * PAGE
    beside = page + 2 * values.randrange(4, 300)
    new = values.choice(
        (
            old + values.choice((-16, -8, -2, -1, 1, 2, 8, 16, 256)),
            old ^ 1 << values.randrange(8 * size),
            values.choice((0, 1, 2, -1, -2)),
            values.randrange(2 ** (8 * size)),
            values.randrange(1, len(file) // PAGE + 9),
            int.from_bytes(file[beside : beside + size], "little"),
        )
    )
    file[at : at + size] = (new % 2 ** (8 * size)).to_bytes(size, "little")


def _edit_meta(file: bytearray, older: bytes, values: random.Random) -> None:
    at, size = values.choice(_META_FIELDS)
    _edit(file, PAGE * values.randrange(2) + at, size, values)


def _edit_head(file: bytearray, older: bytes, values: random.Random) -> None:
    at, size = values.choice(((0, 8), (8, 2), (10, 2), (12, 2), (14, 2), (12, 4)))
    _edit(file, _any_page(file, values) + at, size, values)


def _edit_node(file: bytearray, older: bytes, values: random.Random) -> None:
    """Change where a node lies, a field of its head, or its key or value."""
    page = _any_page(file, values)
    count = max((min(_u16(file, page + 12), PAGE) - 16) // 2, 1)
    pointer = page + 16 + 2 * values.randrange(count)
    node = page + _u16(file, pointer) % PAGE
    at, size = values.choice(
        ((pointer, 2), (node, 2), (node, 4), (node + 4, 2), (node + 6, 2), (node + 8 + values.randrange(60), 8))
    )
    if at + size <= len(file):
        _edit(file, at, size, values)


def _drop_nodes(file: bytearray, older: bytes, values: random.Random) -> None:
    """Let a page end early: the nodes stay, and their places are gone, or change their order."""
    page = _any_page(file, values)
    count = (min(_u16(file, page + 12), PAGE) - 16) // 2
    if count > 0 and values.random() < 0.5:
        file[page + 12 : page + 14] = (16 + 2 * values.choice((1, 0, values.randrange(count)))).to_bytes(2, "little")
    elif count > 1:
        one, other = (page + 16 + 2 * n for n in values.sample(range(count), 2))
        file[one : one + 2], file[other : other + 2] = file[other : other + 2], file[one : one + 2]


_TREE_FIELDS = ((0, 4), (4, 2), (6, 2), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8))
_META_FIELDS = (
    *((0, 8), (10, 2), (16, 4), (20, 4), (24, 8), (32, 8), (136, 8), (144, 8)),
    *((tree + at, size) for tree in (40, 88) for at, size in _TREE_FIELDS),
)
_EDITS = (_edit_meta, _edit_head, _edit_head, _edit_node, _edit_node, _edit_node, _drop_nodes)
_KINDS: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    *(_zero, _fill, _copy, _cut, _flip, _set_back),
    *_EDITS,
)


def refused(directory: Path, file: bytes) -> bool:
    """Say whether the check refuses a file, which is written into the directory."""
    directory.mkdir(exist_ok=True)
    (directory / "data.mdb").write_bytes(file)
    try:
        check_pages(directory)
    except Corrupt:
        return True
    return False


class PageUser:
    """A process that uses files with LMDB, one after the other. If it ends, the next file gets a new one."""

    def __init__(self, base: Path) -> None:
        self._base, self._process = base, self._start()

    def use(self, file: bytes) -> str:
        """Return what the process says, or the name of the signal that ended it. One that hangs ends by SIGALRM."""
        directory = self._base / "used"
        directory.mkdir(exist_ok=True)
        (directory / "data.mdb").write_bytes(file)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{directory}\n")
        self._process.stdin.flush()
        if said := self._process.stdout.readline():
            return said.strip()
        status = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process = self._start()
        return signal.Signals(-status).name if status < 0 else f"exit {status}"

    def close(self) -> None:
        self._process.communicate()

    @staticmethod
    def _start() -> "subprocess.Popen[str]":
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen([sys.executable, _USER], stdin=pipe, stdout=pipe, stderr=null, text=True)
