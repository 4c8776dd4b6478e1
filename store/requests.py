"""Requests: those of a running plan, one after the other, each with what it needs in place."""

from collections.abc import Iterator, Mapping, Sequence

from .errors import StoreError
from .lane import Steps, Taken
from .planfile import Plan
from .refs import label_artifacts
from .staged import StagedTensors
from .staging import BLOCK, RequestId


class Ready(Mapping[str, StagedTensors]):
    """One request whose objects are in place until it is released: artifacts by name, as `attach` names them."""

    def __init__(self, id_: RequestId, taken: Taken, labels: Mapping[int, str], blocks: Sequence[int]) -> None:
        self.id = id_
        self._taken, self._labels, self._blocks = taken, labels, blocks
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
            raise error
        for number, held in self._taken.held.items():
            if self._labels[number] == name:
                return StagedTensors(held)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (self._labels[number] for number in self._taken.held if number not in self._blocks)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def release(self) -> None:
        """Let go of what it used; tensors of it that are still referenced keep their memory in use."""
        self._taken.held.clear()


class Requests:
    """The requests of a running plan in its order. Several threads, or processes, that iterate share them."""

    def __init__(self, plan: Plan, steps: Steps) -> None:
        self._plan, self._steps = plan, steps
        self._labels = labels_of(plan)

    def __iter__(self) -> Iterator[Ready]:
        """Yield each request when it is ready; it is over, and its objects may go, when the next one is asked for.

        Raises StorageFailed if the run has ended.
        """
        job, blocks = self._plan.job, {n for n, o in enumerate(self._plan.job.objects) if o.id.startswith(BLOCK)}
        while (step := self._steps.next()) is not None:
            request = job.requests[self._plan.order[step]]
            ready = Ready(request.id, self._steps.take(step), self._labels, [n for n in request.objects if n in blocks])
            try:
                yield ready
            finally:
                ready.release()
                self._steps.over(step)


def labels_of(plan: Plan) -> dict[int, str]:
    """Return what users call the objects of a plan: a version by its name alone where it is the only one of it."""
    labels = label_artifacts((*plan.named(number), one.id) for number, one in enumerate(plan.job.objects))
    return {number: labels[one.id] for number, one in enumerate(plan.job.objects)}
