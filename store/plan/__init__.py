"""Plan: which object moves when, so that a job finds everything in place.

`job` reads a JOB file, `planner` makes the plan, `planfile` keeps it as JSON. `order` sorts requests, `eviction` picks
what leaves, `recompute` weighs fetching against computing, `simulate` predicts when all happens, `timeline` shows it.

Pure: no store, no tier and no clock is asked; only `job` and `timeline` read a file. Imports only formats/, artifacts/
(how names and identities are written) and the ground. kv/ is beside it, not below. Start reading at `model`.

Nouns. object: what is staged as a whole. request: what a run serves, with the objects it needs. step: one use in a
lane. lane: the moves into one tier, in order. move: one object up, and what it evicts. found: staged before the run.
"""
