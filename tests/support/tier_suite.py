"""The suite of tiers: what every place keeps to that holds objects, as store/tiers/tier.py promises it.

A behaviour is a function of a `Stocked` source, or of a `Place`, which is an empty tier. It knows of the tier what the
promise says and nothing else.
"""

import contextlib
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from arstore.formats.tensor import TensorSpan
from arstore.store.errors import Corrupt, Fenced, NoRoom, StorageFailed
from arstore.store.tiers.tier import Held, ObjectSource, Tier
from tests.support.command import PATIENCE_S
from tests.support.tier_faults import Faulty, Given, Met, Slow, given

CAPACITY_BYTES = 60_000
THIRD = CAPACITY_BYTES // 3
KEYS = [f"{number:x}" * 64 for number in range(10, 16)]
A, B, C, D = KEYS[:4]


# ---- objects


def odd_objects() -> list[Given]:
    """Return objects of no byte, of one, of strided and overlapping spans, and with names in every script."""
    strided = (TensorSpan("t", "F32", (3, 5), 0, 60, (1, 3)), TensorSpan("same", "I16", (30,), 0, 60, (1,)))
    gap = (TensorSpan("b", "U8", (1,), 64, 1), TensorSpan("none", "F32", (0, 4), 65, 0))
    named = (TensorSpan('层/ключ "é" \\\n\u2028🦜', "BF16", (7,), 0, 14),)
    return [
        Given("nothing@1", (), b""), given(1, "one@1"), Given("strided@2", strided + gap, secrets.token_bytes(65)),
        Given('имя/名前 "q"@12', named, secrets.token_bytes(14)), given(12_345, "large@3"),
    ]  # fmt: skip


def whole(held: Held, before: int = 0xAA) -> bytes:
    """Read an object into memory that holds something else."""
    return part(held, 0, held.length_bytes, before)


def part(held: Held, at: int, length: int, before: int = 0xAA) -> bytes:
    out = bytearray([before]) * length
    held.read(at, memoryview(out))
    return bytes(out)


# ---- every source


@dataclass(frozen=True, slots=True)
class Stocked:
    """A source and what is in it; `stranger` is the same place as another tenant has it."""

    source: ObjectSource
    objects: Mapping[str, Given]
    stranger: ObjectSource


def reads_whole_what_was_stored(stocked: Stocked) -> None:
    for key, wanted in stocked.objects.items():
        held = stocked.source.hold(key)
        assert held, wanted.name
        assert (held.name, held.length_bytes, tuple(held.spans)) == (
            wanted.name,
            wanted.length_bytes,
            tuple(wanted.spans),
        )
        assert whole(held) == whole(held, before=0x55) == wanted.content, wanted.name


def reads_any_part(stocked: Stocked) -> None:
    chance = random.Random(1)
    for key, wanted in stocked.objects.items():
        held, total = stocked.source.hold(key), wanted.length_bytes
        assert held
        edges = [at + off for at in range(0, total + 1, 1000) for off in (-1, 0, 1) if 0 <= at + off <= total]
        bounds = [sorted((chance.choice(edges), chance.choice([*edges, chance.randint(0, total)]))) for _ in range(20)]
        for first, stop in [[0, 0], [total, total], [max(total - 1, 0), total], *bounds]:
            assert part(held, first, stop - first) == wanted.content[first:stop], (wanted.name, first, stop)


def many_read_at_once(stocked: Stocked) -> None:
    def read(key: str) -> bool:
        held = stocked.source.hold(key)
        return held is not None and whole(held) == stocked.objects[key].content

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, list(stocked.objects) * 4))


def has_nothing_else(stocked: Stocked) -> None:
    assert stocked.source.hold("0" * 64) is None


def strangers_find_nothing(stocked: Stocked) -> None:
    for key in stocked.objects:
        assert stocked.stranger.hold(key) is None
    reads_whole_what_was_stored(stocked)


SOURCE_BEHAVIOURS: list[Callable[[Stocked], None]] = [
    reads_whole_what_was_stored, reads_any_part, many_read_at_once, has_nothing_else, strangers_find_nothing,
]  # fmt: skip


# ---- every tier


