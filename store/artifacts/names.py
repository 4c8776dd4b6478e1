"""Names: refs and ids to versions, and everything that only changes names: list, pin, tag, rm.

A version's summary is sealed under that version's own key, so that once the key is destroyed even the name is gone.
"""

import contextlib
import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ...formats.catalog import VersionRow
from ...formats.digest import digest_bytes
from ...formats.errors import FormatError
from ...formats.frames import seal, unseal
from ...formats.record import KIND_VERSION
from ...formats.strict_json import parse_json
from ..catalog.catalog import Catalog
from ..errors import BadInput, Conflict, Corrupt, NotFound, StoreError
from ..keys.tenant_keys import TenantKeys
from ..segments.reader import SegmentReader
from .refs import Ref, parse_ref

if TYPE_CHECKING:
    from ...formats.manifest import Manifest, ManifestId, Needs

ID_PREFIX_MIN = 8
_USE_GRAIN_S = 3600
_ATTEMPTS = 100
_SUMMARY = "version summary"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a listing shows of a version. `created` is UTC in ISO 8601."""

    name: str
    version: int
    label: str | None
    id: str
    kind: str
    model: str | None
    plain_bytes: int
    created: str
    pinned: bool

    def sealed(self, key: bytes | None) -> bytes:
        """Return the summary as the catalog keeps it: sealed under the version's key, plain where there is none."""
        fields = [self.name, self.label, self.id, self.kind, self.model, self.plain_bytes, self.created]
        packed = json.dumps(fields, separators=(",", ":")).encode()
        return packed if key is None else seal(key, _SUMMARY, packed, os.urandom(12))


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version as the catalog has it: its summary, opened, and its row."""

    summary: Summary
    row: VersionRow

    @property
    def text(self) -> str:
        return f"{self.summary.name}@{self.summary.version}"


@dataclass(frozen=True, slots=True)
class Unopened:
    """A version that can't be opened, and why not."""

    version: int
    row: VersionRow
    why: str


