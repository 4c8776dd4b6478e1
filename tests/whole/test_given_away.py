"""The store directory alone gives nothing away: no name, no content, no removed name."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.support.command import arstore
from tests.support.keyed import readable, root, source, works

__all__ = ["root", "source"]  # fixtures


CANARIES = {
    "tensor": "canary.Jackdaws.of.quartz.tensor",
    "file": "canary-Vexing-zephyrs-file.safetensors",
    "directory": "canary-Sphinx-of-black-directory",
    "ref": "canary/Waltz-bad-nymph-ref",
    "label": "canary-Glib-jocks-label",
    "model": "canary Quick wafting zephyrs model",
    "revision": "canary Bright vixens jump revision",
    "text": "canary Five boxing wizards, text of a file",
    "bytes": "canary How vexingly quick, bytes of a tensor!",
    "tenant": "canary-Pack-my-box-tenant",
}


def put_canaries(tmp_path: Path) -> None:
    """Put an artifact in which every canary stands somewhere, as a tenant whose name is one."""
    source = tmp_path / "canaries"
    inner = source / CANARIES["directory"]
    inner.mkdir(parents=True)
    content = CANARIES["bytes"].encode().ljust(64) + np.random.default_rng(1).bytes(4032)
    save_file({CANARIES["tensor"]: np.frombuffer(content, np.uint8)}, inner / CANARIES["file"])
    (inner / "readme").write_text(f"{CANARIES['text']}\n" * 200)
    works("tenant", "add", CANARIES["tenant"])
    flags = ("--model", CANARIES["model"], "--revision", CANARIES["revision"])
    works("--tenant", CANARIES["tenant"], "put", source, f"{CANARIES['ref']}@{CANARIES['label']}", *flags)


def given_away(root: Path) -> set[str]:
    """Return which canaries can be read: as they are, in capitals, as UTF-16 or in hex."""
    everything = list(readable(root))
    found = set()
    for what, text in CANARIES.items():
        core = text.removeprefix("canary")[1:]
        forms = (core.encode(), core.encode("utf-16-le"), core.encode().hex().encode(), core.upper().encode())
        if any(form in held for form in forms for held in everything):
            found.add(what)
    return found


def test_the_store_directory_alone_gives_nothing_away(tmp_path: Path, root: Path) -> None:
    key = Path(works("init", "--json").json["key_file"])
    put_canaries(tmp_path)
    alone = tmp_path / "alone"
    shutil.copytree(root, alone)
    key.rename(tmp_path / "far-away")
    assert given_away(alone) == set()
    listing = arstore("--store", alone, "--tenant", CANARIES["tenant"], "ls")  # a process: it remembers no key
    assert (listing.code, listing.out) == (12, "")
    # With the key they are all there.
    key.hardlink_to(tmp_path / "far-away")
    out = tmp_path / "out"
    works("--store", alone, "--tenant", CANARIES["tenant"], "get", CANARIES["ref"], out)
    assert (out / CANARIES["directory"] / CANARIES["file"]).exists()


def test_the_search_finds_what_is_not_encrypted(tmp_path: Path, root: Path) -> None:
    works("init", "--no-encryption")
    put_canaries(tmp_path)
    # Names of tenants are sealed there too, under a master key that lies beside them.
    assert given_away(root) == CANARIES.keys() - {"tenant"}
    assert CANARIES["tenant"] in works("tenant", "ls").out


def test_removed_names_give_nothing_away_either(tmp_path: Path, root: Path) -> None:
    works("init")
    put_canaries(tmp_path)
    works("--tenant", CANARIES["tenant"], "tag", CANARIES["ref"], "plain-name")
    works("--tenant", CANARIES["tenant"], "rm", CANARIES["ref"], "--all-versions")
    assert given_away(root) == set()
