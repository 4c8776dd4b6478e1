"""What can go wrong, as a tree.

    StoreError
      BadInput          what was asked for or handed in can't be used
      NotFound          no such name, version, id or tensor
      NoStore           no store at this place
      Fenced            somebody else owns it
      KeyRefused        the key or tenant does not open it
      Corrupt           bytes are not the bytes that were stored
      NoRoom            the disk or the tenant's quota is full
      Conflict          the name is taken, or a compare-and-swap lost
      StorageFailed     the disk refused (I/O error)

Every message reads `where: why` in one lower-case line; `hint` says what to do and stands on its own line.
"""


class StoreError(Exception):
    """Base of everything the store raises on purpose."""

    kind = "error"
    usual_hint: str | None = None  # where the place that raises has nothing better to say

    def __init__(self, where: str, why: str, *, hint: str | None = None) -> None:
        super().__init__(f"{where}: {why}" if where else why)
        self.where, self.why = where, why
        self.hint = hint or self.usual_hint


class BadInput(StoreError):
    kind = "bad-input"


class NotFound(StoreError):
    kind = "not-found"


class NoStore(StoreError):
    kind = "no-store"


class Fenced(StoreError):
    kind = "fenced"


class KeyRefused(StoreError):
    kind = "key-refused"


class Corrupt(StoreError):
    kind = "corrupt"


class NoRoom(StoreError):
    kind = "no-room"
    usual_hint = "drop what is not needed: 'arstore erase', or 'arstore rm' and then 'arstore gc --grace 0s'"


class Conflict(StoreError):
    kind = "conflict"


class StorageFailed(StoreError):
    kind = "storage-failed"


def reason(error: OSError | ValueError) -> str:
    """Return why a call of the system failed, in lower case, without the number and the path."""
    return str(getattr(error, "strerror", None) or error).lower()


def without_frames(error: StoreError) -> StoreError:
    """Return an error, to be kept, without the calls that it came through: what they met would stay in use."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def fresh(error: StoreError) -> StoreError:
    """Return an error that is kept as one that can be raised: each raising adds calls, and what they met, to it."""
    return type(error)(error.where, error.why, hint=error.hint)
