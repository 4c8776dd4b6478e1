"""Requests: the requests of a running plan, one after the other, each with its objects in place."""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

from ..artifacts.refs import label_objects
from ..errors import StoreError, fresh
from ..plan.model import BLOCK, RequestId
from ..plan.planfile import Plan
from ..tiers.staged import StagedTensors
from .steps import StepObjects, Steps


class Ready(Mapping[str, StagedTensors]):
    """One request whose objects are in place until it is over: its artifacts, by the names that `attach` uses."""

    def __init__(
        self, id_: RequestId, taken: StepObjects, labels: Mapping[int, str], blocks: Mapping[int, range]
    ) -> None:
        """Take what came of a request's objects, their names, and for each of its prefix blocks its token positions."""
        self.id = id_
        self._taken, self._positions = taken, blocks
        self._numbers = {labels[number]: number for number in taken.held if number not in blocks}
        # Objects that could not be staged, by name, with the error that says why.
        self.failed: dict[str, StoreError] = {labels[number]: error for number, error in taken.failed.items()}

    @property
    def blocks(self) -> list[StagedTensors]:
        """The prefix blocks of its tokens that are in place, from the first on, up to the first that is not.

        A plan may have the front computed while later blocks are loaded: `placed_blocks` has those, too.
        """
        blocks = []
        for number in self._positions:
            if number not in self._taken.held:
                break
            blocks.append(StagedTensors(self._taken.held[number]))
        return blocks

    @property
    def placed_blocks(self) -> dict[range, StagedTensors]:
        """Every prefix block of its tokens that is in place, by the positions of its tokens. There may be gaps.

        A block is right only beneath the very tokens before it; where these are in a gap, compute them first.
        """
        held = self._taken.held
        return {at: StagedTensors(held[number]) for number, at in self._positions.items() if number in held}

    @property
    def to_compute(self) -> list[range]:
        """The positions of the tokens whose KV must be computed, in order."""
        gaps: list[range] = []
        for number, at in self._positions.items():
            if number in self._taken.held:
                continue
            start = gaps.pop().start if gaps and gaps[-1].stop == at.start else at.start
            gaps.append(range(start, at.stop))
        return gaps

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
            ready = Ready(request.id, steps.take(step), labels, _positions(plan, own_blocks))
            try:
                yield ready
                done = True  # its user asks for the next one, and neither left the loop nor failed in it
            finally:
                ready.release()
        finally:
            if os.getpid() == process:  # after a fork, the step is the parent's
                steps.finish(step, done=done)


def _positions(plan: Plan, blocks: Sequence[int]) -> dict[int, range]:
    """Return the token positions of a request's prefix blocks, which come in order."""
    ends = [*accumulate((plan.job.objects[number].tokens for number in blocks), initial=0)]
    return {number: range(start, stop) for number, (start, stop) in zip(blocks, pairwise(ends), strict=True)}


def labels_of(plan: Plan) -> dict[int, str]:
    """Return the names by which users know the objects of a plan, by number; see `label_objects`."""
    return dict(enumerate(label_objects([object_.id for object_ in plan.job.objects]).values()))
