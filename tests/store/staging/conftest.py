"""Every test of staging has a host tier of its own."""

from tests.support.staging import host

__all__ = ["host"]
