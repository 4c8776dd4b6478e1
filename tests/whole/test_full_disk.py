"""A store on a full disk is read, and what frees space works there, from space that is set aside."""

import json
import os
import sys
from pathlib import Path

import pytest

from arstore import Store, open_store
from arstore.store.disk import Disk
from arstore.store.errors import NoRoom
from tests.support.command import Ran, cli
from tests.support.elsewhere import OWN_MOUNTS, run_all, with_mounts, works

TMPFS = "mount -t tmpfs -o size=24m none {place}"
EXT4 = "truncate -s 24M {image}; mkfs.ext4 -q -m 0 -F {image}; mount -o loop {image} {place}"
FILL = "for size in 4k 512; do dd if=/dev/zero of={place}/fill$size bs=$size 2>/dev/null || true; done"


def on_full_disk(tmp_path: Path, mount: str, *, failed_put: bool, commands: list[tuple[object, ...]]) -> list[Ran]:
    """Run commands on a small disk that holds a store and nothing else but what fills it up."""
    place, image = tmp_path / "place", tmp_path / "image"
    place.mkdir()
    (tmp_path / "small").write_bytes(bytes(range(256)) * 8000)
    (tmp_path / "large").write_bytes(os.urandom(30 << 20))
    first = [["init"], *[["put", str(tmp_path / "small"), name] for name in ("a", "b", "c", "d")]]
    first += [["put", str(tmp_path / "large"), "e"]] if failed_put else []
    script = f"""
{mount.format(place=place, image=image)}
export ARSTORE_STORE={place}/store
{sys.executable} -m tests.support.elsewhere '{json.dumps(first)}' > {tmp_path}/first
{FILL.format(place=place)}
"""
    ran = run_all(with_mounts(script), commands)
    codes = [code for code, _, _ in json.loads((tmp_path / "first").read_text())]
    assert codes == [0] * 5 + [14] * failed_put
    return ran


@pytest.mark.skipif(not works(*OWN_MOUNTS, "true"), reason="may not mount here")
@pytest.mark.parametrize("failed_put", [False, True])
@pytest.mark.parametrize("mount", [TMPFS, EXT4], ids=["tmpfs", "ext4"])
def test_reading_and_freeing_work(tmp_path: Path, mount: str, failed_put: bool) -> None:
    if mount == EXT4 and not works(*with_mounts(f"{mount.format(place='/mnt', image=tmp_path / 'try')}"), "true"):
        pytest.skip("has no loop device here")
    out = tmp_path / "out"
    commands: list[tuple[object, ...]] = [
        ("ls",), ("get", "a", out), ("verify",), ("stats",), ("kv", "match", "--tokens", "1,2", "--model", "m",
        "--revision", "r", "--precision", "f32"), ("put", tmp_path / "large", "e"), ("get", "b", out), ("rm", "a"),
        ("erase", "b"), ("ls",), ("rm", "c"), ("erase", "d"), ("gc", "--grace", "0s"), ("verify",),
        ("put", tmp_path / "small", "again"), ("get", "again", out), ("ls",),
    ]  # fmt: skip
    ran = on_full_disk(tmp_path, mount, failed_put=failed_put, commands=commands)
    codes = [done.code for done in ran]
    expected = [0] * len(commands)
    expected[4], expected[5] = 3, 14  # nothing is stored of these tokens; there is no room
    assert codes == expected, [done.err for done in ran]
    assert out.read_bytes() == (tmp_path / "small").read_bytes()
    assert "again" in ran[-1].out


def test_an_erase_without_room_for_its_keys_changes_nothing(tmp_path: Path) -> None:
    class Full(Disk):
        full = False

        def reserve(self, fd: int, length: int) -> None:
            if self.full:
                raise NoRoom("reserve", "no space left on device")
            super().reserve(fd, length)

        def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
            if self.full:
                raise NoRoom("write", "no space left on device")
            super().write_at(fd, source, offset)

    (tmp_path / "file").write_text("hello")
    disk = Full()
    assert cli("init").code == 0
    with Store(tmp_path / "store", disk=disk) as store:
        store.put(tmp_path / "file", name="model")
        disk.full = True
        for remove in (store.rm, store.erase):
            with pytest.raises(NoRoom):
                remove("model")
            assert [version.summary.name for version in store.ls()] == ["model"]
            assert store._parts.ledger.doomed() == {}
        disk.full = False
    with open_store() as again:
        assert again.erase("model").blobs_erased == 1
