"""Every test of staging has a host tier of its own."""

from tests.support.fresh_memory import host

__all__ = ["host"]
