"""Maintenance: what cron and operators do to a whole store.

`collect` is gc, `retention` says which versions it may drop, `reclaim` gives space back. `erase` destroys keys, with
`shred` for every doomed key. `scrub` is verify, `heal` stores bad blobs anew, `repair` sets a catalog right.
`stats`, `tenants` and `why_miss` answer questions about what is stored.

Imports only the wings below (staging/ and down) and the ground. Start reading at `collect`.

Nouns. survey: one pass over all rows. unneeded: of a blob, needed by no version. receipt: what an erase destroyed.
"""
