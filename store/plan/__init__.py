"""Plan: which object moves when, so that a job finds everything in place.

`job` reads a JOB file, `planner` makes the plan, `planfile` keeps it as JSON. `order` sorts requests, `eviction` picks
what leaves, `recompute` chooses between fetching and computing, `simulate` predicts when all happens, `timeline` shows
it.

Pure: no store, no tier and no clock is asked. Only `job` and `planfile` read files. Imports only formats/, artifacts/
(how names and identities are written) and the ground. kv/ is beside it, not below. Start reading at `model`.

Nouns. object: what is staged as a whole. request: what a run serves, with the objects that it needs. step: one use that
a lane works for. lane: all moves into one tier, in order. move: one object into one tier, and what is evicted for it.
found: held by a tier before the run.
"""