class Names:
    """One tenant's names."""

    def __init__(self, catalog: Catalog, keys: TenantKeys, segments: SegmentReader) -> None:
        self.catalog, self._keys, self._segments = catalog, keys, segments

    def all(self) -> Iterator[StoredVersion]:
        """Yield every version of every name, in no particular order of names."""
        yield from self._opened(None)

    def listed(self, glob: str | None = None, kind: str | None = None) -> list[StoredVersion]:
        """Return the versions whose names match, by name and version."""
        found = [
            one for one in self.all()
            if (glob is None or fnmatch.fnmatchcase(one.summary.name, glob)) and kind in (None, one.summary.kind)
        ]  # fmt: skip
        return sorted(found, key=lambda one: (one.summary.name, one.summary.version))

    def versions(self, name: str) -> list[StoredVersion]:
        """Return the versions of one name that can be read, oldest first."""
        return list(self._opened(name))

    def unopened(self) -> list[Unopened]:
        """Return the versions that are there and can't be opened: nobody can say of which name they are."""
        found = []
        for version, row in self.catalog.versions():
            try:
                self._open_unless_removed(version, row)
            except Corrupt as error:
                found.append(Unopened(version, row, error.why))
        return found

    def resolve(self, text: str) -> StoredVersion:
        """Return the version a ref or an id prefix names.

        Raises NotFound, BadInput if it is ambiguous, Corrupt if that very version can't be opened.
        """
        ref = parse_ref(text)
        rows = self.catalog.versions(ref.name)
        numbered = [] if ref.label else [row for row in reversed(rows) if ref.version in (None, row[0])]
        for version, row in numbered:
            if found := self._open_unless_removed(version, row):
                return found
        versions = self.versions(ref.name)
        for found in versions:
            if ref.label is not None and found.summary.label == ref.label:
                return found
        if rows:
            known = ", ".join(found.summary.label or str(found.summary.version) for found in versions[-8:])
            raise NotFound(text, "no such version", hint=f"{ref.name} has {known}")
        if re.fullmatch(rf"[0-9a-f]{{{ID_PREFIX_MIN},64}}", text):
            return self._by_id(text)
        raise NotFound(text, "no such name", hint="'arstore ls' lists the names there are")

    def manifest(self, found: StoredVersion) -> "Manifest":
        """Return what a version consists of; raise Corrupt if its record is bad, NotFound if it was removed since."""
        from ...formats.manifest import parse_manifest

        return self._read(found, parse_manifest)

    def needs(self, found: StoredVersion) -> "Needs":
        """Return what a version keeps from collection; raise as `manifest` does."""
        from ...formats.manifest import parse_needs

        return self._read(found, parse_needs)

    def _read(self, found: StoredVersion, parse: Callable[[Any], T]) -> T:
        from ...formats.manifest import MANIFEST_MAX_BYTES
        from ..segments.records import OpenRecord, corrupt

        place = found.row.place
        try:
            if place.plain_bytes > MANIFEST_MAX_BYTES:
                raise FormatError(f"version record exceeds the limit of {MANIFEST_MAX_BYTES} bytes")
            record = OpenRecord(self._segments, self._keys, place, KIND_VERSION)
            packed = record.read_all()
            record.check_ends(digest_bytes(self._keys.tenant.digest_key, packed))
            record.check_padding()
            return parse(parse_json(packed)["manifest"])
        except (Corrupt, FormatError, KeyError, TypeError) as error:
            if not self._is_there(found.summary.name, found.row):
                raise NotFound(found.text, "was removed while it was read") from None
            raise error if isinstance(error, Corrupt) else corrupt(place, None, error) from None

    def note_use(self, found: StoredVersion, now_s: int) -> None:
        """Note that a version was read, to the hour; where that can't be written it is left."""
        if now_s - found.row.used_s >= _USE_GRAIN_S:
            with contextlib.suppress(StoreError):
                self.catalog.set_used(found.summary.name, found.summary.version, now_s)

    def set_pinned(self, text: str, pinned: bool) -> StoredVersion:
        """Pin or unpin a version, durably."""
        found = self.resolve(text)
        self.catalog.set_pinned(found.summary.name, found.summary.version, pinned)
        return replace(found, summary=replace(found.summary, pinned=pinned))

    def addressed(self, text: str, *, all_versions: bool) -> list[StoredVersion]:
        """Return what is to be removed by a ref or id: one version, or all of a bare name.

        A version that can't be opened is there too, blank but for its name and number. Raises NotFound.
        """
        ref = parse_ref(text)
        rows = self.catalog.versions(ref.name)
        if all_versions and "@" not in text and rows:
            return [self._found_or_blank(ref.name, version, row) for version, row in rows]
        for version, row in rows:
            if ref.version == version:
                return [self._found_or_blank(ref.name, version, row)]
        return [self.resolve(text)]

    def check_free(self, ref: Ref, manifest_id: "ManifestId") -> StoredVersion | None:
        """Return the version that already has this label and content, None if the label is free; else Conflict."""
        for found in self.versions(ref.name) if ref.label else ():
            if found.summary.label == ref.label:
                if found.summary.id == manifest_id.hex():
                    return found
                raise Conflict(f"{ref.name}@{ref.label}", "the label is taken by other content")
        return None

    def _by_id(self, prefix: str) -> StoredVersion:
        found = [one for one in self.all() if one.summary.id.startswith(prefix)]
        if not found:
            raise NotFound(prefix, "no such name or id")
        if len({one.summary.id for one in found}) > 1:
            raise BadInput(prefix, f"{len(found)} ids start like this; give more digits")
        return max(found, key=lambda one: one.summary.created)

    def _open_unless_removed(self, version: int, row: VersionRow) -> StoredVersion | None:
        """Return a version, None if it was removed since its row was read; raise Corrupt if it can't be opened."""
        try:
            return self.opened(version, row)
        except Corrupt:
            if self._is_there(None, row):
                raise
            return None

    def _opened(self, name: str | None) -> Iterator[StoredVersion]:
        for version, row in self.catalog.versions(name):
            with contextlib.suppress(Corrupt):  # removed since, and its key with it; or see `unopened`
                yield self.opened(version, row)

    def _found_or_blank(self, name: str, version: int, row: VersionRow) -> StoredVersion:
        try:
            return self.opened(version, row)
        except Corrupt:
            return StoredVersion(Summary(name, version, None, "", "unknown", None, 0, "", row.pinned), row)

    def _is_there(self, name: str | None, row: VersionRow) -> bool:
        return any(other.place == row.place for _, other in self.catalog.versions(name))

    def opened(self, version: int, row: VersionRow) -> StoredVersion:
        """Return a version with its summary opened; raise Corrupt if that can't be done."""
        key = self._keys.key(row.place)
        try:
            packed = row.summary if key is None else unseal(key, _SUMMARY, row.summary)
            name, label, id_, kind, model, size, created = parse_json(packed)
        except (FormatError, ValueError, TypeError) as error:
            raise Corrupt("catalog", f"a version summary does not open ({error})") from None
        return StoredVersion(Summary(name, version, label, id_, kind, model, size, created, row.pinned), row)
