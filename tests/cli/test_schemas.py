"""The JSON Schemas in docs/schemas: one a command, strict, and true of what the commands print.

Each scenario below runs real commands in a store of its own, and checks each JSON object that they print. What a
scenario says of the commands that it covers is checked, too, so that no schema is left without an output.
"""

import json
import os
import runpy
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from arstore import open_store
from arstore.formats.identity import FIELDS
from arstore.formats.manifest import KINDS
from arstore.store.staging.arenas import UPWARD
from arstore.store.tiers import probe as probe_room
from tests.support.command import Ran, arstore, cli, stopped
from tests.support.kv_made import FLAGS, IDENTITY, made

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "schemas"
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "commands"))
SCHEMAS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text("utf-8")) for path in FOLDER.iterdir()}
COMMANDS = [" ".join(words) for words, _ in SCRIPT["commands"]()]
WITH_JSON = [command for command in COMMANDS if command not in SCRIPT["NO_JSON"]]


def schema_of(command: str) -> dict[str, Any]:
    name = command.replace(" ", "-")
    assert name in SCHEMAS, f"'arstore {command}' has --json, and docs/schemas/{name}.json is missing"
    return SCHEMAS[name]


def check(schema: dict[str, Any], value: object) -> None:
    """Fail if a value breaks a schema, and say all that it breaks."""
    broken = [f"{one.json_path}: {one.message}" for one in jsonschema.Draft202012Validator(schema).iter_errors(value)]
    assert not broken, "\n  ".join([schema["title"], *broken, json.dumps(value)])


@dataclass(slots=True)
class Outputs:
    """The commands that a scenario ran, and what it works with. `objects` are the JSON objects that were checked."""

    path: Path
    host: Path
    patch: pytest.MonkeyPatch
    objects: list[tuple[str, Any]] = field(default_factory=list)

    def run(self, command: str, *words: object, code: int = 0, run: Callable[..., Ran] = cli) -> Any:
        """Run a command with --json, check the one object on its stdout, and return that."""
        return self._checked(command, run("--json", *command.split(), *words), code, "out")

    def beside(self, command: str, *words: object, code: int = 0) -> Any:
        """Run a command that leaves stdout to another, and check the last line of its stderr."""
        return self._checked(command, arstore("--json", *command.split(), *words), code, "err")

    def fails(self, code: int, *words: object) -> None:
        """Run a command that must fail without a result."""
        ran = cli("--json", *words)
        assert (ran.code, set(ran.json)) == (code, {"error"}), ran
        self._checked("error", ran, code, "out")

    def _checked(self, command: str, ran: Ran, code: int, stream: str) -> Any:
        assert ran.code == code, ran
        text = ran.out if stream == "out" else ran.err
        assert text.endswith("\n"), ran
        assert stream == "err" or text.count("\n") == 1, ran
        value = json.loads(text.splitlines()[-1], parse_constant=pytest.fail)
        check(schema_of(command), value)
        self.objects.append((command, value))
        return value


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outputs]:
    """A directory with files to put, as the current one, and a host tier of the test's own."""
    path, memory = tmp_path / "work", Path("/dev/shm")
    (path / "m").mkdir(parents=True)
    chance = torch.Generator().manual_seed(1)
    weights = {f"model.layers.{n}.weight": torch.randn(64, 64, generator=chance) for n in range(2)}
    save_file(weights, path / "m" / "model.safetensors")
    (path / "m" / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    (path / "a.txt").write_text("a text")
    torch.save({"w": torch.ones(8)}, path / "w.pt")
    monkeypatch.chdir(path)
    host = (memory if memory.is_dir() else tmp_path) / f"arstore-test-{secrets.token_hex(8)}"
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(host / "host"))
    host.mkdir()
    yield Outputs(path, host, monkeypatch)
    shutil.rmtree(host, ignore_errors=True)


# ---- scenarios


