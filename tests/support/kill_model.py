"""What the store of the kill loop must hold, by what processes were told before they were killed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.kill_journal import REBUILD, Deed
from tests.support.kill_worker import FENCED, TENANT, Ref


@dataclass
class Version:
    """What a version must hold. `pinned` is None while a kill leaves it open."""

    content: list[int]
    role: int
    pinned: bool | None = False
    slot: int = 0  # of its record
    slots: dict[int, int] = field(default_factory=dict)  # of its contents that only one put stored


class Model:
    """Versions by (tenant, name, number), and what is open: commands that nobody was told the end of."""

    def __init__(self) -> None:
        self.versions: dict[Ref, Version] = {}
        self.tenants = {TENANT}
        self.past: Sequence[Deed] = ()
        self.open: list[Deed] = []
        self.late: list[Deed] = []  # killed puts without a trace: a rebuild takes in what they had written whole
        self.given: set[Ref] = set()  # numbers of names that are never erased: none is given twice
        self.destroyed: set[int] = set()  # slots of the default tenant whose keys are gone for good

    @property
    def may_go(self) -> set[Ref]:
        """What a command that was not acknowledged was to remove."""
        return {ref for deed in self.open for ref in deed.drops}

    def begin(self, deeds: Sequence[Deed]) -> None:
        """Take in what was done since the last time."""
        self.late = [deed for deed in (*self.late, *self.open) if deed.brings and not deed.came]
        self.past, self.open = deeds, []
        for deed in deeds:
            self.apply(deed)

    def apply(self, deed: Deed) -> None:
        """Do to the model what a command did; where it was not acknowledged it is open what that was."""
        if deed.code == FENCED:
            return  # nothing was published
        sure = deed.code == 0
        if deed.kind == REBUILD:  # pins are not in segments, and neither are numbers that nothing has any more
            for version in self.versions.values():
                version.pinned = version.pinned and (False if sure else None)
            self.given.clear()
        if deed.pins and deed.pins in self.versions:
            self.versions[deed.pins].pinned = deed.kind == "pin" if sure else None
        if not sure:
            self.open.append(deed)
            return
        if deed.kind in ("tenant add", "tenant rm"):
            (self.tenants.add if deed.kind == "tenant add" else self.tenants.discard)(deed.words[2])
        for ref in deed.drops:
            self.drop(ref, deed.kind)
        if deed.brings:
            tenant, name, content = deed.brings
            self.add((tenant, name, deed.answer["version"]), content, deed)

    def come(self, ref: Ref, content: list[int]) -> None:
        """Take in a version that nobody was told of: it must be what a killed command was about to make."""
        rebuilt = any(deed.kind == REBUILD for deed in self.past)
        for deed in (*self.open, *(self.late if rebuilt else ())):
            if deed.brings and not deed.came:
                tenant, name, wanted = deed.brings
                if ref[:2] == (tenant, name) and content == sorted(wanted):
                    self.add(ref, content, deed)
                    return
        raise AssertionError(f"{ref} is there, which nobody put")

    def add(self, ref: Ref, content: list[int], deed: Deed) -> None:
        """Take in a version that a command made."""
        deed.came = ref
        if deed.kind == "tag" and ref in self.versions:
            return
        assert ref not in self.given, f"the number of {ref} was given twice"
        assert ref not in self.versions or ref in self.may_go, f"{ref} took the place of another"
        if ref[1] in ("both", "alone"):
            self.given.add(ref)
        self.versions[ref] = Version(content, deed.role, "--pin" in deed.words)

    def drop(self, ref: Ref, kind: str) -> None:
        """Forget a version, and note which keys went with it for good."""
        version = self.versions.pop(ref)
        if ref[0] != TENANT or not version.slot:  # not the tenant whose keys are looked at, or never seen
            return
        if kind in ("rm", "erase"):
            self.destroyed.add(version.slot)
        if kind == "erase":
            needed = {n for other in self.versions.values() for n in other.content}
            needed.update(n for deed in self.open if deed.brings for n in deed.brings[2])
            self.destroyed.update(slot for n, slot in version.slots.items() if n not in needed)
