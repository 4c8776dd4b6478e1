"""Requests: the requests of a running plan, one after the other, each with its objects in place."""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence

from ..artifacts.refs import label_objects
from ..errors import StoreError, fresh
from ..plan.model import BLOCK, RequestId
from ..plan.planfile import Plan
from ..tiers.staged import StagedTensors
from .steps import StepObjects, Steps


class Ready(Mapping[str, StagedTensors]):
    """One request whose objects are in place until it is over: its artifacts, by the names that `attach` uses."""

    def __init__(self, id_: RequestId, taken: StepObjects, labels: Mapping[int, str], blocks: Sequence[int]) -> None:
        self.id = id_
        self._taken, self._blocks = taken, blocks
        is_block = set(blocks)
        self._numbers = {labels[number]: number for number in taken.held if number not in is_block}
        # Objects that could not be staged, by name, with the error that says why.
        self.failed: dict[str, StoreError] = {labels[number]: error for number, error in taken.failed.items()}

    @property
    def blocks(self) -> list[StagedTensors]:
        """The prefix blocks of its tokens that are in place, from the first on. All later ones must be computed."""
        blocks = []
        for number in self._blocks:
            if number not in self._taken.held:
                break
            blocks.append(StagedTensors(self._taken.held[number]))
        return blocks

    def __getitem__(self, name: str) -> StagedTensors:
        if error := self.failed.get(name):
            raise fresh(error)
        return StagedTensors(self._taken.held[self._numbers[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def release(self) -> None:
        """Drop its objects. A tensor of them that is still referenced keeps its object in use."""
        self._numbers.clear()
        self._taken.held.clear()


def requests_of(plan: Plan, steps: Steps) -> Generator[Ready, None, None]:
    """Yield the requests of a running plan, each when it is ready. Several iterators share them.

    Asking for the next request ends the last one, so its objects may go. A request that comes after others waits until
    they are over, in whatever thread; so one thread must not have two iterators. Raises StorageFailed if the run has
    ended.
    """
    labels = labels_of(plan)
    blocks = {number for number, object_ in enumerate(plan.job.objects) if object_.id.startswith(BLOCK)}
    while (step := steps.next()) is not None:
        request, process, done = plan.job.requests[plan.order[step]], os.getpid(), False
        try:
            own_blocks = [number for number in request.objects if number in blocks]
            ready = Ready(request.id, steps.take(step), labels, own_blocks)
            try:
                yield ready
                done = True  # its user asks for the next one, and neither left the loop nor failed in it
            finally:
                ready.release()
        finally:
            if os.getpid() == process:  # after a fork, the step is the parent's
                steps.finish(step, done=done)


def labels_of(plan: Plan) -> dict[int, str]:
    """Return the names by which users know the objects of a plan, by number; see `label_objects`."""
    return dict(enumerate(label_objects([object_.id for object_ in plan.job.objects]).values()))