def an_empty_store(o: Outputs) -> None:
    o.run("init")
    assert o.run("ls")["artifacts"] == []
    assert o.run("ls", "nothing*", "--kind", "kv")["artifacts"] == []
    assert o.run("stats")["dedup_ratio"] == 1
    assert o.run("verify")["checked"] == 0
    assert o.run("lease ls")["leases"] == []
    assert o.run("unstage", "--all")["unstaged"] == []
    assert [one["state"] for one in o.run("tiers")["tiers"]] == ["not probed", "ready", "ready"]
    for flags in ([], ["--dry-run"]):
        o.run("gc", *flags)
        o.run("repair", *flags)
    o.run("repair", "--rebuild-catalog")
    o.run("tenant ls")


def everyday(o: Outputs) -> None:
    o.run("init")
    assert o.run("put", "m", "team/w")["label"] is None
    assert o.run("put", "m", "team/w@release", "--pin", "--model", "tiny", "--codec", "plane")["label"] == "release"
    assert o.run("put", "a.txt", "notes")["kind"] == "file"
    assert o.run("put", "m/model.safetensors", "hidden", "--kind", "intermediate")["kind"] == "intermediate"
    o.run("put", "w.pt", "pt")
    o.run("put", "m", "opaque", "--opaque", "*")
    assert len(o.run("ls")["artifacts"]) == 6
    assert [one["pinned"] for one in o.run("ls", "team/*", "--kind", "weights")["artifacts"]] == [False, True]
    assert o.run("get", "team/w", "whole")["files"] == 2
    assert o.run("get", "team/w@1", "layer", "--layer", "1")["files"] == 1
    o.run("get", "team/w", "shard", "--tensor", "*.weight", "--shard", "0/2")
    o.run("get", "team/w", "rows", "--slice", "model.layers.0.weight=0:8")
    o.run("get", "notes", "text")
    assert o.run("show", "team/w")["identity"]["model"] == "tiny"
    assert o.run("show", "notes")["tensors"] == []
    assert [o.run("show", name)["files"][-1]["format"] for name in ("pt", "opaque")] == ["torch", "bytes"]
    o.run("tag", "notes", "alias")
    o.run("tag", "notes", "alias@label")
    assert [o.run(verb, "team/w")["pinned"] for verb in ("unpin", "pin")] == [False, True]
    o.run("stats")
    o.run("stats", "--prometheus")
    assert o.run("verify", "team/w", "--deep")["checked"] > 0
    assert o.run("verify", "--all", "--max-duration", "0s")["left"] > 0


def forgetting(o: Outputs) -> None:
    o.run("init")
    for path, name in (("m", "w"), ("a.txt", "w"), ("m", "shared"), ("a.txt", "notes")):
        o.run("put", path, name)
    for flags in (["--dry-run"], []):
        assert o.run("gc", "--keep-last", "1", *flags)["dropped"] == ["w@1"]
        assert len(o.run("rm", "notes", *flags)["removed"]) == 1
    for flags in (["--dry-run"], []):
        assert o.run("erase", "w", *flags)["receipt"]["versions"] == ["w@2"]
        assert o.run("gc", "--grace", "0s", *flags)["dry_run"] is bool(flags)
        o.run("rm", "shared", "--all-versions", *flags)
    assert o.run("gc", "--grace", "0s")["deleted_blobs"] > 0
    o.run("repair", "--forget-lost")


def prefix_kv(o: Outputs) -> None:
    tokens = [7 * n % 251 for n in range(70)]
    asked = ("--tokens", "tokens.json", *FLAGS)
    save_arrays(made(tokens), "kv.safetensors")
    Path("tokens.json").write_text(json.dumps(tokens))
    o.run("init")
    assert o.run("kv match", *asked, code=3)["error"]["kind"] == "not-found"
    assert "files" not in o.run("kv get", "out", *asked, code=3)
    assert o.run("kv put", "kv.safetensors", "chat", *asked, "--key-bounds", "16", "--pin")["kind"] == "kv"
    o.run("kv put", "kv.safetensors", "chat@label", *asked, "--join")
    assert o.run("kv match", *asked)["tokens_matched"] == 70
    assert o.run("kv get", "out", *asked)["files"] == 1
    o.run("kv get", "part", *asked, "--layer", "1", "--positions", "5:40")
    assert o.run("show", "chat")["kv"]["tokens"] == 70
    o.run("show", "chat/key-bounds")
    o.run("ls", "--kind", "kv")
    o.run("get", "chat", "whole")
    assert o.run("why-miss", *FLAGS)["field"] is None
    assert o.run("why-miss", *FLAGS, "--adapter", "a", "--tokens", "tokens.json")["differs"][0]["stored"] is None
    assert o.run("why-miss", *FLAGS[2:], "--model", "other", "--tokens", "1,2")["tokens_matched"] == 0
    o.fails(3, "why-miss", "--kind", "weights")
    o.fails(2, "kv", "get", "out", *asked, "--layer", "9")
    assert len(o.run("erase", "chat")["receipt"]["versions"]) == 3


