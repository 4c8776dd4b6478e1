"""Several processes, several stores in one process, several threads: each at the same time as the others.

Nobody waits for anybody's lock but at the commit, no put is lost, and equal content converges on one copy.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore import Conflict, NotFound, Store, open_store
from arstore.formats.manifest import ManifestId
from arstore.store.artifacts.names import Names, StoredVersion
from arstore.store.artifacts.refs import Ref
from tests.support.command import Ran, arstore, cli, ended, start
from tests.support.segment_scan import check_keys_are_used_once

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path / "store"


def write_checkpoint(path: Path, tensor_bytes: int, seed: int) -> Path:
    """Write a checkpoint of eight tensors, of which the half is the same whatever the seed."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(0)
    tensors = {f"own.{n}": np.frombuffer(own.bytes(tensor_bytes), np.uint8) for n in range(4)}
    tensors |= {f"shared.{n}": np.frombuffer(shared.bytes(tensor_bytes), np.uint8) for n in range(4)}
    save_file(tensors, path)
    return path


def at_once(*commands: tuple[object, ...]) -> list[Ran]:
    """Run commands in processes of their own, all at the same time."""
    return [ended(process) for process in [start(*command) for command in commands]]


def check(expected: dict[str, Path], out: Path) -> None:
    """Assert that each ref reads back as it was put, and that nothing in the store is bad."""
    with open_store() as opened:
        for ref, source in expected.items():
            opened.get_to(ref, out)
            assert out.read_bytes() == source.read_bytes(), f"{ref} is not what was put"
            out.unlink()
        assert opened.verify(deep=True).corrupt == ()
        check_keys_are_used_once(opened._parts.root)


# ---- processes


def test_different_content_under_different_names(store: Path, tmp_path: Path) -> None:
    """There is a segment with room for each of them, and only one may have it."""
    sources = {f"model-{n}": write_checkpoint(tmp_path / f"{n}.safetensors", 6 * MIB, seed=n + 1) for n in range(3)}
    assert cli("put", write_checkpoint(tmp_path / "first.safetensors", KIB, seed=9), "first").code == 0
    for ran in at_once(*[("put", source, name, "--json") for name, source in sources.items()]):
        assert ran.code == 0, ran.err
        assert ran.json["version"] == 1
    check(sources, tmp_path / "out")


