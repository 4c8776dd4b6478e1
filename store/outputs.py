"""Outputs: where a user's output may go: never to a device, a mount or a key file, and never into a store."""

import os
import re
import stat
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from .config import CATALOG_DIR, CONFIG_NAME, KEYS_DIR, SEGMENTS_DIR, Config, setting
from .disk import Disk, name_text
from .errors import BadInput

# What a file is, whichever path leads to it: the numbers of its device and of its inode.
_Inode: TypeAlias = tuple[int, int]

_KINDS = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# A stream takes a report as it comes. A disk would be overwritten from its first byte on; a socket can't be opened.
_STREAMS = (stat.S_IFCHR, stat.S_IFIFO)


class Outputs:
    """Checks where the output of one store's user goes, before anything is written; `disk` is what then writes it."""

    def __init__(self, root: Path, config: Config, disk: Disk) -> None:
        self.disk, self._root, self._config = disk, root, config

    def check_outside(self, path: Path) -> None:
        """Raise BadInput if `path` lies in this store or in another one."""
        if lies_in_store(path, self._own):
            raise BadInput(str(path), "lies in a store; nothing else is written there", hint="name a place outside")

    def check_replaceable(self, place: Path) -> None:
        """Raise BadInput unless nothing is lost if a file is renamed to `place`.

        What stands there must be a file or a link to a file or directory. The kind of a directory is not checked.
        """
        kind = _kind(place)
        if kind in _KINDS:
            raise BadInput(str(place), f"is {_KINDS[kind]}; only a file is replaced", hint="name a new file")
        if place.is_symlink() and _on_proc(place.parent / place.readlink()):
            raise BadInput(str(place), "stands for an open file; it is not replaced", hint="name a new file")
        if kind == stat.S_IFREG and _inode(place) in self._own:
            raise BadInput(str(place), "the store needs this file to open", hint="name a new file")
        if kind == stat.S_IFREG and os.path.realpath(place) in self.mounts:
            raise BadInput(str(place), "is a mount of its own; it can't be replaced", hint="name a new file")

    def check_report(self, path: Path) -> None:
        """Raise BadInput or StorageFailed unless `Disk.write_output` may write a report to `path`.

        A report follows links. It goes into a device or a pipe as into any program's standard output.
        """
        if (kind := _kind(path)) not in _STREAMS:
            target = Path(os.path.realpath(path))
            if kind in _KINDS:
                raise BadInput(str(path), f"is {_KINDS[kind]}; a report goes to a file, a terminal or a pipe")
            self.check_outside(target)
            self.check_replaceable(target)
        self.disk.check_output(path)

    @cached_property
    def mounts(self) -> frozenset[str]:
        """What other file systems, directories and files are mounted on."""
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
                places = [line.split(" ")[4] for line in lines]
        except OSError:
            return frozenset()
        return frozenset(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place) for place in places)

    @cached_property
    def _own(self) -> set[_Inode]:
        """The directories of this store, which may be mounted elsewhere, and the files that it needs to open."""
        given = (self._config.key_file, self._config.root_file, setting("key_file"), setting("passphrase_file"))
        files = [Path(path) for path in given if path]
        directories = [self._root / name for name in ("", KEYS_DIR, SEGMENTS_DIR, CATALOG_DIR)]
        return {inode for path in (*directories, *files) if (inode := _inode(path))}


def lies_in_store(path: Path, own: Collection[_Inode] = ()) -> bool:
    """Say whether a path, with its links resolved, is a store, lies in one, or in a directory of `own`."""
    place = Path(os.path.realpath(path))
    return any(is_store(above) or _inode(above) in own for above in (place, *place.parents) if above.is_dir())


def check_key_place(path: Path, root: Path) -> None:
    """Raise BadInput if a key file or root file would lie in the store at `root`, or in another one."""
    if lies_in_store(path, {inode for name in ("", KEYS_DIR) if (inode := _inode(root / name))}):
        raise BadInput(str(path), "a key file inside the store protects nothing; keep it elsewhere")
    try:
        name_text(path)
    except UnicodeDecodeError:
        raise BadInput(ascii(str(path)), "the path of a key file must be UTF-8: the store keeps it") from None


def is_store(directory: Path) -> bool:
    """Say whether a directory is a store, of any format, damaged or not."""
    return all(os.path.exists(directory / name) for name in (CONFIG_NAME, KEYS_DIR, SEGMENTS_DIR))


def _kind(path: Path) -> int:
    """Return what a path leads to, as `stat` has it; 0 if that is nothing."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return 0


def _inode(path: Path) -> _Inode | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _on_proc(path: Path) -> bool:
    try:
        return os.stat(path.parent).st_dev == os.stat("/proc").st_dev
    except OSError:
        return False