def flip(folder: Path) -> None:
    """Change a bit of the last tensor in a store that is not encrypted."""
    wanted = Path("m/model.safetensors").read_bytes()[-64 * 64 * 4 :]
    for path in (folder / "segments").iterdir():
        content = bytearray(path.read_bytes())
        if (at := content.find(wanted)) >= 0:
            content[at + 100] ^= 1
            path.write_bytes(content)
            return
    raise AssertionError("no segment holds the tensor")


def damage(o: Outputs) -> None:
    folder = Path(os.environ["ARSTORE_STORE"])
    assert o.run("init", "--no-encryption")["key_file"] is None
    o.run("put", "m", "w", "--codec", "stored")
    o.run("prefetch", "w")
    flip(folder)
    assert o.run("verify")["healed"]
    o.run("unstage", "w")
    flip(folder)  # the copy that healed it
    bad = o.run("verify", code=13)
    assert [one["artifacts"] for one in bad["corrupt"]] == [["w@1"]]
    o.fails(13, "get", "w", "out")
    o.run("put", "a.txt", "notes")
    assert o.run("stats")["quarantined_blobs"] == 1
    assert [one["name"] for one in o.run("prefetch", "w", "notes", code=4)["failed"]] == ["w@1"]
    assert o.run("repair", "--rebuild-catalog")["lost"]
    assert o.run("repair", "--dry-run")["dry_run"] is True


def a_damaged_version(o: Outputs) -> None:
    o.run("init")
    for name in ("w", "bad"):
        o.run("put", "a.txt", name)
    with open_store() as store:  # the key of its record alone
        slot = store._parts.names.resolve("bad").row.place.slot
        store._parts.keyring.destroy({store._parts.keys.number: [slot]})
    assert "can't be read" in o.run("verify", code=13)["corrupt"][0]["what"]
    assert o.run("repair")["lost"]
    assert o.run("rm", "bad@1", "--dry-run")["removed"][0]["id"] == ""
    assert o.run("rm", "bad", "--all-versions")["removed"][0]["id"] == ""


