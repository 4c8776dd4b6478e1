"""Every tier passes the suite of tiers; and what only an arena, or only a device, can be put through."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from arstore import NotFound, Store, create_store, open_store
from arstore.store.artifacts.tensors import tensor_bytes
from arstore.store.disk import Disk, Out
from arstore.store.errors import Corrupt, NoRoom, StorageFailed
from arstore.store.kv.prefix import Prefix
from arstore.store.tiers import device as device_room
from arstore.store.tiers import sealed as sealed_room
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.device import DeviceTier
from arstore.store.tiers.head import Head, parse_head
from arstore.store.tiers.local import Local
from arstore.store.tiers.shared import open_shared
from arstore.store.tiers.sources import Sources
from arstore.store.tiers.staged import StagedTensors
from arstore.store.tiers.tier import Held
from tests.support.kv_made import IDENTITY, made
from tests.support.mortal_disk import killed
from tests.support.tier_faults import Between, Faulty, Given, Met, Slow, Vanishing, fresh_memory, given
from tests.support.tier_suite import (
    CAPACITY_BYTES,
    KEYS,
    SOURCE_BEHAVIOURS,
    THIRD,
    TIER_BEHAVIOURS,
    A,
    B,
    C,
    D,
    Place,
    Stocked,
    odd_objects,
    part,
    refuses,
    whole,
)

STORE_ID, MINE, OTHERS = b"s" * 16, b"m" * 16, b"o" * 16
ACCELERATOR = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
SHARED = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system here")
SEALED = pytest.param("shared", marks=SHARED)
ARENAS = ["host", SEALED]
TIERS = [*ARENAS, "device", pytest.param("device on an accelerator", marks=ACCELERATOR)]


@pytest.fixture
def memory() -> Iterator[Path]:
    with fresh_memory() as path:
        yield path


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seal and copy in steps that small objects have many of."""
    monkeypatch.setattr(sealed_room, "SUM_BYTES", 1000)
    monkeypatch.setattr(device_room, "BOUNCE_BYTES", 3000)


def open_arena(tier: str, memory: Path, tenant: bytes = MINE, disk: Disk | None = None) -> Arena:
    disk = disk or Disk()
    if tier == "host":
        return Arena("host", memory / "host" / tenant.hex(), CAPACITY_BYTES, disk)
    return open_shared(memory, STORE_ID, tenant, tenant * 2, CAPACITY_BYTES, disk)


def left(memory: Path) -> list[str]:
    return sorted(path.name for path in memory.rglob("*") if path.is_file())


def a_place(tier: str, memory: Path) -> Place:
    if tier in ("host", "shared"):
        opened = partial(open_arena, tier, memory)
        lying = lambda: [name for name in left(memory) if not name.endswith(".extent")]  # noqa: E731
        return Place(opened(), opened, partial(opened, OTHERS), lying, outlives_us=True)
    device = "cpu" if tier == "device" else "cuda:0"
    one = DeviceTier(device, CAPACITY_BYTES)
    return Place(one, lambda: one, partial(DeviceTier, device, CAPACITY_BYTES))


@pytest.fixture
def place(request: pytest.FixtureRequest, memory: Path, small_steps: None) -> Place:
    return a_place(request.param, memory)


# ---- the suite


@pytest.mark.parametrize("place", TIERS, indirect=True)
@pytest.mark.parametrize("behaviour", TIER_BEHAVIOURS, ids=lambda one: one.__name__)
def test_tier(place: Place, behaviour: Callable[[Place], None]) -> None:
    behaviour(place)


@pytest.mark.parametrize("place", TIERS, indirect=True)
@pytest.mark.parametrize("behaviour", TIER_BEHAVIOURS, ids=lambda one: one.__name__)
def test_tier_that_is_slow(place: Place, behaviour: Callable[[Place], None]) -> None:
    tier, again = Between(place.tier, Slow()), lambda: Between(place.again(), Slow())
    behaviour(replace(place, tier=tier, again=again))


