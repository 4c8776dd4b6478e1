"""Names, versions and ids as they are written on the command line."""

from pathlib import Path

import pytest
from blake3 import blake3

from arstore import BadInput, open_store
from arstore.formats.manifest import Manifest
from arstore.store.artifacts.refs import parse_ref
from tests.support.stocked import cli, fails, holdings, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures


def test_versions_labels_and_the_newest(stocked: Path) -> None:
    for n in (2, 3):
        Path("a.txt").write_text(f"text {n}")
        assert cli("put", "a.txt", "w", "--json").json["version"] == n
    labelled = cli("put", "m", "w@v1.0", "--json").json
    assert (labelled["version"], labelled["label"]) == (4, "v1.0")
    Path("a.txt").write_text("text 5")
    cli("put", "a.txt", "w")
    for ref, version in (("w", 5), ("w@5", 5), ("w@v1.0", 4), ("w@4", 4), ("w@1", 1), ("w@03", 3)):
        assert cli("show", ref, "--json").json["version"] == version, ref
    cli("get", "w@2", "two")
    assert Path("two").read_text() == "text 2"
    assert "w has 1, 2, 3, v1.0, 5" in fails(3, "show", "w@6").err
    assert cli("tag", "w@2", "old", "--json").json["version"] == 1
    cli("get", "old", "again")
    assert Path("again").read_text() == "text 2"


def test_a_label_is_listed_beside_its_number_and_keeps_its_version(stocked: Path) -> None:
    cli("put", "a.txt", "w@v1.0")
    cli("put", "m", "w")
    first, second, third = cli("ls").out.splitlines()[1:]
    assert (first.split()[0], second.split()[0], third.split()[0]) == ("w@1", "w@2", "w@3")
    assert second.endswith("Z  @v1.0")
    assert (first[-1], third[-1]) == ("Z", "Z")
    for flags, dropped in (("--keep-last", 1), ["w@1"]), (("--max-bytes", "1B"), ["w@1", "w@3"]):
        assert cli("gc", *flags, "--dry-run", "--json").json["dropped"] == dropped
    cli("pin", "w@v1.0")
    assert "Z  @v1.0 pinned\n" in cli("ls").out


def test_what_a_tenant_has_is_told_before_it_goes(stocked: Path) -> None:
    cli("tenant", "add", "team")
    assert cli("tenant", "rm", "team", "--dry-run").out == "would remove team, artifacts: 0, 0 B\n"
    stored = [cli("put", "m", name, "--json", "--tenant", "team").json["bytes_stored"] for name in ("x", "y")]
    said = f"has artifacts: 2, {sum(stored)} bytes stored"
    for flags in ([], ["--dry-run"]):
        assert said in fails(15, "tenant", "rm", "team", *flags).err
    before = [stocked.joinpath(name).read_bytes() for name in ("keys/root", "keys/pages")]
    told = cli("tenant", "rm", "team", "--erase", "--dry-run", "--json").json
    assert told.pop("keys_destroyed") > 0
    said_of_it = {"tenant": "team", "erased": True, "artifacts": 2, "bytes": sum(stored), "still_staged": []}
    assert told == said_of_it | {"dry_run": True}
    assert cli("tenant", "rm", "team", "--erase", "--dry-run").out == "would remove team, artifacts: 2, 24.0 KiB\n"
    assert [stocked.joinpath(name).read_bytes() for name in ("keys/root", "keys/pages")] == before
    assert cli("get", "x", "out", "--tenant", "team").code == 0
    assert told.items() <= (cli("tenant", "rm", "team", "--erase", "--json").json | {"dry_run": True}).items()
    fails(12, "ls", "--tenant", "team")


def test_ids_and_their_prefixes(stocked: Path) -> None:
    found = cli("show", "w", "--json").json["id"]
    for length in (8, 9, 33, 64):
        assert cli("show", found[:length], "--json").json["id"] == found
    assert cli("get", found[:12], "out").code == 0
    fails(3, "show", found[:7])
    fails(3, "show", found + "0")
    fails(3, "show", found[:-1] + ("0" if found[-1] != "0" else "1"))
    # A name that looks like an id is a name.
    cli("put", "a.txt", found[:8])
    assert cli("show", found[:8], "--json").json["kind"] == "file"
    assert cli("show", found[:9], "--json").json["kind"] == "weights"


