"""Catalog: the rows of one host in LMDB, the counts kept with them, and the leases.

`tables` opens LMDB and adds a check to every row. `catalog` holds the versions and blobs of one tenant. Its `commit` is
the one point at which a put becomes visible, and `changes` says what that transaction does. `garbage` surveys the rows
of all tenants for a collection. `leases` says who may publish under a name. `key_slots` says which record keys are lent
or must be destroyed.

Imports only formats/, keys/ and the ground. Start reading at `catalog`.

Nouns. row: one value in a table. need: a version that refers to a blob. claim: an identity that a version stands for.
loan: record keys lent to a running put. doomed: of a key slot, to be destroyed. condemned: of a blob, seen as garbage
by a collection. mark: a count of something that ended processes left to be cleared away.
"""
