"""Bytes to values and back: no I/O, no clock, no randomness. FORMAT.md is the specification."""
