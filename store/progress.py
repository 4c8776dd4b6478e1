"""Progress: how long work tells whoever waits for it how far it is."""

from collections.abc import Callable

# Called from worker threads with the bytes just done and the bytes there are in all.
Progress = Callable[[int, int], None]
