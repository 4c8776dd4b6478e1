"""Errors: what the store raises, as a tree.

    StoreError
      BadInput          an argument or an input can't be used
      NotFound          no such name, version, id or tensor
      NoStore           no store at this place
      Fenced            another process owns it
      KeyRefused        the key or tenant does not open the store
      Corrupt           bytes differ from those that were stored
      NoRoom            the disk or the tenant's quota is full
      Conflict          the name is taken, or a compare-and-swap lost
      ReadOnly          the store may not be written
      StorageFailed     the disk refused (I/O error)

Every message reads `where: why` in one lower-case line; `hint` says what to do and stands on its own line.
"""


class StoreError(Exception):
    """Base of everything the store raises on purpose."""

    kind = "error"
    usual_hint: str | None = None  # given if the place that raises gives no hint

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


class ReadOnly(StoreError):
    kind = "read-only"
    usual_hint = "reading works; to write, open it without --read-only where its files may be written"


class StorageFailed(StoreError):
    kind = "storage-failed"


def reason(error: OSError | ValueError) -> str:
    """Return why a call of the system failed, in lower case, without the number and the path."""
    return str(getattr(error, "strerror", None) or error).lower()


def without_frames(error: StoreError) -> StoreError:
    """Return an error without its traceback, so that it can be kept. The calls in it would keep their memory in use."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def fresh(error: StoreError) -> StoreError:
    """Return a copy of a kept error to raise, because each raise adds calls, and their memory, to the error."""
    return type(error)(error.where, error.why, hint=error.hint)