@pytest.mark.parametrize("place", TIERS, indirect=True)
@pytest.mark.parametrize("behaviour", SOURCE_BEHAVIOURS, ids=lambda one: one.__name__)
def test_source(place: Place, behaviour: Callable[[Stocked], None]) -> None:
    objects = dict(zip(KEYS, odd_objects(), strict=False))
    for key, one in objects.items():
        place.tier.fill(key, one, time.time() + 100)
    for source in (place.tier, Between(place.tier, Slow())):
        behaviour(Stocked(source, objects, place.stranger()))


# ---- the local store as a source

KV_NAMES = ["NHD", "HND", "packed", "paged-NHD", "packed-paged-HND"]
TOKENS = list(range(39))  # the last page and the last block are not full


@pytest.fixture
def store(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(memory / "host"))
    create_store()
    with open_store() as opened:
        yield opened


def kv_identity(layout: str) -> dict[str, object]:
    return {**IDENTITY, "layout": layout} | ({"page_tokens": 4} if "paged" in layout else {})


def put_all(store: Store, folder: Path) -> dict[str, dict[str, bytes]]:
    """Put artifacts with and without tensors, and KV in several layouts; return what each has, by key and name."""
    (source := folder / "in/sub").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save({"t": (whole := torch.randn(30, 50)).t(), "step": whole[::3, 1::7]}, folder / "in/model.pt")
    (source / "имя.json").write_bytes(b"{}")
    (source / "empty").write_bytes(b"")
    store.put(folder / "in", name="weights")
    tensors = {"层": torch.randn(33).bfloat16(), "none": torch.empty(0, 4), "one": torch.tensor([5], dtype=torch.int8)}
    store.put(tensors=tensors, name="more/b")
    (folder / "nothing").write_bytes(b"")
    store.put(folder / "nothing", name="nothing")
    found = {
        "weights": {"t": bytes(tensor_bytes(whole)), "step": bytes(tensor_bytes(whole))[4:], "file:sub/имя.json": b"{}",
                    "file:sub/empty": b""},
        "more/b": {name: bytes(tensor_bytes(one)) for name, one in tensors.items()},
        "nothing": {"file:nothing": b""},
    }  # fmt: skip
    for layout in KV_NAMES:
        kv = made(TOKENS, layout=layout)
        store.kv.put(
            {n: torch.from_numpy(o) for n, o in kv.items()}, name=layout, tokens=TOKENS, identity=kv_identity(layout)
        )
        found[layout] = {name: one.tobytes() for name, one in kv.items()}
    return {store.get(name).summary.id: one for name, one in found.items()}


def block_keys(store: Store, layout: str) -> list[str]:
    return [id_.hex() for id_ in store.kv.chain(TOKENS, kv_identity(layout)).blocks]


def local_of(store: Store, layout: str) -> Local:
    return Local(store.get, store.kv.blocks_of(kv_identity(layout)))


@pytest.fixture
def stocked(store: Store, tmp_path: Path) -> Iterator[Stocked]:
    """Stock the local store, and say of every object what it is, byte by byte: what lies between tensors is zero."""
    wanted, objects, layout = put_all(store, tmp_path), dict[str, Given](), "paged-NHD"
    source = local_of(store, layout)
    for number, key in enumerate(block_keys(store, layout)):
        pages = slice(number * 4, number * 4 + 4)
        wanted[key] = {name: one[pages].tobytes() for name, one in made(TOKENS, layout=layout).items()}
    for key, tensors in wanted.items():
        held = source.hold(key)
        assert held
        assert {span.name for span in held.spans} == set(tensors)
        content = bytearray(held.length_bytes)
        for span in held.spans:
            assert span.length == len(tensors[span.name]) or span.stride
            content[span.place] = tensors[span.name][: span.length]
        objects[key] = Given(held.name, held.spans, bytes(content))
    store.tenants.add("other")
    with open_store(tenant="other") as other:
        yield Stocked(source, objects, local_of(other, layout))