def test_the_same_content_at_once_is_stored_once(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source.safetensors", 4 * MIB, seed=1)
    names = [f"model-{n}" for n in range(3)]
    ids = set()
    for ran in at_once(*[("put", source, name, "--json") for name in names]):
        assert ran.code == 0, ran.err
        ids.add(ran.json["id"])
    assert len(ids) == 1
    stats = cli("stats", "--json").json
    assert stats["blobs"] == 9  # eight tensors and the header of the file
    assert stats["unique_bytes"] == source.stat().st_size
    assert stats["logical_bytes"] == 3 * source.stat().st_size
    assert stats["stored_bytes"] < 1.01 * source.stat().st_size
    check(dict.fromkeys(names, source), tmp_path / "out")
    # The copy that stayed is counted for each of them.
    for name in names[:2]:
        assert cli("rm", name).code == 0
    assert cli("stats", "--json").json["unreferenced_bytes"] == 0
    check({names[2]: source}, tmp_path / "out")
    assert cli("rm", names[2]).code == 0
    assert cli("stats", "--json").json["unreferenced_bytes"] == source.stat().st_size


def test_the_same_name_at_once_loses_no_version(store: Path, tmp_path: Path) -> None:
    sources = [write_checkpoint(tmp_path / f"{n}.safetensors", 64 * KIB, seed=n + 1) for n in range(9)]
    given: dict[str, Path] = {}
    for part in (sources[:5], sources[5:]):
        for source, ran in zip(
            part, at_once(*[("put", source, "model", "--multi-writer", "--json") for source in part]), strict=True
        ):
            assert ran.code == 0, ran.err
            given[f"model@{ran.json['version']}"] = source
    assert given.keys() == {f"model@{version}" for version in range(1, 10)}
    listed = cli("ls", "--json").json["artifacts"]
    assert [one["version"] for one in listed] == list(range(1, 10))
    check(given, tmp_path / "out")


def test_the_same_label_at_once_is_given_once(store: Path, tmp_path: Path) -> None:
    sources = [write_checkpoint(tmp_path / f"{n}.safetensors", 64 * KIB, seed=n + 1) for n in range(4)]
    answers = at_once(*[("put", source, "model@stable", "--multi-writer", "--json") for source in sources])
    assert sorted(ran.code for ran in answers) == [0, 15, 15, 15]
    [winner] = [source for source, ran in zip(sources, answers, strict=True) if ran.code == 0]
    assert len(cli("ls", "--json").json["artifacts"]) == 1
    check({"model@stable": winner}, tmp_path / "out")


def test_the_same_label_and_content_at_once_is_one_version(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source.safetensors", 64 * KIB, seed=1)
    answers = at_once(*[("put", source, "model@stable", "--multi-writer", "--json")] * 4)
    assert [(ran.code, ran.json["version"]) for ran in answers] == [(0, 1)] * 4
    assert len(cli("ls", "--json").json["artifacts"]) == 1
    check({"model@stable": source}, tmp_path / "out")


@pytest.mark.parametrize("same", [True, False], ids=["same", "different"])
def test_a_label_that_is_given_between_look_and_commit(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """Of two that find a label free at the same moment one wins; the other had the same wish, or is refused."""
    sources = [write_checkpoint(tmp_path / f"{n}.safetensors", 64 * KIB, seed=n + 1) for n in range(2)]
    looked, others = Names.check_free, [sources[0]]

    def overtaken(names: Names, ref: Ref, manifest_id: ManifestId) -> StoredVersion | None:
        found = looked(names, ref, manifest_id)
        if others:
            assert arstore("put", others.pop(), "model@stable", "--multi-writer").code == 0
        return found

    monkeypatch.setattr(Names, "check_free", overtaken)
    ran = cli("put", sources[not same], "model@stable", "--multi-writer", "--json")
    assert (others, ran.code) == ([], 0 if same else 15)
    listed = cli("ls", "--json").json["artifacts"]
    assert [one["version"] for one in listed] == [1]
    if same:
        assert ran.json["version"] == 1
        assert ran.json["id"] == listed[0]["id"]
    check({"model@stable": sources[0]}, tmp_path / "out")
    assert cli("gc", "--grace", "0s").code == 0
    check({"model@1": sources[0]}, tmp_path / "out")


def test_put_get_rm_and_verify_side_by_side(store: Path, tmp_path: Path) -> None:
    rounds = 4
    sources = [write_checkpoint(tmp_path / f"{n}.safetensors", MIB, seed=n + 1) for n in range(rounds + 1)]
    fixed = sources[rounds]
    assert cli("put", fixed, "fixed").code == 0

    def put() -> None:
        for n in range(rounds):
            assert arstore("put", sources[n], f"model-{n}").code == 0

    def get() -> None:
        for n in range(rounds):
            assert arstore("get", "fixed", tmp_path / f"out-{n}").code == 0
            assert (tmp_path / f"out-{n}").read_bytes() == fixed.read_bytes()

    def rm() -> None:
        for n in range(rounds):
            assert arstore("tag", "fixed", f"passing-{n}").code == 0
            assert arstore("rm", f"passing-{n}").code == 0

    def verify() -> None:
        for _ in range(rounds):
            assert arstore("verify").code == 0

    side_by_side(put, get, rm, verify)
    with open_store() as opened:
        assert [found.summary.name for found in opened.ls()] == ["fixed", *(f"model-{n}" for n in range(rounds))]
        assert opened.stats().unreferenced_bytes == 0
    check({"fixed": fixed} | {f"model-{n}": sources[n] for n in range(rounds)}, tmp_path / "out")


def test_the_same_tenant_added_at_once_is_made_once(store: Path) -> None:
    answers = at_once(*[("tenant", "add", name) for name in ("team", "team", "team", "other")])
    assert sorted(ran.code for ran in answers) == [0, 0, 15, 15]
    assert {one["name"] for one in cli("tenant", "ls", "--json").json["tenants"]} == {"default", "team", "other"}


def test_init_at_once_makes_one_store(tmp_path: Path) -> None:
    answers = at_once(*[("init", "--json")] * 4)
    source = write_checkpoint(tmp_path / "source.safetensors", 64 * KIB, seed=1)
    assert [ran.code for ran in answers] == [0, 0, 0, 0]
    assert len({ran.json["key_file"] for ran in answers}) == 1
    assert cli("put", source, "model").code == 0
    check({"model": source}, tmp_path / "out")


# ---- one process


def side_by_side(*works: Callable[[], None]) -> None:
    """Run functions in threads of their own; raise what the first of them raises."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def test_threads_share_one_store(store: Path, tmp_path: Path) -> None:
    threads, rounds = 6, 5
    sources = [write_checkpoint(tmp_path / f"{n}.safetensors", 32 * KIB, seed=n + 1) for n in range(threads)]

    with open_store() as opened:

        def work(n: int) -> None:
            for version in range(1, rounds + 1):
                stored = opened.put(sources[n], name=f"own-{n}")
                assert stored.summary.version == version
                opened.put(sources[n], name="shared", multi_writer=True)
                opened.get_to(f"own-{n}", tmp_path / f"out-{n}")
                assert (tmp_path / f"out-{n}").read_bytes() == sources[n].read_bytes()
                opened.tag(f"own-{n}", f"passing-{n}")
                opened.rm(f"passing-{n}")
                opened.ls()
                assert opened.verify([f"own-{n}"]).corrupt == ()

        side_by_side(*[lambda n=n: work(n) for n in range(threads)])
        versions = [found.summary.version for found in opened.ls("shared")]
        assert versions == list(range(1, threads * rounds + 1))
        assert opened.stats().blobs == threads * 4 + 5  # four tensors each; four and the header are the same
    check({f"own-{n}": source for n, source in enumerate(sources)}, tmp_path / "out")


def test_two_stores_on_one_directory_in_one_process(store: Path, tmp_path: Path) -> None:
    sources = {
        name: write_checkpoint(tmp_path / f"{name}.safetensors", 64 * KIB, seed=n + 1)
        for n, name in enumerate(("a", "b"))
    }
    with open_store() as first:
        first.tenants.add("team")
        with open_store(tenant="team") as second, open_store() as third:

            def fill(opened: Store, name: str) -> None:
                for version in range(1, 6):
                    assert opened.put(sources[name], name="model").summary.version == version

            side_by_side(lambda: fill(first, "a"), lambda: fill(second, "b"))
            assert len(third.ls()) == 5
            second.get_to("model", tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == sources["b"].read_bytes()
            assert second.stats().blobs == 9  # what the other tenant has is not shared
        # One store closed leaves the other as it was.
        first.put(sources["a"], name="after")
        assert first.verify(deep=True).corrupt == ()
    with pytest.raises(NotFound), open_store(tenant="team") as again:
        again.get("after")


def test_a_store_opened_later_sees_what_the_first_commits(store: Path, tmp_path: Path) -> None:
    """An opened store follows other writers: names, segments that grow, keys that are added."""
    with open_store() as reader, open_store() as writer:
        for n in range(40):
            source = write_checkpoint(tmp_path / "source.safetensors", 4 * KIB, seed=n + 1)
            writer.put(source, name="model")
            reader.get_to("model", tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == source.read_bytes()
    other = write_checkpoint(tmp_path / "other.safetensors", 4 * KIB, seed=99)
    with open_store() as reader:
        assert arstore("put", other, "other").code == 0
        reader.get_to("other", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == other.read_bytes()
        reader.put(other, name="other@1.0")
        with pytest.raises(Conflict):
            reader.put(source, name="other@1.0")


# ---- forks

FORK = """
import json, os, sys
import arstore

store = arstore.open_store()
source, out = sys.argv[1:]
store.put(source, name="before")

def attempt(work):
    try:
        work()
    except arstore.StoreError as error:
        return [type(error).__name__, str(error)]
    return None

reading, writing = os.pipe()
if not os.fork():
    answers = {
        "ls": attempt(store.ls),
        "get": attempt(lambda: store.get("before")),
        "put": attempt(lambda: store.put(source, name="child")),
        "rm": attempt(lambda: store.rm("before")),
        "add_tenant": attempt(lambda: store.tenants.add("child")),
        "open": attempt(lambda: arstore.open_store().put(source, name="again")),
    }
    os.write(writing, json.dumps(answers).encode())
    os._exit(0)
os.close(writing)
answers = json.loads(os.fdopen(reading).read())
os.wait()
store.put(source, name="after")
store.get_to("before", out)
assert store.verify(deep=True).corrupt == ()
answers["names"] = [found.summary.name for found in store.ls()]
answers["tenants"] = [tenant.name for tenant in store.tenants.all()]
store.close()

if not os.fork():
    with arstore.open_store() as store:
        store.put(source, name="late")
    os._exit(0)
answers["closed"] = os.waitstatus_to_exitcode(os.wait()[1])
with arstore.open_store() as store:
    answers["late"] = [found.summary.name for found in store.ls()]
print(json.dumps(answers))
"""


def test_a_forked_child_is_refused(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source.safetensors", 64 * KIB, seed=1)
    command = [sys.executable, "-c", FORK, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for verb in ("ls", "get", "put", "rm", "add_tenant", "open"):
        assert answers[verb] is not None, f"{verb} went through in a forked child"
        kind, why = answers[verb]
        assert kind == "StorageFailed"
        assert "fork" in why
    assert answers["names"] == ["after", "before"]
    assert answers["tenants"] == ["default"]
    # A store that was closed before the fork is no trouble.
    assert answers["closed"] == 0
    assert answers["late"] == ["after", "before", "late"]
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
