"""Staging: copies objects up into tiers, holds them while a program runs, and wipes them after.

`tenant_tiers` is the face: prefetch, unstage, plan, run. `arenas` opens the tiers of a tenant. `prefetch` stages
artifacts at once. `planned` is a plan with this store's objects. `run` carries it out: one `lane` for each tier moves
objects up while `requests` are served. `command` runs a program that reads staged objects; `attach` finds them in
that program. `serve` hands requests to other processes. `janitor` wipes staged objects even if their stager is killed.

Imports only formats/, artifacts/, kv/, plan/, tiers/ and what these may import. Start reading at `tenant_tiers`.

Nouns. stage: copy an object up into a tier. staged copy: an object in an arena. run: a plan that is being carried out.
step: one request of a run, or one move of the lane above. session: the file that tells a command what is staged for it.
"""