@pytest.mark.parametrize("behaviour", SOURCE_BEHAVIOURS, ids=lambda one: one.__name__)
def test_source_local(stocked: Stocked, behaviour: Callable[[Stocked], None]) -> None:
    behaviour(stocked)


@pytest.mark.parametrize("tier", TIERS)
def test_what_the_store_has_arrives_in_every_tier(stocked: Stocked, tier: str, memory: Path, small_steps: None) -> None:
    for key, wanted in stocked.objects.items():
        place = a_place(tier, memory)
        held = stocked.source.hold(key)
        assert held
        with contextlib.suppress(NoRoom):  # of the very last object
            found = place.tier.fill(key, held)
            assert (found.name, tuple(found.spans)) == (wanted.name, tuple(wanted.spans))
            assert whole(found) == wanted.content, wanted.name
            continue
        raise AssertionError(wanted.name)


def test_what_is_removed_while_it_is_held_is_an_error_and_no_other_bytes(store: Store, tmp_path: Path) -> None:
    put_all(store, tmp_path)
    local, layout = local_of(store, "paged-NHD"), "paged-NHD"
    keys = [store.get("weights").summary.id, store.get(layout).summary.id, block_keys(store, layout)[0]]
    held = [local.hold(key) for key in keys]
    for name in ("weights", *KV_NAMES):
        store.erase(name)
    for one in held:
        assert one
        with pytest.raises((NotFound, Corrupt)):
            whole(one)
    assert [local_of(store, layout).hold(key) for key in keys] == [None] * 3


@pytest.mark.parametrize("tier", TIERS)
def test_steps_of_full_size(tier: str, memory: Path) -> None:
    """Sums of 4 MiB, buffers of 32 MiB: what lies across their bounds is what it was."""
    wanted = given((33 << 20) + 5)
    place = a_place(tier, memory)
    if place.outlives_us:
        held = place.tier.fill(A, wanted)
    else:
        held = DeviceTier(str(place.tier.device), 1 << 30).fill(A, wanted)  # type: ignore[attr-defined]
    assert whole(held) == wanted.content
    for bound in (4 << 20, 32 << 20, 33 << 20):
        for first, stop in ((bound - 1, bound + 1), (bound, bound + 5), (max(bound - (5 << 20), 0), bound + 1)):
            assert part(held, first, stop - first) == wanted.content[first:stop]


# ---- killed


@pytest.mark.parametrize("tier", ARENAS)
def test_a_stager_killed_anywhere_leaves_the_whole_or_nothing(tier: str, memory: Path, small_steps: None) -> None:
    wanted, published = given(), 0

    def fill(disk: Disk) -> None:
        arena = open_arena(tier, memory, disk=disk)
        with arena.filling(A, wait=False):
            arena.fill(A, wanted, time.time() + 100)

    for at in range(1, 40):
        died = killed(at, fill)
        arena = open_arena(tier, memory)
        if held := arena.hold(A):
            published += 1
            assert whole(held) == wanted.content
            del held
        assert not refuses(arena, THIRD, A)
        arena.sweep()
        assert [name for name in left(memory) if ".partial" in name] == []
        assert arena.remove(A)
        if not died:
            break
    assert 5 < at < 39
    assert published > 1


def test_what_others_write_while_it_is_filled_is_never_sealed(memory: Path, small_steps: None) -> None:
    def foreign(_: int) -> None:
        [partial_] = memory.rglob("*.partial")
        with partial_.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"evil")

    arena = open_arena("shared", memory)
    held = arena.fill(A, given(), on_bytes=foreign)
    with pytest.raises(Corrupt):
        whole(held)


