"""Catalog: the rows of one host in LMDB, the counts kept with them, and the leases.

`tables` opens LMDB and closes every row with a check. `catalog` holds the versions and blobs of one tenant; its
`commit` is the one point at which a put becomes visible. `garbage` surveys the rows of all tenants for a collection.
`leases` says who may publish under a name, `key_slots` which record keys are lent or must be destroyed.

Imports only formats/, keys/ and the ground. Start reading at `catalog`.

Nouns. row: one value in a table. claim: an identity that a version stands for. loan: record keys lent to a running
put. doomed: of a key slot, to be destroyed. condemned: of a blob, seen as garbage by a collection.
"""
