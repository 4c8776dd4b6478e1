"""Retention: which versions may go. Pure, so checked against a second reading of its rules."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.formats.catalog import Place, VersionRow
from arstore.formats.digest import Digest
from arstore.formats.manifest import BlobName
from arstore.store.artifacts.names import StoredVersion, Summary
from arstore.store.maintenance.retention import KEEP_ALL, Retention, choose

NOW_S = int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
DAY_S, WEEK_S = 24 * 3600, 7 * 24 * 3600
PLACE = Place(1, 4096, 1, 100, 116, bytes(16), 1 << 20, 0, 1)


def version(
    name: str,
    number: int,
    *,
    age_s: int = 0,
    used_ago_s: int | None = None,
    kind: str = "weights",
    pinned: bool = False,
    label: str | None = None,
) -> StoredVersion:
    created = datetime.fromtimestamp(NOW_S - age_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    summary = Summary(name, number, label, f"{number:064x}", kind, None, 0, created, pinned)
    return StoredVersion(summary, VersionRow(PLACE, pinned, b"", 0 if used_ago_s is None else NOW_S - used_ago_s))


def blob(number: int, length: int = 100) -> BlobName:
    return BlobName(Digest(number.to_bytes(32, "big")), length)


def chosen(
    versions: Iterable[StoredVersion], wanted: Retention, needs: dict[str, list[BlobName]] | None = None
) -> list[str]:
    def blobs_of(found: StoredVersion) -> list[BlobName]:
        return (needs or {}).get(found.text, [])

    return [found.text for found in choose(list(versions), wanted, NOW_S, blobs_of)]


FIVE = [version("model", n, age_s=(5 - n) * 10 * DAY_S) for n in range(1, 6)]  # 40, 30, 20, 10, 0 days old


def test_nothing_asked_nothing_dropped() -> None:
    assert chosen(FIVE, KEEP_ALL) == []


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (Retention(keep_last=2), {4, 5}),
        (Retention(keep_last=0), {5}),
        (Retention(keep_last=0, drop_last=True), set()),
        (Retention(keep_last=9), {1, 2, 3, 4, 5}),
        (Retention(keep_within_s=15 * DAY_S), {4, 5}),
        (Retention(keep_within_s=20 * DAY_S), {3, 4, 5}),
        (Retention(keep_within_s=0), {5}),
        (Retention(keep_within_s=0, drop_last=True), {5}),  # made this very second
        (Retention(keep_last=1, keep_within_s=25 * DAY_S), {3, 4, 5}),  # what either rule keeps is kept
        (Retention(keep_last=4, keep_within_s=5 * DAY_S), {2, 3, 4, 5}),
    ],
)
def test_by_count_and_age(wanted: Retention, kept: set[int]) -> None:
    assert set(chosen(reversed(FIVE), wanted)) == {f"model@{n}" for n in range(1, 6) if n not in kept}


def test_age_is_counted_back_from_the_newest_version() -> None:
    """A base model that was put 31 days ago stays under a rule of 30 days, and so do those that were near it."""
    versions = [version("base", n, age_s=(60 - n) * DAY_S) for n in (1, 20, 29)]
    assert chosen(versions, Retention(keep_within_s=15 * DAY_S)) == ["base@1"]
    everything = ["base@29", "base@20", "base@1"]
    assert chosen(versions, Retention(keep_within_s=15 * DAY_S, drop_last=True)) == everything


def test_no_rule_empties_a_store_by_itself() -> None:
    versions = [version(name, 1, age_s=400 * DAY_S) for name in "abcdef"]
    for wanted in (Retention(keep_within_s=30), Retention(keep_last=0), Retention(0, 0)):
        assert chosen(versions, wanted) == []


def test_what_is_dropped_for_room_is_enough_and_no_more() -> None:
    """Not a small file, an adapter and the model in use before the one that would have done."""
    used = {"note": 30, "adapter": 20, "old": 9, "model": 0}
    versions = [version(name, 1, age_s=40 * DAY_S, used_ago_s=days * DAY_S) for name, days in used.items()]
    lengths = {"note": 123, "adapter": 50_000_000, "old": 2_300_000_000, "model": 2_000_000_000}
    needs = {f"{name}@1": [blob(n, length)] for n, (name, length) in enumerate(lengths.items())}
    assert chosen(versions, Retention(max_bytes=2_500_000_000), needs) == ["old@1"]
    assert chosen(versions, Retention(max_bytes=4_300_000_200), needs) == ["adapter@1"]
    assert chosen(versions, Retention(max_bytes=4_350_000_100), needs) == ["note@1"]
    assert set(chosen(versions, Retention(max_bytes=100), needs)) == {f"{name}@1" for name in used}


def test_each_name_counts_for_itself() -> None:
    versions = [version(name, n) for name in ("a", "b") for n in (1, 2, 3)]
    assert sorted(chosen(versions, Retention(keep_last=1))) == ["a@1", "a@2", "b@1", "b@2"]


def test_a_pin_beats_every_rule() -> None:
    versions = [version("model", n, age_s=99 * DAY_S, pinned=n == 1) for n in (1, 2)]
    needs = {"model@1": [blob(1)], "model@2": [blob(2)]}
    assert chosen(versions, Retention(0, 0, 0), needs) == ["model@2"]
    assert chosen(versions, Retention(0, 0, None), needs) == []  # the newest one


def test_a_label_is_as_good_as_a_pin() -> None:
    versions = [version("model", n, age_s=99 * DAY_S, label="release" if n == 1 else None) for n in (1, 2, 3)]
    needs = {f"model@{n}": [blob(n)] for n in (1, 2, 3)}
    for wanted in (Retention(keep_last=1), Retention(max_bytes=200)):
        assert chosen(versions, wanted, needs) == ["model@2"], wanted
    assert chosen(versions, Retention(max_bytes=0), needs) == ["model@2", "model@3"]
    assert chosen(versions, Retention(keep_within_s=0, drop_last=True), needs) == ["model@3", "model@2"]


def test_the_least_recently_used_goes_first() -> None:
    versions = [
        version("old", 1, age_s=100 * DAY_S),
        version("read", 1, age_s=100 * DAY_S, used_ago_s=DAY_S),
        version("new", 1, age_s=2 * DAY_S),
    ]
    needs = {found.text: [blob(n)] for n, found in enumerate(versions)}
    assert chosen(versions, Retention(max_bytes=250), needs) == ["old@1"]
    assert chosen(versions, Retention(max_bytes=150), needs) == ["old@1", "new@1"]
    assert chosen(versions, Retention(max_bytes=0), needs) == ["old@1", "new@1", "read@1"]
    assert chosen(versions, Retention(max_bytes=300), needs) == []


@pytest.mark.parametrize("costly", ["kv", "intermediate"])
def test_what_was_computed_is_worth_four_times_what_is_fetched(costly: str) -> None:
    """Four times is two half-lives of a week each."""
    for age_s, first in ((2 * WEEK_S - DAY_S, "fetched@1"), (2 * WEEK_S + DAY_S, "computed@1")):
        both_s = 2 * DAY_S  # what was used within a day goes last
        versions = [version("computed", 1, age_s=age_s + both_s, kind=costly), version("fetched", 1, age_s=both_s)]
        needs = {"computed@1": [blob(1)], "fetched@1": [blob(2)]}
        assert chosen(versions, Retention(max_bytes=100), needs) == [first]


def test_value_is_per_byte() -> None:
    """A large version goes no sooner than a small one of the same age: ties are broken by name."""
    versions = [version("a", 1), version("b", 1)]
    needs = {"a@1": [blob(1, 10)], "b@1": [blob(2, 10_000)]}
    assert chosen(versions, Retention(max_bytes=10_005), needs) == ["a@1"]


def test_a_clock_behind_the_versions_is_no_trouble() -> None:
    versions = [version("future", 1, age_s=-400 * DAY_S), version("now", 1)]
    needs = {"future@1": [blob(1)], "now@1": [blob(2)]}
    assert len(chosen(versions, Retention(max_bytes=100, keep_last=1, keep_within_s=DAY_S), needs)) == 1


def test_what_the_rules_drop_makes_room_first() -> None:
    versions = [version("model", 1), version("model", 2), version("other", 1, age_s=9 * DAY_S)]
    needs = {"model@1": [blob(1)], "model@2": [blob(2)], "other@1": [blob(3)]}
    assert chosen(versions, Retention(keep_last=1, max_bytes=200), needs) == ["model@1"]


@dataclass(frozen=True)
class Case:
    versions: list[StoredVersion]
    needs: dict[str, list[BlobName]]
    wanted: Retention


@st.composite
def cases(draw: st.DrawFn) -> Case:
    versions = []
    for name in ("a", "b", "c"):
        for number in range(1, 1 + draw(st.integers(0, 4))):
            versions.append(
                version(
                    name,
                    number,
                    age_s=draw(st.integers(-5, 60)) * DAY_S,
                    used_ago_s=draw(st.one_of(st.none(), st.integers(0, 60 * DAY_S))),
                    kind=draw(st.sampled_from(["weights", "kv", "intermediate", "file"])),
                    pinned=draw(st.booleans()),
                    label=draw(st.sampled_from([None, None, "label"])),
                )
            )
    lengths = {n: draw(st.integers(1, 1000)) for n in range(6)}
    some = st.lists(st.sampled_from(range(6)), max_size=5)  # a blob may stand in a manifest more than once
    needs = {found.text: [blob(n, lengths[n]) for n in draw(some)] for found in versions}
    limit = st.one_of(st.none(), st.integers(0, 3000))
    wanted = Retention(
        draw(st.one_of(st.none(), st.integers(0, 4))),
        draw(st.one_of(st.none(), st.integers(0, 60 * DAY_S))),
        draw(limit),
        draw(st.booleans()),
    )
    return Case(draw(st.permutations(versions)), needs, wanted)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_rule_holds(case: Case) -> None:
    dropped = chosen(case.versions, case.wanted, case.needs)
    by_text = {found.text: found for found in case.versions}
    assert len(set(dropped)) == len(dropped)
    assert not any(is_kept(by_text[text]) for text in dropped)
    outdated = {found.text for found in case.versions if is_outdated(found, case)}
    assert outdated <= set(dropped)
    limit = case.wanted.max_bytes
    if limit is None:
        assert set(dropped) == outdated
        return
    evicted = [text for text in dropped if text not in outdated]
    left = [text for text in by_text if text not in dropped]
    rest = [text for text in left if not is_kept(by_text[text])]
    assert size(case, left) <= limit or not rest
    if size(case, left) <= limit:
        for text in evicted:
            assert size(case, [*left, text]) > limit, "one more than is needed"
        if any(map(is_fresh, map(by_text.__getitem__, evicted))):
            stale = [text for text in by_text if not is_fresh(by_text[text]) and not is_kept(by_text[text])]
            assert size(case, [text for text in by_text if text not in {*outdated, *stale}]) > limit


def is_fresh(found: StoredVersion) -> bool:
    return min(NOW_S - created_s(found), NOW_S - found.row.used_s) < DAY_S


def size(case: Case, texts: Iterable[str]) -> int:
    return sum(one.length for one in {need for text in texts for need in case.needs[text]})


def created_s(found: StoredVersion) -> float:
    return datetime.fromisoformat(found.summary.created).timestamp()


def is_kept(found: StoredVersion) -> bool:
    return found.summary.pinned or bool(found.summary.label)


def is_outdated(found: StoredVersion, case: Case) -> bool:
    last, within_s = case.wanted.keep_last, case.wanted.keep_within_s
    if (last is None and within_s is None) or is_kept(found):
        return False
    own = [other for other in case.versions if other.summary.name == found.summary.name]
    newest = max(own, key=lambda other: other.summary.version)
    newer = sum(other.summary.version > found.summary.version for other in own)
    if not newer and not case.wanted.drop_last:
        return False
    from_s = NOW_S if case.wanted.drop_last else created_s(newest)
    kept_by_count = last is not None and newer < last
    kept_by_age = within_s is not None and from_s - created_s(found) <= within_s
    return not (kept_by_count or kept_by_age)
