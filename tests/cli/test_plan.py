"""`arstore plan`, `arstore tiers` and what `prefetch` makes of their files: the contract, on a real store."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from arstore import BadInput, Store
from arstore.store.config import default_store
from arstore.store.tiers import probe as probe_room
from arstore.store.tiers.speeds import predict_s
from tests.support.command import arstore, cli
from tests.support.fresh_memory import host
from tests.support.planning import IDENTITY, IDENTITY_TABLE, SIZE, job, store

__all__ = ["host", "store"]  # fixtures

KEYS = {"order", "moves", "peak_bytes", "live_peak_bytes", "predicted_seconds", "refetches"}
BLOCK = 256 * 2 * 2 * 2 * 16 * 2  # tokens, layers, sides, heads, dimensions, bytes


def put_kv(store: Store, name: str, tokens: list[int]) -> None:
    torch.manual_seed(len(tokens))
    kv = {f"layers.{n}.{s}": torch.randn(len(tokens), 2, 16).bfloat16() for n in range(2) for s in ("key", "value")}
    store.kv.put(kv, name=name, tokens=tokens, identity=IDENTITY, join=True)


def test_a_plan_says_what_the_contract_promises(store: Store, tmp_path: Path, host: Path) -> None:
    requests: list[dict[str, object]] = [
        {"id": "r1", "artifacts": ["x", "y"]},
        {"id": 2, "artifacts": ["y@1", "z"], "after": ["r1"]},
    ]
    path = job(tmp_path, requests, weights=["base"])
    ran = cli("--json", "plan", path)
    assert ran.code == 0, ran.err
    assert set(ran.json) == KEYS
    assert ran.json["order"] == ["r1", 2]
    assert [move["object"] for move in ran.json["moves"]] == ["base@1", "x@1", "y@1", "z@1"]
    assert ran.json["peak_bytes"] == {"host": 4 * SIZE}
    assert ran.json["live_peak_bytes"] == 3 * SIZE
    assert ran.json["refetches"] == 0
    assert ran.json["predicted_seconds"] == pytest.approx(4 * SIZE / 1e6)
    assert arstore("--json", "plan", path).out == ran.out  # the same to the byte in another process
    assert not list(host.glob("*/*.extent"))
    assert "predicted  0.160 s" in cli("plan", path).out
    path.write_text(path.read_text().replace('to = "host"\n', ""))  # which is the default
    assert cli("--json", "plan", path).out == ran.out
    assert store.tiers.plan(str(path)).predicted_s == ran.json["predicted_seconds"]
    assert cli("plan", path, "--out", tmp_path / "PLAN").code == 0
    assert "a PLAN goes to 'arstore prefetch'" in cli("plan", tmp_path / "PLAN").err


def test_a_budget_makes_it_evict(store: Store, tmp_path: Path) -> None:
    requests = [{"artifacts": [name]} for name in "xyzxyz"]
    plan = cli("--json", "plan", job(tmp_path, requests, f"[budget]\nhost = {2 * SIZE}\n")).json
    assert plan["order"] == [1, 2, 3, 4, 5, 6]
    assert plan["peak_bytes"] == {"host": 2 * SIZE}
    assert plan["live_peak_bytes"] == 3 * SIZE
    assert plan["refetches"] == len(plan["moves"]) - 3 > 0
    sorted_plan = cli("--json", "plan", tmp_path / "JOB.toml", "--order", "prefix").json
    assert sorted_plan["refetches"] == 0
    assert sorted_plan["live_peak_bytes"] == SIZE
    assert sorted(sorted_plan["order"]) == plan["order"]


def test_what_is_staged_does_not_move_again(store: Store, tmp_path: Path) -> None:
    path = job(tmp_path, [{"artifacts": ["x", "y"]}])
    assert cli("prefetch", "x").code == 0
    plan = cli("--json", "plan", path).json
    assert [move["object"] for move in plan["moves"]] == ["y@1"]
    assert plan["predicted_seconds"] == pytest.approx(SIZE / 1e6)


def test_what_lies_there_beyond_the_budget_is_taken_for_gone(store: Store, tmp_path: Path) -> None:
    path = job(tmp_path, [{"artifacts": [name]} for name in "xyz"], f"[budget]\nhost = {2 * SIZE}\n")
    assert cli("prefetch", "x", "y", "z").code == 0
    plan = cli("--json", "plan", path).json
    assert [move["object"] for move in plan["moves"]] == ["z@1"]
    assert plan["peak_bytes"] == {"host": 2 * SIZE}


def test_a_plan_that_was_written_is_what_prefetch_stages(store: Store, tmp_path: Path) -> None:
    path = job(
        tmp_path, [{"artifacts": ["x"]}, {"artifacts": ["y"]}], f"[budget]\nhost = {3 * SIZE}\n", weights=["base"]
    )
    ran = cli("--json", "plan", path, "--out", tmp_path / "PLAN")
    assert set(ran.json) == KEYS
    assert set(json.loads((tmp_path / "PLAN").read_text())) > KEYS
    for file in ("PLAN", "JOB.toml", "PLAN"):  # the second and third time all of it is there
        staged = cli("--json", "prefetch", tmp_path / file)
        assert staged.code == 0, staged.err
        assert {one["name"] for one in staged.json["staged"]} == {"base", "x", "y"}
        assert staged.json["predicted_seconds"] == (3 * SIZE / 1e6 if staged.json["moved_bytes"] else 0)
    assert cli("unstage", "--all").code == 0
    assert cli("prefetch", tmp_path / "PLAN", "--budget", f"{3 * SIZE - 1}B").code == 14  # what is said here counts
    again = cli("prefetch", job(tmp_path, [{"artifacts": ["x", "y"]}], f"[budget]\nhost = {2 * SIZE - 1}\n"))
    assert again.code == 14


def test_of_tokens_what_is_stored_is_fetched_and_the_rest_computed(store: Store, tmp_path: Path) -> None:
    tokens = list(range(640))  # two blocks and a half
    put_kv(store, "kv", tokens[:512])
    more = f"{IDENTITY_TABLE}[recompute]\ntokens_per_second = 100\n"
    plan = cli("--json", "plan", job(tmp_path, [{"id": "a", "tokens": tokens}], more)).json
    assert [move["recompute"] for move in plan["moves"]] == [False, False, True]
    assert plan["peak_bytes"] == {"host": 2 * BLOCK + BLOCK // 2}
    assert plan["predicted_seconds"] == pytest.approx(2 * BLOCK / 1e6 + 128 / 100)
    ran = cli("plan", job(tmp_path, [{"id": "a", "tokens": tokens}], IDENTITY_TABLE))
    assert ran.code == 2
    assert "request a: 128 of its 640 tokens are not stored" in ran.err
    ran = cli("plan", job(tmp_path, [{"id": "a", "tokens": tokens}]))
    assert ran.code == 2
    assert "[identity]" in ran.err
    # Under another identity nothing of it is stored, and nobody knows how large it is.
    other = more.replace('"m"', '"n"')
    ran = cli("plan", job(tmp_path, [{"id": "a", "tokens": tokens}], other))
    assert ran.code == 2
    assert "block_bytes" in ran.err
    plan = cli("--json", "plan", job(tmp_path, [{"id": "a", "tokens": tokens}], other, block_bytes=BLOCK)).json
    assert [move["recompute"] for move in plan["moves"]] == [True, True, True]
    assert cli("--json", "prefetch", tmp_path / "JOB.toml").json["staged"] == []
    # Without a rate nothing can be computed, so what is not stored can't be had.
    ran = cli("plan", job(tmp_path, [{"id": "a", "tokens": tokens}], IDENTITY_TABLE))
    assert ran.code == 2, ran.out


def test_shared_prefixes_are_one_object(store: Store, tmp_path: Path) -> None:
    head = list(range(512))
    put_kv(store, "a", [*head, *range(5000, 5256)])
    put_kv(store, "b", [*head, *range(6000, 6256)])
    requests = [{"tokens": [*head, *range(n, n + 256)]} for n in (5000, 6000)]
    plan = cli("--json", "plan", job(tmp_path, requests, IDENTITY_TABLE)).json
    assert len(plan["moves"]) == len({move["object"] for move in plan["moves"]}) == 4
    assert plan["peak_bytes"] == {"host": 4 * BLOCK}
    out = cli("plan", tmp_path / "JOB.toml", "--out", tmp_path / "PLAN")
    assert out.code == 0
    ran = cli("--json", "prefetch", tmp_path / "PLAN")
    assert [one["bytes"] for one in ran.json["staged"]] == [BLOCK] * 4
    assert cli("--json", "prefetch", tmp_path / "JOB.toml").json["moved_bytes"] == 0


def test_hash_ids_need_nothing_stored(store: Store, tmp_path: Path) -> None:
    requests = [{"hash_ids": [1, 2, 3]}, {"hash_ids": [1, 2, 4]}]
    plan = cli("--json", "plan", job(tmp_path, requests, block_bytes="1MiB")).json
    assert [move["object"] for move in plan["moves"]] == [f"block {n}" for n in range(1, 5)]
    assert plan["peak_bytes"] == {"host": 4 << 20}
    ran = cli("prefetch", tmp_path / "JOB.toml")  # but then nothing can be staged
    assert ran.code == 2
    assert "block 1" in ran.error


WRONG = [
    ("nothing there", None, {}, "", 3),
    ("no such artifact", [{"artifacts": ["nobody"]}], {}, "", 3),
    ("no such version", [{"artifacts": ["x@9"]}], {}, "", 3),
    ("no such weights", None, {"weights": ["nobody"]}, "", 3),
    ("a tier that is none", [{"artifacts": ["x"]}], {"to": "moon"}, "", 2),
    ("an unknown field", [{"artifacts": ["x"]}], {"speed": 1}, "", 2),
    ("an unknown table", [{"artifacts": ["x"]}], {}, "[more]\n", 2),
    ("a request of nothing", [{"id": 1}], {}, "", 2),
    ("a cycle", [{"id": 1, "artifacts": ["x"], "after": [2]}, {"id": 2, "artifacts": ["x"], "after": [1]}], {}, "", 2),
    ("tokens of no identity", [{"tokens": [1, 2]}], {}, "", 2),
    ("an identity that lacks a field", [{"tokens": [1, 2]}], {}, '[identity]\nmodel = "m"\n', 2),
    ("an identity that is no text", [{"artifacts": ["x"]}], {}, "[identity]\nmodel = 1979-05-27\n", 2),
    ("an identity field that is none", [{"tokens": [1, 2]}], {}, IDENTITY_TABLE + 'colour = "red"\n', 2),
    ("a name that is none", [{"artifacts": ["a b"]}], {}, "", 2),
    ("more than the budget", [{"artifacts": ["x", "y"]}], {}, f"[budget]\nhost = {2 * SIZE - 1}\n", 14),
    ("weights above the budget", None, {"weights": ["x", "y"]}, f"[budget]\nhost = {2 * SIZE - 1}\n", 14),
]


@pytest.mark.parametrize(("requests", "fields", "more", "code"), [one[1:] for one in WRONG], ids=[o[0] for o in WRONG])
def test_what_is_wrong_is_said_in_one_line(
    store: Store,
    tmp_path: Path,
    requests: Sequence[Mapping[str, object]],
    fields: dict[str, object],
    more: str,
    code: int,
) -> None:
    path = job(tmp_path, requests, more, **fields) if requests or fields else tmp_path / "absent.toml"
    ran = cli("--json", "plan", path, "--out", tmp_path / "PLAN")
    assert (ran.code, ran.json["error"]["exit_code"]) == (code, code)
    assert ran.error.startswith("arstore: error: plan: ")
    assert not (tmp_path / "PLAN").exists()


def test_a_file_that_is_neither_job_nor_plan(store: Store, tmp_path: Path) -> None:
    path = job(tmp_path, [{"artifacts": ["x"]}])
    assert cli("plan", path, "--order", "random").code == 2
    assert cli("plan", path, "--to", "shared").code == 2
    assert cli("plan", path, "--out", tmp_path / "no/such/PLAN").code == 1
    assert cli("plan", path, "--out", tmp_path / "PLAN").code == 0
    value = json.loads((tmp_path / "PLAN").read_text())
    for bad in ("{", "{}", "[]", "\0", json.dumps({**value, "refetches": 1}), json.dumps({**value, "moves": []})):
        (tmp_path / "bad").write_text(bad)
        ran = cli("prefetch", tmp_path / "bad")
        assert ran.code == 2, bad
        assert ran.error
    identity = json.dumps({**value, "identity": IDENTITY}).replace
    for bad, code in (
        (json.dumps(value).replace("x@1", "gone@1"), 3), (json.dumps(value).replace("x@1", "x@label"), 3),
        (identity("x@1", "block zz"), 2),
        (json.dumps(value).replace('"host"', '"device"'), 2),
    ):  # fmt: skip
        (tmp_path / "bad").write_text(bad)
        ran = arstore("prefetch", tmp_path / "bad", "--", "true")
        assert ran.code == code, ran.err
        assert ran.error
    with pytest.raises(BadInput):
        store.prefetch(["x"], to="gpu")


def test_tiers_are_shown_and_measured(store: Store, tmp_path: Path, host: Path) -> None:
    assert cli("prefetch", "x").code == 0
    (default_store() / "tiers.json").unlink()
    found = cli("--json", "tiers").json["tiers"]
    keys = {"tier", "path", "capacity_bytes", "used_bytes", "bytes_per_second", "latency_seconds", "measured", "state"}
    assert [(one["tier"], set(one) >= keys) for one in found] == [(name, True) for name in ("device", "host", "local")]
    assert [one["bytes_per_second"] for one in found] == [None, None, None]
    assert found[1]["used_bytes"] == SIZE
    assert found[1]["path"].startswith(str(host))
    assert 0 < found[2]["used_bytes"] < found[2]["capacity_bytes"]
    assert "not measured" in cli("tiers").out
    probed = cli("--json", "tiers", "--probe").json["tiers"]
    assert all(one["bytes_per_second"] > 1e6 and one["latency_seconds"] >= 0 for one in probed)
    kept = cli("--json", "tiers").json["tiers"]
    assert [one["bytes_per_second"] for one in kept] == [one["bytes_per_second"] for one in probed]
    names = [path.name for folder in (default_store(), host) for path in folder.rglob("*")]
    assert not [name for name in names if "probe" in name]
    (default_store() / "tiers.json").write_text("[]")  # what can't be read was never measured
    assert cli("--json", "tiers").json["tiers"][0]["bytes_per_second"] is None


def test_what_is_on_the_way_up_bounds_the_prediction(store: Store) -> None:
    speeds = {"local": 4e6, "host": 1e6, "device": 2e6}
    rows = {
        tier: {"bytes_per_s": s, "latency_s": 0.0, "measured": "2026-01-01T00:00:00Z"} for tier, s in speeds.items()
    }
    (default_store() / "tiers.json").write_text(json.dumps(rows))
    assert (
        predict_s(store.tiers.arenas.speeds(), "host", 10**6)
        == predict_s(store.tiers.arenas.speeds(), "device:cpu", 10**6)
        == 1.0
    )
    assert predict_s(store.tiers.arenas.speeds(), "shared", 10**6) is None  # never measured


def test_two_probes_at_once_are_in_nobodys_way(store: Store, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_room, "_BYTES", 32 << 20)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(store.tiers.arenas.probe) for _ in range(2)]
        assert all(one.result().keys() >= {"local", "host"} for one in found)
    assert not [path for path in host.rglob("*") if path.is_file()]
