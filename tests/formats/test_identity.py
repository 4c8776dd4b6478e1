"""Identities: every field tells two apart, and ids are the same in every process."""

import json
import os
import random
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from arstore.formats.identity import FIELDS, PROVENANCE, chain_blocks, key_id, make_identity

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]
from tests.support.identities import BASE, TOKENS, VALUES, is_counted, variants

KEY = bytes(range(32))


def test_every_field_tells_identities_apart() -> None:
    assert VALUES.keys() == FIELDS.keys()
    strict = [{**one, "strict": True} for one in variants()]
    every = [BASE, *(one for one in variants() if is_counted(one)), *strict]
    identities = {make_identity(one) for one in every}
    ids = {key_id(KEY, kind, identity) for identity in identities for kind in ("kv", "intermediate")}
    assert len(identities) == 1 + 2 * len(FIELDS) - 1 - 2 * len(PROVENANCE) + (2 * len(FIELDS) - 2)
    assert len(ids) == 2 * len(identities)


def test_provenance_counts_only_where_it_is_asked_for() -> None:
    for name in PROVENANCE:
        loose = {key_id(KEY, "kv", make_identity({**BASE, name: value})) for value in (None, *VALUES[name])}
        strict = {
            key_id(KEY, "kv", make_identity({**BASE, "strict": "yes", name: value})) for value in (None, *VALUES[name])
        }
        assert loose == {key_id(KEY, "kv", make_identity(BASE))}
        assert len(strict | loose) == 4


COMPUTE = """
import json, struct, sys
from arstore.formats.identity import chain_blocks, key_id, make_identity
key, tokens = bytes(range(32)), memoryview(struct.pack("<10I", *json.loads(sys.argv[1])))
for fields in json.load(sys.stdin):
    root = key_id(key, "kv", make_identity(fields))
    print(root.hex(), *(id_.hex() for id_ in chain_blocks(key, root, tokens, 4)))
"""


def test_ids_are_the_same_in_every_process() -> None:
    """Whatever seeds Python's own hashes, and in whatever order the fields are given."""
    every = [{**one, "strict": True} for one in variants()]
    every.append({name: values[0] for name, values in VALUES.items()})
    found = []
    for seed in ("0", "1", "4242"):
        shuffled = [dict(random.Random(seed).sample(sorted(one.items()), len(one))) for one in every]
        done = subprocess.run(
            [sys.executable, "-c", COMPUTE, json.dumps(TOKENS)], input=json.dumps(shuffled), text=True,
            capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        found.append(done.stdout.splitlines())
    packed = memoryview(struct.pack("<10I", *TOKENS))
    here = []
    for one in every:
        root = key_id(KEY, "kv", make_identity(one))
        here.append(" ".join(id_.hex() for id_ in (root, *chain_blocks(KEY, root, packed, 4))))
    assert found == [here] * 3
    assert len(set(here)) == len({make_identity(one) for one in every})
