"""Prefix KV against a dict of sequences, through whatever hypothesis thinks of.

Sequences are few and begin alike, and each has been computed in two runs; what the dict holds is which versions claim
which block, and with which bytes. The longest match is the model's, and rows of identities are those of live versions.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from arstore import Conflict, Store, create_store, open_store
from arstore.formats.identity import KeyId
from arstore.store.access import rebuild_catalog
from arstore.store.kv.identity import complete, make_kv_identity
from arstore.store.kv.match import Chain, chain_of
from arstore.store.kv.tokens import pack_tokens
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.maintenance.retention import Retention
from tests.support.fresh_memory import fresh_memory
from tests.support.kv_made import made, raw

BLOCK = 3
NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Version:
    """A sequence, the run that each of its blocks is of, and how many of its claims, the root's first, count."""

    model: str
    tokens: tuple[int, ...]
    runs: tuple[int, ...]
    taken: int

    def claims(self, machine: "Machine") -> list[tuple[KeyId, int]]:
        chain = machine.chain(self.model, self.tokens)
        return [(chain.root, -1), *zip(chain.blocks, self.runs, strict=True)]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cleaning = ExitStack()
        self.path = self.cleaning.enter_context(fresh_memory())  # syncs are not the point
        create_store(self.path / "store", key_file=self.path / "key")
        self.versions: dict[tuple[str, int], Version] = {}
        self.last = dict.fromkeys(NAMES, 0)
        self.rows: dict[KeyId, tuple[int, int]] = {}  # id -> the run it stands for, versions that claim it
        self.store = self.opened()

    def opened(self) -> Store:
        return open_store(self.path / "store", key_file=self.path / "key")

    def teardown(self) -> None:
        self.store.close()
        self.cleaning.close()

    # ---- what is done

    models = st.sampled_from(["m", "m", "m", "n"])
    sequences = st.sampled_from([(0,), (0, 0), (0,) * 6, (0,) * 7, (0, 0, 0, 1, 0), (0,) * 9 + (1,), (1, 0, 0)])
    names = st.sampled_from(NAMES)

    @rule(name=names, model=models, tokens=sequences, run=st.sampled_from([0, 1]), join=st.booleans())
    def put(self, name: str, model: str, tokens: tuple[int, ...], run: int, join: bool) -> None:
        chain = self.chain(model, tokens)
        runs = [self.rows[one][0] for one in chain.blocks[: self.matched(chain)]] if join else []
        runs += [run] * (len(chain.blocks) - len(runs))
        kv = made(tokens, layers=1, heads=1, dim=4, salt=run)
        conflict = False
        try:
            self.store.kv.put(kv, name=name, tokens=tokens, identity=self.identity(model), join=join)
        except Conflict:
            conflict = True
        self.came(name, Version(model, tokens, tuple(runs), 0))
        new = self.versions[name, self.last[name]]
        assert conflict == (new.taken < 1 + len(runs))

    @rule(name=names, model=models, tokens=sequences, first=st.sampled_from([0, 1]))
    def quarrel(self, name: str, model: str, tokens: tuple[int, ...], first: int) -> None:
        """Two runs of a sequence: once the first is gone, whoever comes with the bytes of the second is first."""
        self.put(name, model, tokens, first, False)
        self.put(name, model, tokens, 1 - first, False)

    @precondition(lambda self: self.versions)
    @rule(chosen=st.data(), new=names)
    def tag(self, chosen: st.DataObject, new: str) -> None:
        one = self.choose(chosen)
        newest = max((other for other in self.versions if other[0] == new), default=None)
        self.store.tag(f"{one[0]}@{one[1]}", new)
        same = [(v.model, v.tokens, v.runs) for v in (self.versions[n] for n in (newest or one, one))]
        if newest is None or same[0] != same[1]:
            self.came(new, self.versions[one])

    @precondition(lambda self: self.versions)
    @rule(chosen=st.data(), erase=st.booleans())
    def drop(self, chosen: st.DataObject, erase: bool) -> None:
        one = self.choose(chosen)
        (self.store.erase if erase else self.store.rm)(f"{one[0]}@{one[1]}")
        self.went(one)
        if erase and not any(name == one[0] for name, _ in self.versions):
            self.last[one[0]] = 0

    @rule(keep=st.sampled_from([None, 1, 3]))
    def gc(self, keep: int | None) -> None:
        self.store.gc(AT_ONCE, Retention(keep_last=keep))
        for name in NAMES if keep else ():
            for one in sorted((one for one in self.versions if one[0] == name), reverse=True)[keep:]:
                self.went(one)

    @precondition(lambda self: all(one.taken == 1 + len(one.runs) for one in self.versions.values()))
    @rule()
    def repair(self) -> None:
        """Where versions disagree, a repair may take the counts in another order."""
        assert self.store.repair().corrected == 0
        self.store.close()
        rebuild_catalog(self.path / "store", key_file=self.path / "key")
        self.store = self.opened()
        self.last = {name: max((n for one, n in self.versions if one == name), default=0) for name in NAMES}

    @rule(model=models, tokens=sequences)
    def match(self, model: str, tokens: tuple[int, ...]) -> None:
        hit = self.store.longest_prefix(tokens, self.identity(model))
        chain = self.chain(model, tokens)
        blocks = self.matched(chain)
        assert (hit.blocks_count, hit.tokens_count) == (blocks, min(blocks * BLOCK, len(tokens)))
        if not hit:
            return
        runs = [made(tokens, layers=1, heads=1, dim=4, salt=run) for run in (0, 1)]
        read = hit.tensors()
        for number, id_ in enumerate(chain.blocks[:blocks]):
            part = slice(number * BLOCK, min((number + 1) * BLOCK, len(tokens)))
            wanted = runs[self.rows[id_][0]]
            assert raw({name: one[part] for name, one in read.items()}) == raw(
                {name: one[part] for name, one in wanted.items()}
            )

    # ---- what must hold

    @invariant()
    def rows_are_those_of_live_versions(self) -> None:
        catalog = self.store._parts.catalog
        with catalog.tables.reading() as rows:
            found = {key: int.from_bytes(value[:4], "little") for key, value in rows.scan("identities", b"")}
        assert found == {catalog.keys.identity(id_): refs for id_, (_, refs) in self.rows.items()}

    # ---- how it is done

    def identity(self, model: str) -> dict[str, object]:
        return {"model": model, "revision": "r", "precision": "fp16", "block_tokens": BLOCK}

    def chain(self, model: str, tokens: Sequence[int]) -> Chain:
        identity = complete(make_kv_identity(self.identity(model)))
        return chain_of(self.store._parts.keys.tenant.digest_key, identity, pack_tokens(tokens), BLOCK)

    def matched(self, chain: Chain) -> int:
        """How many blocks of a sequence are stored, found one after the other."""
        return next((n for n, id_ in enumerate(chain.blocks) if id_ not in self.rows), len(chain.blocks))

    def came(self, name: str, new: Version) -> None:
        taken = 0
        for id_, run in new.claims(self):
            stood, refs = self.rows.get(id_, (run, 0))
            if stood != run:
                break
            self.rows[id_] = run, refs + 1
            taken += 1
        self.last[name] += 1
        self.versions[name, self.last[name]] = Version(new.model, new.tokens, new.runs, taken)

    def went(self, one: tuple[str, int]) -> None:
        gone = self.versions.pop(one)
        for id_, _ in gone.claims(self)[: gone.taken]:
            run, refs = self.rows.pop(id_)
            if refs > 1:
                self.rows[id_] = run, refs - 1

    def choose(self, chosen: st.DataObject) -> tuple[str, int]:
        return chosen.draw(st.sampled_from(sorted(self.versions)))


QUICK = settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=300, stateful_step_count=60)


def test_prefixes_are_a_dict_of_sequences() -> None:
    run_state_machine_as_test(Machine, settings=QUICK)


@pytest.mark.slow
def test_prefixes_are_a_dict_of_sequences_for_long() -> None:
    run_state_machine_as_test(Machine, settings=LONG)
