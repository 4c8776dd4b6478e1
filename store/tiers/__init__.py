"""Tiers: places above the local store from which a run reads without waiting."""
