"""Progress: how long-running work reports how far it is."""

from collections.abc import Callable

# Called from worker threads with the bytes that were just done and the total of bytes.
Progress = Callable[[int, int], None]

# The same for filling tiers: with the tier, the bytes that were just written there, and the total for this tier.
TierProgress = Callable[[str, int, int], None]

# The same for one object: with the bytes that were just written.
BytesTold = Callable[[int], object]


def ignore_progress(advance_bytes: int, total_bytes: int) -> None:
    """Do nothing: the `Progress` of a caller that wants none."""


def ignore_bytes(length_bytes: int) -> None:
    """Do nothing: the `BytesTold` of a caller that wants none."""


def ignore_tiers(tier: str, advance_bytes: int, total_bytes: int) -> None:
    """Do nothing: the `TierProgress` of a caller that wants none."""
