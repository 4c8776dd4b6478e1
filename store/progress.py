"""Progress: how long work tells whoever waits for it how far it is."""

from collections.abc import Callable

# Called from worker threads with the bytes just done and the bytes there are in all.
Progress = Callable[[int, int], None]

# The same where tiers are filled: with the tier, the bytes that just came there, and those that are to come in all.
TierProgress = Callable[[str, int, int], None]

# And of one object: with the bytes that just came.
BytesTold = Callable[[int], object]


def ignore_progress(advance_bytes: int, total_bytes: int) -> None:
    """A `Progress` for where nobody waits."""


def ignore_bytes(length_bytes: int) -> None:
    """A `BytesTold` for where nobody waits."""


def ignore_tiers(tier: str, advance_bytes: int, total_bytes: int) -> None:
    """A `TierProgress` for where nobody waits."""
