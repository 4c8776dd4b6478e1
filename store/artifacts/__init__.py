"""Artifacts: files and tensors become versions, and versions become files and tensors again.

A put goes `inputs` (what the user hands over) -> `cuts` (where blobs begin and end) -> `ingest` (blobs into segments)
-> `put` (one version record, one commit). A get goes `names` (a name to a version) -> `artifact` (its verified bytes)
-> `get` (files on disk).

Imports only formats/, keys/, catalog/, segments/ and the ground. Start reading at `put`.

Nouns. artifact: what a user puts. version: one put under a name. manifest: what a version consists of. ref: NAME or
NAME@VERSION. identity: what an artifact is, before its bytes exist. selection: which tensors a get asks for.
"""
