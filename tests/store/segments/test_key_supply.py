"""One key a record: none is used twice, and equal plaintext looks different everywhere."""

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore.formats.catalog import Place
from arstore.formats.digest import Digest
from arstore.formats.record import HEADER_BYTES
from arstore.store.access import create_store, open_store
from tests.support.keyed import places, root, segments, source, stored

__all__ = ["root", "source", "stored"]  # fixtures


def record_bytes(root: Path, place: Place) -> bytes:
    """Return the payload of a record as it lies in its segment."""
    with (root / "segments" / f"{place.segment:016x}.seg").open("rb") as file:
        file.seek(place.offset + HEADER_BYTES)
        return file.read(place.payload_bytes)


def test_every_record_has_a_key_of_its_own(root: Path, source: Path, tmp_path: Path) -> None:
    """Also over several puts, which hand each other the keys that were left over, and a put that failed."""
    create_store()
    for number in range(5):
        with open_store() as store:
            if number == 3:
                (tmp_path / "bad.safetensors").write_bytes(b"\x08" + b"\0" * 40)
                with pytest.raises(Exception, match="bad"):
                    store.put(tmp_path / "bad.safetensors", name="bad")
            values = np.random.default_rng(number)
            save_file({f"t{n}": values.standard_normal(64) for n in range(3 + 9 * number)}, source)
            store.put(source, name="m")
    with open_store() as store:
        slots = [place.slot for place in places(store)]
        keys = [store._parts.keyring.key(0, slot) for slot in slots]
    assert len(slots) == 5 + sum(3 + 9 * number for number in range(5)) + 5  # tensors, headers, versions
    assert 0 not in slots
    assert len(set(slots)) == len(set(keys)) == len(slots)


def test_a_restored_catalog_leads_to_no_key_stream_twice(root: Path, tmp_path: Path) -> None:
    """A catalog that was put back offers keys once more that were used since. XOR of two texts would then be open."""
    create_store()
    texts = [np.random.default_rng(number).bytes(4000) for number in range(3)]
    path, found, slots = tmp_path / "text", [], []
    for number, text in enumerate(texts):
        path.write_bytes(text)
        with open_store() as store:
            store.put(path, name="m", kind="file", codec="stored")
            [blob] = store.show("m")[1].blobs
            place = store._parts.catalog.find_blobs([blob.digest])[blob.digest].place
        slots.append(place.slot)
        found.append(record_bytes(root, place))
        if number == 0:
            old, cut = (root / "catalog" / "data.mdb").read_bytes(), segments(root)[0].stat().st_size
        elif number == 1:
            (root / "catalog" / "data.mdb").write_bytes(old)
            os.truncate(segments(root)[0], cut)
    assert slots[1] == slots[2], "the test does not bring about what it is about"
    assert differing(found[1], found[2]) != differing(texts[1], texts[2])


def differing(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one[:4000], two[:4000], strict=True))


def blocks(content: bytes) -> set[bytes]:
    return {content[at : at + 16] for at in range(0, len(content) - 15, 16)}


def test_equal_plaintext_looks_different_everywhere(tmp_path: Path, source: Path) -> None:
    """In two stores with one key file, and for two tenants of one store: other ids, other digests, other bytes."""
    (tmp_path / "key").write_text("one secret for both")
    seen: list[tuple[str, set[Digest], set[bytes]]] = []
    for name in ("a", "b"):
        create_store(tmp_path / name, key_file=tmp_path / "key")
        with open_store(tmp_path / name) as store:
            store.tenants.add("second")
        for tenant in ("default", "second"):
            with open_store(tmp_path / name, tenant=tenant) as store:
                stored = store.put(source, name="m", codec="stored")
                digests = {blob.digest for blob in store.show("m")[1].blobs}
                sealed = b"".join(record_bytes(tmp_path / name, place) for place in places(store))
                seen.append((stored.summary.id, digests, blocks(sealed)))
    assert all(len(held) > 500 for _, _, held in seen)
    for (id_, digests, held), (other_id, other_digests, other_held) in combinations(seen, 2):
        assert id_ != other_id
        assert not digests & other_digests
        assert not held & other_held


def test_without_encryption_equal_tenants_have_other_digests_too(root: Path, source: Path) -> None:
    create_store(encrypted=False)
    ids = set()
    digests: list[Digest] = []
    with open_store() as store:
        store.tenants.add("second")
    for tenant in ("default", "second"):
        with open_store(tenant=tenant) as store:
            ids.add(store.put(source, name="m").summary.id)
            digests += [blob.digest for blob in store.show("m")[1].blobs]
    assert (len(ids), len(set(digests))) == (2, len(digests))