def test_an_ambiguous_prefix_is_refused(store: Path) -> None:
    # Two artifacts whose ids begin alike, found by trying models of one file as the store itself would digest them.
    cli("put", "a.txt", "seed", "--model", "?")
    with open_store() as opened:
        manifest: Manifest = opened.get("seed").manifest
        key = opened._parts.keys.tenant.digest_key
    before, after = manifest.packed().split(b'"?"')
    seen: dict[bytes, int] = {}
    for n in range(1_000_000):
        prefix = blake3(before + b'"%d"' % n + after, key=key).digest(length=4)
        if prefix in seen:
            break
        seen[prefix] = n
    pair = [cli("put", "a.txt", "x", "--model", model, "--json").json["id"] for model in (seen[prefix], n)]
    assert pair[0] != pair[1]
    assert pair[0][:8] == pair[1][:8] == prefix.hex()
    assert "2 ids" in fails(2, "show", prefix.hex()).error
    longer = next(n for n in range(8, 64) if pair[0][n] != pair[1][n]) + 1
    for found in pair:
        assert cli("show", found[:longer], "--json").json["id"] == found


GOOD_NAMES = ["a", "A-Z_0.9", "team/model/v1", ".hidden", "a/b@x", "w@1.0", "a-b/..c", "x" * 512, "n@" + "l" * 128]


BAD_NAMES = [
    "a b", "ü", "a\n", "a\tb", "a:b", "a*", "a\\b", "$(id)", "@", "@1", "a@", "a@b@c", "a@b c", "a@ü", "a@0", "a@-1 ",
    "a@99999999999", "x" * 513, "n@" + "l" * 129, "\udcff", "a\u200bb", "%2e", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD_NAMES, ids=ascii)
def test_good_names(store: Path, name: str) -> None:
    put = cli("put", "a.txt", name, "--json")
    assert put.code == 0, put.err
    assert cli("show", name, "--json").json["id"] == put.json["id"]
    assert cli("get", name, "out").code == 0
    assert cli("rm", name).code == 0
    assert not any(path.name in ("team", "..x") for path in store.parent.iterdir())


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_bad_names_are_refused_everywhere(stocked: Path, name: str) -> None:
    before = holdings()
    for words in (["put", "m", name], ["tag", "w", name], ["show", name], ["rm", name], ["get", name, "out"]):
        assert len(fails(2, *words).err) < 400
    assert holdings() == before
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["w@1", "w@7", "new@3"])
def test_version_numbers_are_given_not_taken(stocked: Path, name: str) -> None:
    before = holdings()
    fails(2, "put", "a.txt", name)
    fails(2, "tag", "w", name)
    assert holdings() == before


NAMES_OF_OLD = ["..", "/", "../x", "/x", "x/", "-x", "a//b", ".", "a/./b", "a/../b", "a/-b", "n@../x", "n@-x"]


@pytest.mark.parametrize("name", NAMES_OF_OLD)
def test_names_that_read_as_paths_or_flags_are_not_given_any_more(stocked: Path, name: str) -> None:
    before = holdings()
    for words in (["put", "--", "a.txt", name], ["tag", "--", "w", name]):
        assert "between slashes" in fails(2, *words).error
    with open_store() as store, pytest.raises(BadInput, match="between slashes"):
        store.kv.put("kv", name=name, tokens=[1], identity={"model": "m", "revision": "r", "precision": "bf16"})
    assert holdings() == before


@pytest.mark.parametrize("name", NAMES_OF_OLD)
def test_names_that_older_stores_gave_are_read_renamed_and_removed(
    store: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("arstore.store.artifacts.put.parse_new_ref", parse_ref)
        assert cli("put", "--", "a.txt", name).code == 0
    assert cli("repair", "--rebuild-catalog").code == 0
    assert cli("show", "--json", "--", name).json["name"] == name.partition("@")[0]
    assert cli("get", "--", name, "-out").code == 0
    assert Path("-out").read_text() == "a text"
    assert cli("tag", "--", name, "good").code == 0
    assert cli("rm", "--", name).code == 0
    assert [found["name"] for found in cli("ls", "--json").json["artifacts"]] == ["good"]


def test_a_path_that_begins_with_a_dash_stands_behind_two(store: Path) -> None:
    Path("-in").write_text("in")
    assert cli("put", "--json", "--", "-in", "y").code == 0
    assert cli("get", "--", "y", "-out").code == 0
    assert Path("-out").read_text() == "in"
