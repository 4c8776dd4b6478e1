"""The store, in wings. Imports run down: a wing uses the wings below it, never one above.

engines       adapters for real engines
access store  open, create, rebuild; the face: one method a verb
maintenance   what cron and operators do
staging       brought up, held, wiped
tiers         places above the local store
kv  plan      prefix KV; a job in, moves out
parts init    the mechanisms of one open store; make a store
artifacts     files and tensors in, and back
segments      bytes on disk, sealed and checked
catalog       LMDB: rows, counts, leases
keys          secrets to record keys, and how they are destroyed
disk locks config errors libc progress quantities user_file workers      the ground

DESIGN.md here says how the protocols work. Start reading at `store.py`.
"""
