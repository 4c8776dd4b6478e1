"""Attach: gives CMD what `arstore prefetch … -- CMD` staged, as tensors. It needs no copy, no key and no store."""

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput, StorageFailed, fresh
from ..tiers.device import DeviceTier, kind_of, parse_device
from ..tiers.extent import attach_extent, extent_path
from ..tiers.ipc import open_handle
from ..tiers.staged import StagedTensors
from ..tiers.tier import Held
from .open_files import allow_files
from .session import RunSession, read_session

if TYPE_CHECKING:
    from .requests import Ready
    from .run import Run


class Attached(Mapping[str, StagedTensors]):
    """The objects that stay in place for a whole run, by name, and the requests of its JOB or PLAN."""

    def __init__(self, held: Mapping[str, Held], session: RunSession, run: "Run | None" = None) -> None:
        self._held, self._session, self._run = held, session, run

    def __getitem__(self, name: str) -> StagedTensors:
        return StagedTensors(self._held[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return f"Attached({', '.join(self)})"

    def requests(self) -> "Iterator[Ready]":
        """Yield each request of the plan when its objects are in place; see `requests_of`.

        In the host tier the processes of a run share the requests: each goes to one process. On a device one process
        works through all. Raises BadInput if nothing was planned.
        """
        if self._run is not None:
            return iter(self._run)
        if not self._session.keys:
            raise BadInput("requests", "none were planned", hint="prefetch a JOB or a PLAN")
        from ..plan.planfile import read_plan
        from .requests import requests_of
        from .serve import StepsClient

        return requests_of(read_plan(self._session.plan_path), StepsClient(self._session.socket_path))


def attach(path: str | Path | None = None, *, to: str | None = None) -> Attached:
    """Return the objects that are staged for this process, by name. The session is `path`, or else $ARSTORE_STAGED.

    In the host tier nothing is copied. Tensors are writable: writes go to private copies. An object stays in place
    while one of its tensors is alive, even if the stager ends. If the run is for a device, all objects are brought up
    to it now.

    Raises BadInput if nothing is staged, or if the plan is for another tier; NotFound if the objects were released
    already; NoRoom; Fenced if another process carries out the plan on the device.
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
        return Attached({name: _extent(session, key) for name, key in session.artifacts}, session)
    device = parse_device(target)
    if session.keys:
        return _attach_run(session, device)
    extents = {key: _extent(session, key) for _, key in session.artifacts}
    return Attached(_on_device(session, device, extents), session)


def _on_device(session: RunSession, device: str, extents: Mapping[str, Held]) -> dict[str, Held]:
    """Return staged objects in the memory of a device. If the stager has them there they are opened, else copied up."""
    if session.handles.keys() >= extents.keys() and device == parse_device(session.to):
        with suppress(StorageFailed):  # this process may be in a container that can't open them
            return {name: open_handle(session.handles[key], extents[key]) for name, key in session.artifacts}
    tier = DeviceTier(device, session.budget_bytes)
    tier.make_room(sum(extent.length_bytes for extent in extents.values()), frozenset())
    return {name: tier.fill(key, extents[key]) for name, key in session.artifacts}


def _attach_run(session: RunSession, device: str) -> Attached:
    """Carry out the last lane of a plan in this process: from the host tier up to its device."""
    from ..plan.planfile import read_plan
    from .requests import labels_of
    from .run import Run
    from .serve import StepsClient

    plan = read_plan(session.plan_path)
    tier = DeviceTier(device, plan.job.tiers[0].capacity_bytes)
    run = Run(plan, [tier], session.keys, [None], below=StepsClient(session.socket_path, alone=True))
    atexit.register(run.close)  # its threads use torch, and must have stopped when the interpreter ends
    run.__enter__()
    run.wait_until_placed()
    numbers = {name: number for number, name in labels_of(plan).items()}
    held, failed = run.lanes[0].held(), run.lanes[0].failed
    for name, _ in session.artifacts:
        if error := failed.get(numbers[name]):
            raise fresh(error)
    return Attached({name: held[numbers[name]] for name, _ in session.artifacts}, session, run)


def _extent(session: RunSession, key: str) -> Held:
    return attach_extent(extent_path(session.path.parent, key), key)