@dataclass(frozen=True, slots=True)
class Place:
    """An empty tier of CAPACITY_BYTES, and the same one `again`, as somebody else opens it."""

    tier: Tier
    again: Callable[[], Tier]
    stranger: Callable[[], Tier]
    files: Callable[[], list[str]] = list  # what lies about where it is
    outlives_us: bool = False  # so that another process finds what is in it
    _made: dict[str, Given] = field(default_factory=dict)

    def put(self, key: str, length: int = THIRD, ttl_s: float = 100.0) -> Given:
        """Bring an object of some bytes in, and let go of it."""
        self._made[key] = wanted = given(length, f"{key[:1]}@1")
        self.tier.fill(key, wanted, time.time() + ttl_s)
        return wanted

    def keys(self) -> str:
        """Return what is there, a letter for each."""
        found = "".join(one.key[0] for one in self.tier.residents())
        assert found == "".join(key[0] for key in KEYS if self.again().hold(key)), "it says what it can't give"
        return found

    def elsewhere(self, act: Callable[[Tier], object]) -> bool:
        """Let somebody else act on the tier, in another process if it can be seen there; return what it says."""
        if not self.outlives_us:
            return bool(act(self.again()))
        pid = os.fork()
        if not pid:
            code = 2
            with contextlib.suppress(BaseException):
                code = int(bool(act(self.again())))
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 1), f"it ended with {code}"
        return code == 1


def refuses(tier: Tier, length: int, *keep: str) -> bool:
    try:
        tier.make_room(length, frozenset(keep))
    except NoRoom:
        return True
    return False


def what_failed_leaves_nothing(place: Place) -> None:
    errors = [StorageFailed("x", "y"), Corrupt("x", "y"), NoRoom("x", "y"), KeyboardInterrupt(), MemoryError()]
    for error in errors:
        failed = 0
        for at in range(1, 100):
            with contextlib.suppress(type(error)):
                place.tier.fill(A, Met(wanted := given(), Faulty(error, at)), time.time() + 100)
                break
            failed += 1
            assert (place.keys(), place.files()) == ("", []), (error, at)
            assert not refuses(place.tier, CAPACITY_BYTES)
        assert 0 < failed < 99
        held = place.again().hold(A)
        assert held
        assert whole(held) == wanted.content
        del held
        assert place.tier.remove(A)


def what_is_held_stays_as_it_is(place: Place) -> None:
    wanted = place.put(A, ttl_s=-100)
    held = place.tier.hold(A)
    assert held
    assert not place.elsewhere(lambda tier: tier.remove(A))
    assert not place.elsewhere(lambda tier: tier.remove(A, expired_only=True))
    assert place.elsewhere(lambda tier: refuses(tier, CAPACITY_BYTES - THIRD + 1))
    place.elsewhere(lambda tier: tier.sweep())
    assert not place.elsewhere(lambda tier: refuses(tier, CAPACITY_BYTES - THIRD))
    assert whole(held) == wanted.content
    del held
    assert place.elsewhere(lambda tier: tier.remove(A)) or not place.outlives_us
    assert place.keys() == ""


def what_was_just_filled_is_held(place: Place) -> None:
    held = place.tier.fill(A, wanted := given(), 0.0)
    assert not place.elsewhere(lambda tier: tier.remove(A))
    assert whole(held) == wanted.content


def twice_the_same_key_is_one_object(place: Place) -> None:
    now = time.time()
    first = place.tier.fill(A, wanted := given(), now + 200)
    for until_s in (now + 100, now + 300):
        second = place.again().fill(A, Given(wanted.name, wanted.spans, wanted.content), until_s)
        assert whole(first) == whole(second) == wanted.content
        [one] = place.tier.residents()
        assert abs(one.expires_s - max(now + 200, until_s)) < 1
    assert refuses(place.tier, CAPACITY_BYTES - THIRD + 1)
    assert not refuses(place.tier, CAPACITY_BYTES - THIRD)
    del first
    assert not place.tier.remove(A), "the second is held"
    del second
    assert place.tier.remove(A)
    assert (place.keys(), place.files()) == ("", [])


def residents_are_what_is_there(place: Place) -> None:
    now, wanted = time.time(), {}
    for number, (key, one) in enumerate(zip(KEYS, odd_objects(), strict=False)):
        place.tier.fill(key, one, now + number * 100)
        wanted[key] = (one.name, one.length_bytes)
    for tier in (place.tier, place.again()):
        found = {one.key: (one.name, one.length_bytes) for one in tier.residents()}
        assert found == wanted
        assert all(abs(one.expires_s - now - KEYS.index(one.key) * 100) < 1 for one in tier.residents())
        assert tier.capacity_bytes == CAPACITY_BYTES
    assert place.tier.remove(B)
    assert place.tier.remove(B), "it is not there"
    assert place.keys() == "acde"


def room_is_made_to_the_byte(place: Place) -> None:
    for key, ttl_s in ((B, 100), (A, 200), (C, 300)):
        place.put(key, ttl_s=ttl_s)
    for length, left in ((0, "abc"), (1, "ac"), (THIRD, "ac"), (THIRD + 1, "c"), (2 * THIRD, "c"), (3 * THIRD, "")):
        place.tier.make_room(length, frozenset())
        assert place.keys() == left, length
    assert refuses(place.tier, CAPACITY_BYTES + 1)