def job(requests: Sequence[object], more: str = "", **fields: object) -> str:
    Path("requests.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in requests))
    fields["requests"] = "requests.jsonl"
    Path("JOB").write_text("[job]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in fields.items()) + f"\n{more}")
    return "JOB"


def staging(o: Outputs) -> None:
    o.patch.setattr(probe_room, "_BYTES", 16 << 20)
    o.run("init")
    for path, name in (("m", "w"), ("a.txt", "notes")):
        o.run("put", path, name)
    first = o.run("prefetch", "w", "notes")
    assert [one["from"] for one in first["staged"]] == ["local", "local"]
    assert first["predicted_seconds"] is None
    assert [one["from"] for one in o.run("prefetch", "w")["staged"]] == ["host"]
    assert set(o.run("show", "w")["tiers"]) == {"local", "host"}
    with open_store() as store, store.prefetch(["w"]):
        assert o.run("unstage", "--all", code=4)["in_use"] == ["w@1"]
        o.fails(11, "erase", "w")
    assert o.run("unstage", "w")["bytes"] > 0
    assert all(one["bytes_per_second"] for one in o.run("tiers", "--probe")["tiers"])
    assert o.run("prefetch", "w")["predicted_seconds"] is not None
    held = o.beside("prefetch", "notes", "--to", "device:cpu", "--", sys.executable, "-c", "pass")
    assert [one["tier"] for one in held["staged"]] == ["host"]
    assert o.beside("prefetch", "notes", "--", "sh", "-c", "exit 7", code=7)["failed"] == []


def the_shared_tier(o: Outputs) -> None:
    (o.host / "shared").mkdir()
    o.patch.setenv("ARSTORE_SHARED_DIR", str(o.host / "shared"))
    o.run("init")
    o.run("put", "m", "w")
    assert [one["tier"] for one in o.run("prefetch", "w", "--to", "shared")["staged"]] == ["shared"]
    assert [one["from"] for one in o.run("prefetch", "w", "--from", "shared")["staged"]] == ["shared"]
    assert set(o.run("show", "w")["tiers"]) == {"local", "host", "shared"}
    assert len(o.run("tiers")["tiers"]) == 4
    assert {one["tier"] for one in o.run("unstage", "w")["unstaged"]} == {"host", "shared"}
    o.patch.setenv("ARSTORE_SHARED_DIR", str(o.host / "nowhere"))
    assert [one["state"] for one in o.run("tiers")["tiers"] if one["tier"] == "shared"] == ["gone"]
    o.run("unstage", "--all", code=4)
    assert [one["tier"] for one in o.run("prefetch", "w")["degraded"]] == ["shared"]


def plans(o: Outputs) -> None:
    tokens = list(range(80))
    save_arrays(made(tokens), "kv.safetensors")
    o.run("init")
    for path, name in (("m", "w"), ("a.txt", "notes")):
        o.run("put", path, name)
    o.run("kv put", "kv.safetensors", "chat", "--tokens", ",".join(map(str, tokens)), *FLAGS)
    measured = {"latency_s": 0.0, "measured": "2026-01-01T00:00:00Z"}
    speeds = {tier: {"bytes_per_s": 1e6, **measured} for tier in ("local", "host", "device")}
    (Path(os.environ["ARSTORE_STORE"]) / "tiers.json").write_text(json.dumps(speeds))
    wanted = [{"id": "r", "artifacts": ["notes"]}, {"id": 2, "artifacts": ["w"], "after": ["r"]}]
    assert o.run("plan", job(wanted), "--out", "PLAN")["order"] == ["r", 2]
    assert {one["name"] for one in o.run("prefetch", "PLAN")["staged"]} == {"notes", "w"}
    assert o.run("plan", "JOB", "--order", "prefix")["moves"] == []
    o.run("unstage", "--all")
    hashed = job([{"hash_ids": ids} for ids in ([1, 2], [3, 4], [1, 2])], "[budget]\nhost = 3072\n", block_bytes=1024)
    plan = o.run("plan", hashed)
    assert any(move["evict"] for move in plan["moves"])
    assert plan["refetches"] > 0
    identity = "[identity]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in IDENTITY.items())
    tokens_of = job([{"tokens": [*tokens, 1, 2]}], f"{identity}[recompute]\ntokens_per_second = 100\n", to="device")
    plan = o.run("plan", tokens_of)
    assert set(plan["peak_bytes"]) == {"device", "host"}
    assert any(move["recompute"] for move in plan["moves"])
    o.run("plan", tokens_of, "--to", "host")
    job([{"tokens": tokens}], identity)
    staged = o.run("prefetch", "JOB")["staged"]
    assert [one["version"] for one in staged] == [None] * 5
    work = "import arstore\nfor request in arstore.attach().requests(): pass"
    assert o.beside("prefetch", "JOB", "--", sys.executable, "-c", work)["moved_bytes"] == 0
    assert all(one["name"].startswith("block ") for one in o.run("unstage", "--all")["unstaged"])
    o.fails(2, "plan", "a.txt")


def keys(o: Outputs) -> None:
    Path("passphrase").write_text("correct horse battery")
    assert o.run("init", "--key-file", "key", "--root-file", "root")["root_file"]
    o.fails(15, "init", "--no-encryption")
    o.patch.setenv("ARSTORE_PASSPHRASE_FILE", "passphrase")
    o.run("key add-passphrase")
    assert o.run("init", "--store", "second", "--passphrase")["key_file"] is None
    o.patch.delenv("ARSTORE_PASSPHRASE_FILE")
    for flags in (["--dry-run"], []):
        assert o.run("key rotate", "--key-file", "new", "--drop-others", *flags)["dropped"] == ["passphrase"]
    assert o.run("key rotate")["dropped"] == []
    o.patch.setenv("ARSTORE_KEY_FILE", "passphrase")
    o.fails(12, "ls")


def tenants(o: Outputs) -> None:
    o.run("init")
    assert o.run("tenant add", "other")["quota_bytes"] == 0
    assert o.run("tenant add", "team", "--quota", "64KiB")["quota_bytes"] == 65536
    assert len(o.run("tenant ls")["tenants"]) == 3
    o.run("put", "a.txt", "notes", "--tenant", "team")
    assert o.run("stats", "--tenant", "team")["quota_bytes"] == 65536
    Path("large").write_bytes(secrets.token_bytes(1 << 20))
    o.fails(14, "put", "large", "x", "--tenant", "team")
    o.fails(15, "tenant", "rm", "team")
    o.run("tenant rm", "other")
    for flags in (["--dry-run"], []):
        assert o.run("tenant rm", "team", "--erase", *flags)["artifacts"] == 1


def leases(o: Outputs) -> None:
    o.run("init")
    with open_store() as store, store._parts.leases.hold(store._parts.catalog.scope("w"), "put"):
        [lease] = o.run("lease ls")["leases"]
        assert (lease["state"], lease["purpose"]) == ("live", "put")
        o.fails(11, "put", "a.txt", "w")
        assert o.run("lease break", lease["id"][:12], "--dry-run")["dry_run"] is True
        assert o.run("lease break", lease["id"])["broken"]["id"] == lease["id"]
        assert o.run("lease ls")["leases"] == []
        with store._parts.leases.hold(b"gc", "gc"):
            assert [one["purpose"] for one in o.run("lease ls")["leases"]] == ["gc"]
    o.fails(3, "lease", "break", "0123456789abcdef")


def a_dead_owner(o: Outputs) -> None:
    o.run("init")
    Path("large").write_bytes(secrets.token_bytes(1 << 20))
    owner = stopped("put", "large", "x", part="segments", written_bytes=1 << 19)
    assert [one["state"] for one in o.run("lease ls")["leases"]] == ["live"]
    owner.kill()
    owner.wait()
    assert [one["state"] for one in o.run("lease ls")["leases"]] == ["dead"]
    assert o.run("put", "a.txt", "x")["version"] == 1
    o.run("repair")


def errors(o: Outputs) -> None:
    o.fails(10, "ls")
    o.fails(2, "no-such-command")
    o.fails(2, "get", "w")
    o.run("init")
    o.fails(3, "show", "nothing")
    o.fails(2, "put", "a.txt", "a name")
    (Path(os.environ["ARSTORE_STORE"]) / "config.toml").write_text("format = ")
    o.fails(1, "ls")


SCENARIOS: dict[Callable[[Outputs], None], str] = {
    an_empty_store: "init, ls, stats, verify, lease ls, unstage, tiers, gc, repair, tenant ls",
    everyday: "init, put, ls, get, show, tag, pin, unpin, stats, verify",
    forgetting: "init, put, gc, rm, erase, repair",
    prefix_kv: "init, kv match, kv get, kv put, show, ls, get, why-miss, erase, error",
    damage: "init, put, prefetch, verify, unstage, stats, repair, error",
    a_damaged_version: "init, put, verify, repair, rm",
    staging: "init, put, prefetch, show, unstage, tiers, error",
    the_shared_tier: "init, put, prefetch, show, tiers, unstage",
    plans: "init, put, kv put, plan, prefetch, unstage, error",
    keys: "init, key add-passphrase, key rotate, error",
    tenants: "init, tenant add, tenant ls, tenant rm, put, stats, error",
    leases: "init, lease ls, lease break, error",
    a_dead_owner: "init, lease ls, put, repair",
    errors: "init, error",
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_output_is_what_the_schema_says(outputs: Outputs, scenario: Callable[[Outputs], None]) -> None:
    scenario(outputs)
    assert {command for command, _ in outputs.objects} == set(SCENARIOS[scenario].split(", "))
    for command, value in outputs.objects:
        assert_strict(schema_of(command), value)


def assert_strict(schema: dict[str, Any], value: Any) -> None:
    """Check that a schema refuses a value as soon as it has one key more, or one of another type."""
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert not valid({**value, "unknown": 1}), f"{schema['title']} lets an unknown key pass"
    for name in value:
        assert not valid({**value, name: {"of": ["another type"]}}), f"{schema['title']} takes anything as {name}"
        assert not valid({one: value[one] for one in value if one != name}), f"{schema['title']} does not need {name}"


# ---- the schemas themselves


def test_every_command_has_a_schema_that_is_checked() -> None:
    covered = {command for commands in SCENARIOS.values() for command in commands.split(", ")}
    assert covered - {"error"} == set(WITH_JSON), (
        "a scenario must run each command that has --json, and check its output"
    )
    for command in covered:
        schema_of(command)
    assert set(SCHEMAS) == {command.replace(" ", "-") for command in covered}, "there is a schema of no command"


@pytest.mark.parametrize("command", sorted(SCRIPT["NO_JSON"]))
def test_a_command_without_a_schema_prints_no_json(outputs: Outputs, command: str) -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(cli(command, "--json").out)


def objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema of an object in a schema; what stands in `if`, `then` and `else` only adds to one."""
    if isinstance(schema, dict):
        if "properties" in schema and "type" in schema:
            yield schema
        for name, part in schema.items():
            if name not in ("if", "then", "else"):
                yield from objects_in(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects_in(part)


# Keys that an object may lack. All others are always there, as null where there is nothing to say.
OPTIONAL = {
    "kv-match": {"error"},
    "kv-get": {"error", "files", "bytes_out", "bytes_read"},
    "verify": {"error"},
    "show": {"host", "shared"},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_strict_and_says_what_each_key_means(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert schema["description"]
    lacking = set()
    for one in objects_in(schema):
        assert one["additionalProperties"] is False, one
        lacking |= one["properties"].keys() - set(one["required"])
        for key, value in one["properties"].items():
            meant = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
            assert value.get("description") or meant.get("description"), f"{key} has no description"
    assert lacking == OPTIONAL.get(name, set())


def test_a_definition_is_the_same_in_every_schema() -> None:
    found: dict[str, Any] = {}
    for name, schema in SCHEMAS.items():
        for one, definition in schema.get("$defs", {}).items():
            assert found.setdefault(one, definition) == definition, f"{one} in {name} is not what it is elsewhere"


def test_fixed_sets_are_those_of_the_code() -> None:
    definitions = {one: meant for schema in SCHEMAS.values() for one, meant in schema.get("$defs", {}).items()}
    assert definitions["kind"]["enum"] == list(KINDS)
    assert definitions["field"]["enum"] == list(FIELDS)
    error = definitions["error"]["properties"]
    codes: dict[int, tuple[str, ...]] = SCRIPT["exit_codes"]()
    assert set(error["kind"]["enum"]) == {kind for kinds in codes.values() for kind in kinds}
    assert set(error["exit_code"]["enum"]) == {code for code, kinds in codes.items() if kinds}
    tier = SCHEMAS["tiers"]["properties"]["tiers"]["items"]["properties"]["tier"]
    assert set(tier["enum"]) == set(UPWARD)


def test_a_wrong_output_is_refused() -> None:
    good = {"tenant": "team", "quota_bytes": 0}
    check(schema_of("tenant add"), good)
    for bad in ({}, {"tenant": "team"}, {**good, "more": 1}, {**good, "quota_bytes": -1}, {**good, "quota_bytes": 0.5}):
        with pytest.raises(AssertionError, match="tenant add"):
            check(schema_of("tenant add"), bad)
