"""Staging: objects brought up into tiers, held while a program runs, and wiped after.

`tenant_tiers` is the face: prefetch, unstage, probe, plan, run. `prefetch` stages artifacts at once. `run` carries out
a plan: one `lane` for each tier moves objects up while `requests` are served. `command` runs a program over what is
staged, `attach` finds it in there, `serve` hands requests to other processes, `janitor` wipes when a stager was killed.

Imports only formats/, artifacts/, kv/, plan/, tiers/ and what these may import. Start reading at `tenant_tiers`.

Nouns. stage: to copy an object up into a tier. run: a plan that is being carried out. session: what one command finds.
"""
