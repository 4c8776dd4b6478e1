"""Attach: what `arstore prefetch … -- CMD` staged, as tensors in CMD, with no copy, no key and no store to open."""

import atexit
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput, Corrupt, NotFound, StorageFailed, fresh
from ..tiers.device import DeviceTier, kind_of, parse_device
from ..tiers.extent import KEY, attach_extent, extent_path
from ..tiers.ipc import Handle, open_handle
from ..tiers.staged import StagedTensors
from ..tiers.tier import Held
from .open_files import allow_files

if TYPE_CHECKING:
    from .requests import Ready
    from .run import Run

SESSION_FORMAT = 1
_SESSION_MAX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class RunSession:
    """What a run says to its command: the tier, artifacts by name, and the keys of a plan's objects."""

    path: Path
    to: str
    artifacts: tuple[tuple[str, str], ...]
    keys: tuple[str, ...] = ()
    handles: Mapping[str, Handle] = field(default_factory=dict)  # of what is on an accelerator already, by key
    budget_bytes: int | None = None  # of the device

    @property
    def plan_path(self) -> Path:
        return self.path.with_suffix(".plan")

    @property
    def socket_path(self) -> Path:
        return self.path.with_suffix(".socket")

    def packed(self) -> bytes:
        artifacts = [{"name": name, "key": key} for name, key in self.artifacts]
        value = {"format": SESSION_FORMAT, "to": self.to, "artifacts": artifacts, "keys": self.keys}
        return json.dumps(value | {"handles": self.handles, "budget": self.budget_bytes}).encode()


class Staged(Mapping[str, StagedTensors]):
    """What stays in place for a whole run, by name; and the requests of its JOB or PLAN, one after the other."""

    def __init__(self, held: Mapping[str, Held], session: RunSession, run: "Run | None" = None) -> None:
        self._held, self._session, self._run = held, session, run

    def __getitem__(self, name: str) -> StagedTensors:
        return StagedTensors(self._held[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return f"Staged({', '.join(self)})"

    def requests(self) -> "Iterator[Ready]":
        """Yield each request of the plan when what it needs is in place; see `requests_of`.

        In the host tier the processes of a run share them: each request is given to one. On a device one process works
        through all. Raises BadInput if nothing was planned.
        """
        if self._run is not None:
            return iter(self._run)
        if not self._session.keys:
            raise BadInput("requests", "none were planned", hint="prefetch a JOB or a PLAN")
        from ..plan.planfile import read_plan
        from .requests import requests_of
        from .serve import Fed

        return requests_of(read_plan(self._session.plan_path), Fed(self._session.socket_path))


def attach(path: str | Path | None = None, *, to: str | None = None) -> Staged:
    """Return what is staged for this process, by name; by default what `$ARSTORE_STAGED` says.

    In the host tier nothing is copied. Tensors are writable: writes go to private copies. Everything stays in place
    while one of them is alive, whatever becomes of the stager. Where the run was staged `to` a device, everything is
    brought up to it now. Raises BadInput where nothing is staged, or planned for another tier; NotFound if it was
    released already, NoRoom; Fenced if another process carries out the plan on the device.
    """
    given = path or os.environ.get("ARSTORE_STAGED")
    if not given:
        raise BadInput("ARSTORE_STAGED", "is not set", hint="run this by 'arstore prefetch NAMES -- CMD'")
    session = read_session(Path(given))
    target = to or session.to
    if session.keys and kind_of(target) != kind_of(session.to):
        raise BadInput(f"to {target}", f"the plan is for {session.to}", hint="plan for that tier")
    allow_files(len(session.keys) + len(session.artifacts))
    if target == "host":
        return Staged({name: _extent(session, key) for name, key in session.artifacts}, session)
    device = parse_device(target)
    if session.keys:
        return _attach_run(session, device)
    staged = {key: _extent(session, key) for _, key in session.artifacts}
    return Staged(_on_device(session, device, staged), session)


def _on_device(session: RunSession, device: str, staged: Mapping[str, Held]) -> dict[str, Held]:
    """Return what is staged in the memory of a device: opened, where the stager has it there, else brought there."""
    if session.handles.keys() >= staged.keys() and device == parse_device(session.to):
        with suppress(StorageFailed):  # it can't be opened here: in a container of its own, perhaps
            return {name: open_handle(session.handles[key], staged[key]) for name, key in session.artifacts}
    tier = DeviceTier(device, session.budget_bytes)
    tier.make_room(sum(one.length_bytes for one in staged.values()), frozenset())
    return {name: tier.fill(key, staged[key]) for name, key in session.artifacts}


def _attach_run(session: RunSession, device: str) -> Staged:
    """Carry out the last lane of a plan in this process: from the host tier up to its device."""
    from ..plan.planfile import read_plan
    from .requests import labels_of
    from .run import Run
    from .serve import Fed

    plan = read_plan(session.plan_path)
    tier = DeviceTier(device, plan.job.tiers[0].capacity_bytes)
    run = Run(plan, [tier], session.keys, [None], below=Fed(session.socket_path, alone=True))
    atexit.register(run.close)  # its threads are at work in torch, and must not be when the interpreter goes
    run.__enter__()
    run.wait_until_placed()
    numbers = {name: number for number, name in labels_of(plan).items()}
    held, failed = run.lanes[0].placed(), run.lanes[0].failed
    for name, _ in session.artifacts:
        if error := failed.get(numbers[name]):
            raise fresh(error)
    return Staged({name: held[numbers[name]] for name, _ in session.artifacts}, session, run)


def _extent(session: RunSession, key: str) -> Held:
    return attach_extent(extent_path(session.path.parent, key), key)


def read_session(path: Path) -> RunSession:
    """Return what a session says; raise NotFound if what was staged is released."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_SESSION_MAX_BYTES))
        artifacts = tuple((str(one["name"]), str(one["key"])) for one in value["artifacts"])
        keys = tuple(map(str, value.get("keys", ())))
        named = (*(key for _, key in artifacts), *keys)
        if value["format"] != SESSION_FORMAT or not all(map(KEY.fullmatch, named)):
            raise ValueError("its format is not known")
        budget = value.get("budget")
        handles = {str(key): list(handle) for key, handle in value.get("handles", {}).items()}
        return RunSession(
            path, str(value.get("to", "host")), artifacts, keys, handles, None if budget is None else int(budget)
        )
    except FileNotFoundError:
        raise NotFound(str(path), "what was staged is released") from None
    except OSError as error:
        raise StorageFailed(str(path), (error.strerror or str(error)).lower()) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(str(path), f"is no session ({error})") from None