def without_room_only_what_is_expired_goes(place: Place) -> None:
    for key, ttl_s in ((A, 300), (B, -100), (C, 200)):
        place.put(key, ttl_s=ttl_s)
    held = place.tier.hold(C)
    assert refuses(place.tier, 2 * THIRD + 1)
    assert place.keys() in ("abc", "ac")
    assert not refuses(place.tier, 2 * THIRD)
    assert place.keys() == "c"
    assert held


def what_is_used_or_kept_never_goes(place: Place) -> None:
    made = {key: place.put(key, ttl_s=ttl_s) for key, ttl_s in ((A, -100), (B, -100), (C, 100))}
    held = place.tier.hold(A)
    assert refuses(place.again(), 2 * THIRD, B)
    assert not refuses(place.again(), THIRD, B)
    assert place.keys() == "ab"
    assert held
    assert whole(held) == made[A].content


def time_is_extended_and_never_shortened(place: Place) -> None:
    place.put(A, ttl_s=500)
    for ttl_s, stays_s in ((100, 500), (700, 700), (0, 700), (None, 700)):
        assert place.again().hold(A, *([] if ttl_s is None else [time.time() + ttl_s]))
        [one] = place.tier.residents()
        assert abs(one.expires_s - time.time() - stays_s) < 50


def with_expired_only_what_is_not_expired_stays(place: Place) -> None:
    for key, ttl_s in ((A, -1), (B, 100)):
        place.put(key, ttl_s=ttl_s)
    assert place.tier.remove(A, expired_only=True)
    assert not place.tier.remove(B, expired_only=True)
    assert place.keys() == "b"
    assert place.tier.remove(B)
    assert place.keys() == ""


def a_sweep_takes_what_is_expired_and_unused(place: Place) -> None:
    for key, ttl_s in ((A, -1), (B, 100), (C, -1)):
        place.put(key, ttl_s=ttl_s)
    held = place.tier.hold(C)
    place.again().sweep()
    assert place.keys() == "bc"
    del held
    place.again().sweep()
    assert place.keys() == "b"


def one_at_a_time_brings_a_key(place: Place) -> None:
    tried: list[str] = []

    def bring(wait: bool) -> None:
        try:
            with place.again().filling(A, wait=wait):
                tried.append("came in")
        except Fenced:
            tried.append("fenced")

    with place.tier.filling(A, wait=False):
        for wait in (False, True):
            thread = threading.Thread(target=bring, args=(wait,), daemon=True)
            thread.start()
            thread.join(0.05 if wait else PATIENCE_S)
        assert tried == ["fenced"]
    thread.join(PATIENCE_S)
    assert tried == ["fenced", "came in"]
    assert place.files() == []


def racers_bring_it_once(place: Place) -> None:
    wanted, brought = given(), list[int]()

    def bring(number: int) -> bool:
        tier = place.again()
        with tier.filling(A, wait=True):
            if (held := tier.hold(A)) is None:
                brought.append(number)
                held = tier.fill(A, Met(wanted, Slow()))
        return whole(held) == wanted.content

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(bring, range(6)))
    assert len(brought) == 1


def readers_beside_stagers_never_see_other_bytes(place: Place) -> None:
    wanted = [given(THIRD // 4), given(THIRD // 4)]
    until, turns = time.monotonic() + 0.3, list[int]()

    def going_on() -> bool:
        return time.monotonic() < until + (0 if turns else PATIENCE_S)

    def read(number: int) -> bool:
        tier, same = place.again(), True
        while going_on() and same:
            if held := tier.hold(KEYS[number % 2]):
                turns.append(number)
                same = whole(held) == wanted[number % 2].content
        return same

    def bring(number: int) -> bool:
        tier = place.again()
        while going_on():
            with tier.filling(KEYS[number % 2], wait=True):
                tier.fill(KEYS[number % 2], Met(wanted[number % 2], Slow()))
            time.sleep(0.001)
            tier.remove(KEYS[number % 2])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(one.result() for one in [pool.submit(act, n) for n in range(4) for act in (read, bring)])
    assert turns


TIER_BEHAVIOURS: list[Callable[[Place], None]] = [
    what_failed_leaves_nothing, what_is_held_stays_as_it_is, what_was_just_filled_is_held,
    twice_the_same_key_is_one_object, residents_are_what_is_there, room_is_made_to_the_byte,
    without_room_only_what_is_expired_goes, what_is_used_or_kept_never_goes,
    time_is_extended_and_never_shortened, with_expired_only_what_is_not_expired_stays,
    a_sweep_takes_what_is_expired_and_unused,
    one_at_a_time_brings_a_key, racers_bring_it_once, readers_beside_stagers_never_see_other_bytes,
]  # fmt: skip
