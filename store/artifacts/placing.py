"""Placing: where a get writes. The place is checked before anything is read; a finished tree is then moved there.

Invariant: a tree is complete, under the names that it will have, before anything at the destination changes.
"""

import os
from pathlib import Path

from ...formats.manifest import Manifest
from ..disk import Disk, file_name
from ..errors import BadInput, Corrupt, StorageFailed
from ..outputs import Outputs


def place_dest(dest: str | Path, outputs: Outputs) -> Path:
    """Return where a get writes, as an absolute path. A `dest` that ends in a slash is made a directory.

    Raises BadInput if it lies in a store, or if what is there is neither a file nor a directory.
    """
    place = Path(dest).absolute()
    outputs.check_outside(place)
    outputs.check_replaceable(place)
    if str(dest).endswith("/"):
        outputs.disk.make_dirs(place, 0o777)
    return place


def tensors_file(dest: Path, name: str, outputs: Outputs) -> Path:
    """Return the safetensors file that a get of a name writes: `dest`, or a file in it if `dest` is a directory."""
    if dest.is_dir():
        dest = dest / f"{name.rpartition('/')[2]}.safetensors"
        outputs.check_replaceable(dest)
    return dest


def check_tree(manifest: Manifest, dest: Path, outputs: Outputs) -> None:
    """Raise BadInput if something that must stay is where the files and directories of an artifact go.

    Raises Corrupt if the manifest puts something into a directory that it does not name, or into a file.
    """
    known = {"", *(path for path, _ in manifest.directories)}
    for path in (*known, *(file.path for file in manifest.files)):
        if path.rpartition("/")[0] not in known:
            raise Corrupt(path, "lies in no directory of the artifact")
    there = {""} if dest.is_dir() else set[str]()
    for path in sorted(known - {""}):  # a directory comes before what is in it
        if path.rpartition("/")[0] in there and os.path.lexists(folder := dest / file_name(path)):
            _check_folder(folder, outputs)
            there.add(path)
    for file in manifest.files:
        if file.path.rpartition("/")[0] in there:
            _check_file(dest / file_name(file.path), outputs)


def _check_folder(folder: Path, outputs: Outputs) -> None:
    if folder.is_symlink():
        raise BadInput(str(folder), "is a link; files would be written outside the destination")
    if not folder.is_dir():
        raise BadInput(str(folder), "is not a directory")
    outputs.check_outside(folder)
    if os.path.realpath(folder) in outputs.mounts:
        raise BadInput(str(folder), "is a mount of its own; a get writes to one file system")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageFailed(str(folder), "permission denied")


def _check_file(place: Path, outputs: Outputs) -> None:
    if place.is_dir() and not place.is_symlink():
        raise BadInput(str(place), "is a directory; a file goes there")
    outputs.check_replaceable(place)


def move_tree(tree: Path, dest: Path, disk: Disk) -> None:
    """Move a tree to its destination. Directories that are there stay and take in what is new."""
    waiting = [(tree, dest)]
    while waiting:
        source, target = waiting.pop()
        if not os.path.lexists(target) or not source.is_dir():
            disk.rename(source, target)
        else:
            waiting += ((source / name, target / name) for name in os.listdir(source))
