"""Disk: every system call that changes a disk. Tests put a faulty disk in its place.

Invariant: after a failed sync nothing more is written through the same file. The kernel may have dropped the pages
that it could not write, and it reports success the next time.
"""

import contextlib
import errno
import mmap
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import NoRoom, StorageFailed, reason
from .progress import BytesTold, ignore_bytes

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
NO_ROOM = {
    errno.ENOSPC: "free some space, or run 'arstore gc'",
    errno.EDQUOT: "free some space of your quota, or run 'arstore gc'",
    errno.EFBIG: "raise the limit that 'ulimit -f' shows, or use a file system that takes files as large",
}
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turn an OSError inside into NoRoom or StorageFailed that names `where`."""
    try:
        yield
    except OSError as error:
        why = reason(error)
        if error.errno in NO_ROOM:
            raise NoRoom(str(where), why, hint=NO_ROOM[error.errno]) from error
        raise StorageFailed(str(where), why) from error


def file_name(text: str) -> str:
    """Return a stored path as this process must spell it. Names on disk are bytes: UTF-8, whatever the locale is."""
    return os.fsdecode(text.encode())


def name_text(name: str | Path) -> str:
    """Return the text of a path on disk, to be stored; raise UnicodeDecodeError if it is not UTF-8."""
    return os.fsencode(name).decode()


class Disk:
    """The real disk."""

    def make_dirs(self, path: Path, mode: int = 0o700) -> None:
        """Make a directory and its missing parents; durable on return."""
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for made in reversed(missing):
            with disk_errors(made):
                with contextlib.suppress(FileExistsError):  # another process was first
                    os.mkdir(made, mode)
                self.sync_dir(made.parent)

    def make_dir(self, path: Path, mode: int) -> None:
        """Make one new directory; not durable."""
        with disk_errors(path):
            os.mkdir(path, mode)

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        """Open a file for reading and writing and return its descriptor.

        With `direct` reads and writes go past the page cache if the file system can do that. With `create` the file is
        made if it does not exist.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        with disk_errors(path):
            if direct:
                try:
                    return os.open(path, flags | os.O_DIRECT, mode)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            return os.open(path, flags, mode)

    def open_as_allowed(self, path: Path) -> tuple[int, bool]:
        """Open a file for reading and writing, or for reading alone if it may not be written.

        Returns the descriptor, and whether it is for reading alone.
        """
        try:
            return self.open(path), False
        except StorageFailed as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _NOT_WRITABLE:
                raise
        with disk_errors(path):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC), True

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        """Write all of `source` at `offset`; not durable until `sync`."""
        view = memoryview(source)
        with disk_errors("write"):
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written

    def sync(self, fd: int) -> None:
        """Make what was written through `fd` durable."""
        with disk_errors("sync"):
            os.fdatasync(fd)

    def sync_dir(self, path: Path) -> None:
        """Make creations, renames and removals in a directory durable."""
        with disk_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def reserve(self, fd: int, length: int) -> None:
        """Give a new file its length and its room, so that later writes can't fail for lack of room."""
        with disk_errors("reserve"):
            os.posix_fallocate(fd, 0, length)

    def set_time(self, path: Path, modified_s: float) -> None:
        """Set the time at which a file was modified, in seconds since 1970."""
        with disk_errors(path):
            os.utime(path, (modified_s, modified_s))

    def truncate(self, fd: int, length: int) -> None:
        with disk_errors("truncate"):
            os.ftruncate(fd, length)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        """Give a range back to the file system; it reads as zeros. Return False if the file system can't do that."""
        import ctypes  # loaded here because most commands need neither it nor tempfile

        from .libc import libc

        done = libc().fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length))
        if done == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise StorageFailed("punch", os.strerror(code).lower())

    def replace_file(self, path: Path, content: bytes, mode: int = 0o600) -> None:
        """Put `content` at `path` in one step, durable on return. Nobody ever sees a part of it."""
        temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
        with disk_errors(path):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                self.write_at(fd, content, 0)
                self.sync(fd)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(fd)
            self.sync_dir(path.parent)

    def check_output(self, path: Path) -> None:
        """Raise StorageFailed unless `write_output` could write there. A file that is there is not changed."""
        with disk_errors(path):
            target = _target_of(path)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not _is_special(target):
                from tempfile import TemporaryFile

                TemporaryFile(dir=target.parent).close()

    def write_output(self, path: Path, content: bytes) -> None:
        """Write a user's output: in one step to the file that `path` leads to, or into a device or pipe."""
        with disk_errors(path):
            target = _target_of(path)
            if _is_special(target):
                target.write_bytes(content)
            else:
                self.replace_file(target, content, 0o644)

    def write_file_at(self, path: Path, source: bytes | memoryview, offset: int) -> None:
        """Write all of `source` at `offset` of a file, which is made if it does not exist; not durable."""
        fd = self.open(path, create=True)
        try:
            self.write_at(fd, source, offset)
        finally:
            os.close(fd)

    def make_private_dir(self, dest: Path) -> Path:
        """Make an empty directory that nobody else uses. A rename from it to or into `dest` is one step.

        It lies in `dest` if that is a directory, because a directory may be a mount of its own; else beside it.
        """
        parent = dest if dest.is_dir() else dest.parent
        path = parent / f".arstore-{os.urandom(8).hex()}"
        self.make_dirs(parent, 0o777)
        with disk_errors(dest):
            os.mkdir(path, 0o700)
        return path

    def rename(self, source: Path, target: Path) -> None:
        """Put `source` in the place of `target` in one step."""
        with disk_errors(target):
            os.replace(source, target)

    def set_mode(self, path: Path, mode: int) -> None:
        with disk_errors(path):
            os.chmod(path, mode)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole directory. Nothing happens if it does not exist."""
        with disk_errors(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _target_of(path: Path) -> Path:
    return (
        path if _is_special(path) else Path(os.path.realpath(path))
    )  # a link in /proc to a pipe leads to no other path


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def make_buffer(length: int) -> mmap.mmap:
    """Return private zeroed memory, page-aligned, in huge pages if the kernel has them.

    The first touch of 4 KiB pages runs at 2 GB/s, of huge pages at 11. The memory is private, because shared memory,
    Python's default, is slower to touch and counts as the system's shared memory.
    """
    memory = mmap.mmap(-1, max(length, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if length >= 2 << 20:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Bytes of an open file that are filled like memory, part by part; not durable. `told` is called with each length.

    On a memory file system a write costs less than a map, whose pages are zeroed, mapped one by one, and unmapped
    again. If there is no room, a write raises an error, while a map ends the process.
    """

    disk: Disk
    fd: int
    start: int
    stop: int
    told: BytesTold = ignore_bytes

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> "FileSpan":
        first, stop, _ = part.indices(len(self))
        return FileSpan(self.disk, self.fd, self.start + first, self.start + max(first, stop), self.told)

    def __setitem__(self, part: slice, source: bytes | memoryview) -> None:
        """Write all of a part; raise NoRoom, StorageFailed."""
        target = self[part]
        assert len(source) == len(target)
        self.disk.write_at(self.fd, source, target.start)
        self.told(len(source))

    def mapped(self) -> memoryview:
        """Return the span as memory, after making its room. It must start at a page. Raises NoRoom."""
        self.disk.reserve(self.fd, self.stop)
        return memoryview(mmap.mmap(self.fd, len(self), offset=self.start))


# Where bytes are written to: memory, or a part of a file.
Out = memoryview | FileSpan
