"""Formats: bytes to values and back. Pure: no file, no clock, no chance. FORMAT.md describes every byte.

`record` and `frames` are what lies in segments. `row_keys`, `catalog` and `lease` are the rows of the catalog.
`keypage` is the key tree. `manifest` says what a version consists of, `identity` what an artifact is. `codec` makes
tensors smaller. `readers/` has the formats that users have on disk.

Imports only formats/ itself. Start reading at `record`.
"""
