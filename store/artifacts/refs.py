"""Refs: how names, versions and labels are written."""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import BadInput

NAME_MAX_BYTES = 512
LABEL_MAX_BYTES = 128
_NAME = re.compile(r"[A-Za-z0-9._/-]+")


@dataclass(frozen=True, slots=True)
class Ref:
    """A name and, where it was given, a version number or a label."""

    name: str
    version: int | None = None
    label: str | None = None


def parse_ref(text: str) -> Ref:
    """Return the ref written as NAME or NAME@VERSION; raise BadInput if it is not one."""
    name, at, version = text.partition("@")
    if not _NAME.fullmatch(name) or len(name) > NAME_MAX_BYTES:
        raise BadInput(repr(text[:80]), f"a name is 1 to {NAME_MAX_BYTES} of A-Z a-z 0-9 . _ / -")
    if not at:
        return Ref(name)
    if not _NAME.fullmatch(version) or len(version) > LABEL_MAX_BYTES:
        raise BadInput(repr(text[:80]), "a version is a number or a label of A-Z a-z 0-9 . _ / -")
    if version.isdecimal():
        if not 0 < int(version) < 1 << 32:
            raise BadInput(repr(text[:80]), "no such version number")
        return Ref(name, version=int(version))
    return Ref(name, label=version)


def parse_new_ref(text: str) -> Ref:
    """Return the ref written as NAME or NAME@LABEL, for a new version; raise BadInput if it is not one."""
    ref = parse_ref(text)
    if ref.version is not None:
        raise BadInput(text, "version numbers are given by the store; use a label")
    # Older stores may hold such names, and they are still read. But a path or a flag is what programs take them for.
    if any(part in ("", ".", "..") or part.startswith("-") for part in f"{ref.name}/{ref.label or 'none'}".split("/")):
        raise BadInput(
            repr(text[:80]), "between slashes there is a part that is empty, '.' or '..', or begins with '-'"
        )
    return ref


def split_object(id_: str) -> tuple[str, int | None]:
    """Return the name and the version number of the object id NAME@N. Any other id is a name without a number."""
    name, _, version = id_.rpartition("@")
    return (name, int(version)) if name and version.isdecimal() and len(version) <= 10 else (id_, None)


def label_objects(ids: Collection[str]) -> dict[str, str]:
    """Return for each object id what users call it: the name alone if no other id here has that name, else the id."""
    counts = Counter(split_object(id_)[0] for id_ in set(ids))
    return {id_: name if counts[name := split_object(id_)[0]] == 1 else id_ for id_ in ids}
