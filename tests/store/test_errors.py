"""Errors: each reads `where: why` in one line, and one that is kept can be raised again as new."""

import errno
import os

import pytest

from arstore.store.errors import BadInput, NoRoom, StoreError, fresh, reason, without_frames


def test_a_message_says_where_and_why_and_the_hint_stands_apart() -> None:
    error = BadInput("--layer 7", "no such layer", hint="see 'arstore show'")
    assert (str(error), error.hint, error.kind) == ("--layer 7: no such layer", "see 'arstore show'", "bad-input")
    assert str(BadInput("", "why")) == "why"


def test_a_kind_has_its_usual_hint_unless_another_is_given() -> None:
    assert NoRoom("disk", "full").hint == NoRoom.usual_hint
    assert NoRoom("disk", "full", hint="buy another").hint == "buy another"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a/path"), "no such file or directory"),
        (OSError("Timed Out"), "timed out"),
        (ValueError("Embedded null byte"), "embedded null byte"),
    ],
)
def test_the_reason_of_the_system_has_no_number_and_no_path(error: OSError | ValueError, why: str) -> None:
    assert reason(error) == why


def test_an_error_that_is_kept_holds_nothing_of_the_calls_that_it_came_through() -> None:
    def fail() -> None:
        try:
            raise OSError("cause")
        except OSError as cause:
            raise NoRoom("disk", "full", hint="free some") from cause

    with pytest.raises(StoreError) as raised:
        fail()
    assert raised.value.__cause__
    kept = without_frames(raised.value)
    assert (kept.__cause__, kept.__context__, kept.__traceback__) == (None, None, None)
    again = fresh(kept)
    assert again is not kept
    assert (type(again), str(again), again.hint) == (NoRoom, "disk: full", "free some")
