"""The pickle of a torch checkpoint as a tree of plain values: read, never run.

Invariant: nothing is imported, called or built but the stand-ins of torch_values. Names off the list there
and opcodes off the list here are refused: a hostile pickle costs time and memory within the limits, no more.

The tree holds dicts as `Mapping`, lists, tuples, and `StoredTensor`; numbers and strings are kept because
sizes and names are made of them; every other value is None.
"""

import pickletools

from ..errors import FormatError
from .torch_values import ALLOWED, Global, Mapping, Storage, StoredTensor, call, open_storage

PICKLE_MAX_BYTES = 256 << 20
# A tensor takes about thirty opcodes; every opcode builds at most one object, so this bounds the memory.
OPCODES_MAX_COUNT = 10_000_000

_PUSH_ARGUMENT = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "SHORT_BINSTRING",
}  # fmt: skip
_PUSH_CONSTANT = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_SET": None,
    "SHORT_BINBYTES": None, "BINBYTES": None, "BINBYTES8": None,
}  # fmt: skip
_MEMOIZE = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
_RECALL = {"BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FILL = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


def read_pickle(pickled: bytes) -> object:
    """Return the tree of values that a checkpoint's pickle describes.

    Raises FormatError for a name off torch's weights-only list, an opcode off the list here, malformed input.
    """
    if len(pickled) > PICKLE_MAX_BYTES:
        raise FormatError(f"torch pickle of {len(pickled)} bytes, at most {PICKLE_MAX_BYTES} are allowed")
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count >= OPCODES_MAX_COUNT:
                raise FormatError(f"torch pickle has more than {OPCODES_MAX_COUNT} opcodes")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except FormatError:
        raise
    except (ValueError, IndexError, KeyError):  # genops' own, a pop of an empty stack, an unknown memo
        raise FormatError("torch pickle is malformed") from None


class _Machine:
    """The stack and memo of one pickle, moved one opcode at a time."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self._below: list[list[object]] = []
        self._memo: dict[object, object] = {}
        self._storages: dict[str, Storage] = {}

    def step(self, name: str, argument: object) -> None:
        """Apply one opcode; raise FormatError if it or its operands are not allowed."""
        if name in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif name in _MEMOIZE:
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _RECALL:
            self.stack.append(self._memo[argument])
        elif name in _PUSH_CONSTANT:
            self.stack.append(_PUSH_CONSTANT[name])
        elif name in _TUPLES:
            self._make_tuple(_TUPLES[name])
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            self.stack.append([] if name == "EMPTY_LIST" else Mapping())
        elif name == "MARK":
            self._below.append(self.stack)
            self.stack = []
        elif name in _FILL:
            self._fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._push_name(argument)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = self.stack.pop()
            self.stack.append(call(self.stack.pop(), arguments))
        elif name == "BINPERSID":
            self._push_storage(open_storage(self.stack.pop()))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise FormatError(f"torch pickle uses {name.lower()}, which weights-only loading does not allow")

    def _pop_mark(self) -> list[object]:
        above, self.stack = self.stack, self._below.pop()
        return above

    def _make_tuple(self, length: int | None) -> None:
        # Taken before `append` is looked up: to pop a mark is to change stacks.
        parts = self._pop_mark() if length is None else [self.stack.pop() for _ in range(length)][::-1]
        self.stack.append(tuple(parts))

    def _fill(self, name: str) -> None:
        """Add to the container on top of the stack what lies above it."""
        if name.endswith("S"):
            added = self._pop_mark()
        else:
            value = self.stack.pop()
            added = [self.stack.pop(), value] if name == "SETITEM" else [value]
        target = self.stack[-1]
        if name.startswith("APPEND") and isinstance(target, list):
            target.extend(added)
        elif name.startswith("SETITEM") and isinstance(target, Mapping) and len(added) % 2 == 0:
            target.pairs.extend(zip(added[::2], added[1::2], strict=True))
        elif name == "BUILD" and isinstance(target, StoredTensor):
            raise FormatError("torch pickle replaces the state of a tensor that is built already")
        elif name not in ("BUILD", "ADDITEMS"):  # attributes and members of sets: they name no tensor
            raise FormatError("torch pickle is malformed: it fills what is not a container of that kind")

    def _push_storage(self, storage: Storage) -> None:
        """Push a storage; one key must always mean one storage, save that an empty one may be seen as any type."""
        first = self._storages.setdefault(storage.key, storage)
        if first != storage and (first.count or storage.count):
            raise FormatError(f"torch pickle tells two dtypes or sizes of storage {storage.key[:80]!r}")
        self.stack.append(storage)

    def _push_name(self, argument: object) -> None:
        """Push the stand-in of a named class or function."""
        if isinstance(argument, str):  # genops joins the two lines of GLOBAL with a space
            module, _, name = argument.partition(" ")
        else:
            last, first = self.stack.pop(), self.stack.pop()
            if not isinstance(first, str) or not isinstance(last, str):
                raise FormatError("torch pickle has something else where a name belongs")
            module, name = first, last
        path = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if path not in ALLOWED:
            shown = ascii(path[:80])[1:-1]
            raise FormatError(f"torch file refers to {shown}, which weights-only loading does not allow")
        self.stack.append(Global(path))
