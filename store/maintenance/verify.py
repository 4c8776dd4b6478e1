"""Verify: read back what versions need, then store anew what was found bad and a tier has a good copy of."""

from collections.abc import Sequence

from ..parts import Parts
from ..progress import Progress
from ..staging.tenant_tiers import Tiers
from .heal import heal
from .scrub import Pace, Scrubbed, scrub


def verify(parts: Parts, tiers: Tiers, names: Sequence[str], pace: Pace, progress: Progress) -> Scrubbed:
    """Check the named versions, or all, and heal what can be healed; durable on return. See `Store.verify`."""
    versions = [parts.names.resolve(name) for name in names] if names else None
    scrubbed = scrub(parts.read, parts.names, versions, pace, parts.now_s, progress)
    return heal(tiers, parts.put, scrubbed) if scrubbed.corrupt else scrubbed