def test_kv_goes_up_to_be_sealed_layer_by_layer(
    store: Store, tmp_path: Path, memory: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long sequence no more than that has room in memory."""
    [key] = [store.get(name).summary.id for name in KV_NAMES[:1] if put_all(store, tmp_path)]
    held = local_of(store, KV_NAMES[0]).hold(key)
    assert held
    loads: list[Any] = []
    real = Prefix.load

    def load(self: Prefix, runs: Any, layers: Any, *more: Any, **named: Any) -> Any:
        loads.append(layers)
        return real(self, runs, layers, *more, **named)

    monkeypatch.setattr(Prefix, "load", load)
    monkeypatch.setattr(sealed_room, "_WINDOW_SUMS", 1)
    arena = open_arena("shared", memory)
    assert whole(arena.fill(key, held)) == whole(held)
    loads = [one for one in loads if one is not None]  # the last one was that of `whole`
    numbers = sorted({layer for one in loads for layer in one})
    assert loads == [[number] for number in numbers]
    assert len(numbers) > 1


def test_what_is_no_key_of_ours_is_in_nobodys_way(memory: Path) -> None:
    arena = open_arena("host", memory)
    for name in (".x.partial", ".x.lock", "x.extent"):
        (arena.directory / name).touch()
    arena.sweep()
    arena.make_room(1, frozenset())
    assert (arena.residents(), arena.partials(), arena.coming()) == ([], [], set())


def test_where_holes_are_not_known_all_is_overwritten(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, real = open_arena("host", memory), os.lseek

    def lseek(fd: int, at: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, at, how)

    arena.fill(A, given())
    with next(memory.rglob("*.extent")).open("rb") as file:
        monkeypatch.setattr(os, "lseek", lseek)
        assert arena.remove(A)
        assert not any(os.pread(file.fileno(), 1 << 20, 0))


@pytest.mark.parametrize("tier", ARENAS)
def test_what_is_left_takes_no_room_to_wipe(tier: str, memory: Path) -> None:
    arena = open_arena(tier, memory)
    partial_ = arena.directory / f".{A}.partial"
    with partial_.open("wb") as file:
        file.write(b"secret")
        file.truncate(1 << 28)
    with partial_.open("rb") as file:
        arena.sweep()
        assert file.read(6) == bytes(6)
        assert os.fstat(file.fileno()).st_blocks * 512 <= 1 << 16
    assert left(memory) == []


@pytest.mark.parametrize("tier", ARENAS)
def test_a_stager_killed_while_it_reads_leaves_nothing(tier: str, memory: Path, small_steps: None) -> None:
    class Killed(Faulty):
        def __call__(self, out: Out | None) -> None:
            try:
                super().__call__(out)
            except RuntimeError:
                os.kill(os.getpid(), signal.SIGKILL)

    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            open_arena(tier, memory).fill(A, Met(given(), Killed(RuntimeError(), 1 if tier == "host" else 2)))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    arena = open_arena(tier, memory)
    assert (arena.hold(A), arena.residents(), arena.partials()) == (None, [], [A])
    assert refuses(arena, CAPACITY_BYTES)  # for all it knows it is being staged still
    [partial_] = memory.rglob("*.partial")
    with partial_.open("rb") as file:
        assert any(file.read())
        arena.sweep()
        file.seek(0)
        assert not any(file.read())
    assert left(memory) == []
    assert whole(arena.fill(A, wanted := given())) == wanted.content


# ---- foreign and damaged

Damage = Callable[[bytes, Path], bytes]


def sealed_as(tenant: bytes, memory: Path, key: str = A) -> bytes:
    arena = open_arena("shared", memory / "away", tenant)
    arena.fill(key, given())
    content = (arena.directory / f"{key}.extent").read_bytes()
    arena.remove(key)
    return content


def swapped(content: bytes, first: int, second: int, length: int) -> bytes:
    taken = bytearray(content)
    taken[first : first + length], taken[second : second + length] = (
        content[second : second + length], content[first : first + length],
    )  # fmt: skip
    return bytes(taken)


def swap_sums(content: bytes, _: Path) -> bytes:
    at = content.index(b'"sums"') + len(b'"sums": ["')
    return swapped(content, at, at + 68, 64)


def too_few_sums(content: bytes, memory: Path) -> bytes:
    arena, wanted = open_arena("shared", memory), given()
    seal = arena._seal
    assert seal
    head, _ = parse_head(memory, content, len(content), seal)
    return replace(head, sums=head.sums[:-1]).packed(seal) + wanted.content


def unsigned(content: bytes, memory: Path) -> bytes:
    wanted = given()
    return Head(A, wanted.name, tuple(wanted.spans), THIRD).packed() + wanted.content


def signed_by_nobody(content: bytes, _: Path) -> bytes:
    """Return an extent of which nothing was changed but what its first tensor is."""
    table = content[48 : 48 + int.from_bytes(content[8:16], "little")].replace(b'"U8"', b'"I8"')
    return content[:16] + blake3(table).digest() + table + content[48 + len(table) :]


DAMAGE: dict[str, Damage] = {
    "another tenant's seal": lambda content, memory: sealed_as(OTHERS, memory),
    "another key": lambda content, memory: sealed_as(MINE, memory, B),
    "not sealed at all": unsigned,
    "a table signed by nobody": signed_by_nobody,
    "swapped sums": swap_sums,
    "too few sums": too_few_sums,
    "swapped chunks": lambda content, _: swapped(content, len(content) - THIRD, len(content) - THIRD + 1000, 1000),
    "no byte": lambda content, _: b"",
    "zeros": lambda content, _: bytes(len(content)),
    "cut": lambda content, _: content[:-1],
    "cut in the head": lambda content, _: content[:100],
    "longer": lambda content, _: content + b"x",
    "bytes of another": lambda content, memory: content[:-THIRD] + sealed_as(MINE, memory)[-THIRD:],
}


@SHARED
@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_foreign_or_damaged_is_never_served(how: str, memory: Path, small_steps: None) -> None:
    (memory / "away").mkdir(mode=0o700)
    arena = open_arena("shared", memory)
    arena.fill(A, given())
    extent = arena.directory / f"{A}.extent"
    extent.write_bytes(DAMAGE[how](extent.read_bytes(), memory))
    assert [one.key for one in arena.residents()] == [A]  # so that it can be taken away
    if held := arena.hold(A):
        for at, length in ((0, THIRD), (0, 1), (999, 2), (1500, 1)):
            with pytest.raises(Corrupt):
                part(held, at, length)
        del held
        assert arena.remove(A)
    assert (arena.hold(A), left(arena.directory)) == (None, [])
    assert whole(arena.fill(A, wanted := given())) == wanted.content


@SHARED
def test_one_flipped_bit_anywhere_is_seen(memory: Path, small_steps: None) -> None:
    wanted, arena = given(2500), open_arena("shared", memory)
    arena.fill(A, wanted)
    extent, served = arena.directory / f"{A}.extent", list[int]()
    sound = extent.read_bytes()
    table_stop = 48 + int.from_bytes(sound[8:16], "little")
    for at in [*range(0, table_stop, 3), *range(table_stop, 4096, 199), *range(4096, len(sound), 17)]:
        extent.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
        with contextlib.suppress(Corrupt):
            if held := arena.hold(A):
                assert whole(held) == wanted.content
                served.append(at)
    assert all(table_stop <= at < 4096 for at in served), "only what lies between table and data says nothing"


@SHARED
def test_a_held_extent_that_others_write_to_is_an_error_and_no_other_bytes(memory: Path, small_steps: None) -> None:
    wanted, arena = given(), open_arena("shared", memory)
    held = arena.fill(A, wanted)
    extent = arena.directory / f"{A}.extent"
    with extent.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([wanted.content[-1] ^ 1]))
        file.flush()
        assert part(held, 0, THIRD - 1000) == wanted.content[:-1000]
        for first in (THIRD - 1, 0):
            with pytest.raises(Corrupt):
                part(held, first, THIRD - first)
        for length in (THIRD, 100, 0):
            file.truncate(length)
            with pytest.raises(Corrupt):
                whole(held)


@pytest.mark.parametrize("tier", ARENAS)
def test_one_that_can_not_be_read_is_in_nobodys_way(tier: str, memory: Path) -> None:
    arena = open_arena(tier, memory)
    arena.fill(B, wanted := given(), time.time() + 100)
    (arena.directory / f"{A}.extent").symlink_to("/proc/self/mem")  # whose first byte is an I/O error
    assert {one.key: one.length_bytes for one in arena.residents()} == {A: 0, B: THIRD}
    with pytest.raises(StorageFailed):
        arena.hold(A)
    arena.make_room(CAPACITY_BYTES - THIRD, frozenset())
    held = arena.hold(B)
    assert held
    assert whole(held) == wanted.content
    assert arena.remove(A)
    assert [one.key for one in arena.residents()] == [B]


# ---- gone

Gone = Callable[[Path, Path], None]


def unmounted(mount: Path, _: Path) -> None:
    subprocess.run(["umount", "-l", str(mount)], check=True)


def removed(_: Path, directory: Path) -> None:
    shutil.rmtree(directory)


def only_files_removed(_: Path, directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    (path := tmp_path / "mount").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "arstore-test", str(path)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


@pytest.mark.parametrize("tier", ARENAS)
@pytest.mark.parametrize("how", [unmounted, removed, only_files_removed], ids=lambda one: one.__name__)
def test_a_tier_that_is_gone_has_nothing_or_says_so(tier: str, how: Gone, mount: Path, small_steps: None) -> None:
    arena, wanted = open_arena(tier, mount), given()
    arena.fill(B, given())
    held = arena.fill(A, wanted, time.time() + 100)
    how(mount, arena.directory)
    with contextlib.suppress(StorageFailed, Corrupt):
        assert whole(held) == wanted.content
    acts: list[Callable[[], object]] = [
        lambda: arena.hold(A) is None, lambda: arena.residents() == [], lambda: arena.remove(A), arena.sweep,
        lambda: arena.partials() == [], lambda: arena.make_room(1, frozenset()), lambda: arena.find(A) is False,
    ]  # fmt: skip
    for act in acts:
        with contextlib.suppress(StorageFailed):
            assert act() in (True, None)
    if how is not only_files_removed:
        with pytest.raises(StorageFailed):
            arena.fill(A, wanted)
        with pytest.raises(StorageFailed), arena.filling(A, wait=True):
            pass
    if how is unmounted:
        assert list(mount.iterdir()) == []  # nothing plain on the disk that is under it
        if tier == "shared":
            with pytest.raises(StorageFailed):
                open_arena(tier, mount)


class GoneMeanwhile:
    """A source that lets the tier go in which it is being brought."""

    def __init__(self, source: Held, go: Callable[[], None]) -> None:
        self.name, self.spans, self.length_bytes = source.name, source.spans, source.length_bytes
        self._source, self._go = source, go

    def read(self, at: int, out: Out) -> None:
        self._source.read(at, out)
        if at == 0:
            self._go()


@pytest.mark.parametrize("tier", ARENAS)
@pytest.mark.parametrize("how", [unmounted, removed], ids=lambda one: one.__name__)
def test_a_tier_that_goes_while_it_is_filled_raises(tier: str, how: Gone, mount: Path, small_steps: None) -> None:
    arena = open_arena(tier, mount)
    with pytest.raises(StorageFailed):
        arena.fill(A, GoneMeanwhile(given(), lambda: how(mount, arena.directory)))
    assert (arena.hold(A), arena.residents()) == (None, [])


# ---- from the nearest tier that has it


@SHARED
@pytest.mark.parametrize("fate", [Faulty, Vanishing, "silently"])
@pytest.mark.parametrize("to", TIERS[:1] + TIERS[2:])
def test_it_arrives_whatever_happens_to_the_nearest(
    to: str, fate: object, memory: Path, store: Store, small_steps: None
) -> None:
    """At every operation of the near tier: what comes is right, and what failed is named."""
    store.put(tensors={"w": torch.randn(2500)}, name="m")
    key = store.get("m").summary.id
    local = Local(store.get, lambda key: None)
    near = open_arena("shared", memory)
    truth = local.hold(key)
    assert truth
    content, came = whole(truth), list[str]()
    for at in range(1, 30):
        near.fill(key, truth)
        error = Corrupt("x", "y") if at % 2 else StorageFailed("x", "y")
        met = Faulty(error, at) if fate is Faulty else Vanishing(at, silently=fate == "silently")
        found = Sources([Between(near, met)], local)
        (memory / f"{at}").mkdir()
        target = a_place(to, memory / f"{at}")
        held, source = found.bring(key, target.tier, wait=False)
        assert whole(held) == content
        assert (held.name, tuple(held.spans)) == (truth.name, tuple(truth.spans))
        came.append(source)
        if source == "local" and not (fate == "silently" and at == 1):
            assert set(found.failed) == {"shared"}
        if fate is Faulty and at % 2 and source == "local":
            assert not near.find(key), "what is bad is wiped"
        if source == "shared":
            assert found.failed == {}
            break
    assert came[0] == "local"
    assert came[-1] == "shared"


def test_what_no_tier_has_is_not_found_and_what_local_has_bad_is_an_error(store: Store, memory: Path) -> None:
    host, key = open_arena("host", memory), "0" * 64
    with pytest.raises(NotFound):
        Sources([open_arena("host", memory, OTHERS)], Local(store.get, lambda key: None)).bring(key, host, wait=False)

    class Bad:
        tier = "local"

        def hold(self, key: str, until_s: float = 0.0) -> Held:
            return Met(given(), Faulty(Corrupt("x", "y")))

    with pytest.raises(Corrupt):
        Sources([], Bad()).bring(key, host, wait=False)
    assert host.residents() == []


# ---- the device alone


def test_memory_that_tensors_still_use_counts_until_they_are_gone(small_steps: None) -> None:
    tier = DeviceTier("cpu", CAPACITY_BYTES)
    held = tier.fill(A, given())
    tensor = StagedTensors(held)["f"][5:7]
    del held
    assert tier.remove(A)
    assert (tier.residents(), tier.used_bytes) == ([], THIRD)
    assert refuses(tier, CAPACITY_BYTES - THIRD + 1)
    assert not refuses(tier, CAPACITY_BYTES - THIRD)
    del tensor  # and nothing else keeps it: not the tier, which goes on
    assert tier.used_bytes == 0
    assert not refuses(tier, CAPACITY_BYTES)


def test_what_tensors_use_gives_no_room(small_steps: None) -> None:
    """Without room nothing goes; and what goes is what gives some, whenever its time is over."""
    tier = DeviceTier("cpu", CAPACITY_BYTES)
    tensors = [StagedTensors(tier.fill(key, given()))["f"] for key in (A, B)]
    tier.fill(C, given(), time.time() + 100)
    assert refuses(tier, 2 * THIRD)
    assert [one.key for one in tier.residents()] == [A, B, C]
    tier.make_room(THIRD, frozenset())
    assert [one.key for one in tier.residents()] == [A, B]
    assert refuses(tier, THIRD + 1)
    del tensors[0]
    tier.make_room(2 * THIRD, frozenset())
    tier.fill(D, given(2 * THIRD))
    assert [one.key for one in tier.residents()] == [B, D]
    assert tier.used_bytes == CAPACITY_BYTES


# ---- the shared tier's place


def test_shared_memory_is_a_memory_file_system(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        if path.exists() and path.stat().st_dev == Path("/dev/shm").stat().st_dev:
            pytest.skip("the tests' own directory lies in memory")
        with pytest.raises(StorageFailed):
            open_arena("shared", path)
        assert not list(tmp_path.iterdir())


@SHARED
def test_a_memory_without_a_size_of_its_own_holds_half_of_the_machines(tmp_path: Path) -> None:
    (path := tmp_path / "ramfs").mkdir(mode=0o700)
    words = ["mount", "-t", "ramfs", "arstore-test", str(path)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a ramfs")
    try:
        arena = open_shared(path, STORE_ID, MINE, MINE * 2, None, Disk())
        assert arena.capacity_bytes > 1 << 20
        assert whole(arena.fill(A, wanted := given())) == wanted.content
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
