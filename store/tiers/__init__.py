"""Tiers: places above the local store from which a run reads without waiting. All of them keep one promise.

`tier` is that promise; one suite of tests runs over every tier. `local` reads from the store. `host` and `shared` are
arenas in memory. `device` is the memory of an accelerator. `sources` takes an object from the nearest tier that has it.
`probe` measures how fast each tier is; `speeds` keeps that. `staged` shows a held object as tensors.

Imports only formats/, artifacts/, kv/ and what these may import. Start reading at `tier`.

Nouns. arena: one directory of a memory file system. extent: one object in it, as one file. sealed extent: an extent
with sums that every reading checks. resident: an object that a tier has. held: a resident that may not leave now.
"""
