"""Tiers: places above the local store from which a run reads without waiting, behind one promise.

`tier` is the promise that every tier keeps; one suite of tests runs over all of them. `local` reads from the store.
`host` and `shared` are arenas in memory, `device` is the memory of an accelerator. `sources` takes an object from the
nearest tier that has it. `probe` measures how fast each tier is. `staged` shows what is held as tensors.

Imports only formats/, artifacts/, kv/ and what these may import. Start reading at `tier`.

Nouns. arena: one directory of a memory file system. extent: one object in it, as one file. sealed: of an extent, with
sums that each reading checks. resident: an object that a tier has. held: a resident object that may not leave now.
"""
