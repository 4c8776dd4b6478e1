"""Requests: those of a running plan, one after the other, each with what it needs in place."""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence

from ..artifacts.refs import label_objects
from ..errors import StoreError, fresh
from ..plan.model import BLOCK, RequestId
from ..plan.planfile import Plan
from ..tiers.staged import StagedTensors
from .steps import Steps, Taken


class Ready(Mapping[str, StagedTensors]):
    """One request whose objects are in place until it is over: artifacts by name, as `attach` names them."""

    def __init__(self, id_: RequestId, taken: Taken, labels: Mapping[int, str], blocks: Sequence[int]) -> None:
        self.id = id_
        self._taken, self._blocks = taken, blocks
        own = set(blocks)
        self._numbers = {labels[number]: number for number in taken.held if number not in own}
        # What could not be staged, by its name, with the error that says why.
        self.failed: dict[str, StoreError] = {labels[number]: error for number, error in taken.failed.items()}

    @property
    def blocks(self) -> list[StagedTensors]:
        """The prefix blocks of its tokens that are in place, from the first on; the rest is to be computed."""
        found = []
        for number in self._blocks:
            if number not in self._taken.held:
                break
            found.append(StagedTensors(self._taken.held[number]))
        return found

    def __getitem__(self, name: str) -> StagedTensors:
        if error := self.failed.get(name):
            raise fresh(error)
        return StagedTensors(self._taken.held[self._numbers[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def release(self) -> None:
        """Let go of what it used; tensors of it that are still referenced keep their memory in use."""
        self._numbers.clear()
        self._taken.held.clear()


def requests_of(plan: Plan, steps: Steps) -> Generator[Ready, None, None]:
    """Yield the requests of a running plan, each when it is ready; several that iterate share them.

    One is over, and its objects may go, when the next one is asked for. One that is to come after others waits until
    they are over, whoever has them, so one thread must not have two iterators. Raises StorageFailed if the run has
    ended.
    """
    labels = labels_of(plan)
    blocks = {number for number, one in enumerate(plan.job.objects) if one.id.startswith(BLOCK)}
    while (step := steps.next()) is not None:
        request, process = plan.job.requests[plan.order[step]], os.getpid()
        try:
            own = [number for number in request.objects if number in blocks]
            ready = Ready(request.id, steps.take(step), labels, own)
            try:
                yield ready
            finally:
                ready.release()
        finally:
            if os.getpid() == process:  # the child of a fork does not speak for its parent
                steps.over(step)


def labels_of(plan: Plan) -> dict[int, str]:
    """Return what users call the objects of a plan, by number; see `label_objects`."""
    return dict(enumerate(label_objects([one.id for one in plan.job.objects]).values()))
