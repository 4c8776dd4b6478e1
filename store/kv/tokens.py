"""Tokens: the ids of a sequence, taken in each form that users have, and packed as u32 LE."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...formats.errors import FormatError
from ...formats.readers.numpy_file import read_header
from ..artifacts.sources import MemorySource
from ..errors import BadInput, StorageFailed, reason
from ..user_file import open_user_file

TOKEN_MAX = (1 << 32) - 1
TOKENS_MAX_COUNT = 1 << 24
_FILE_MAX_BYTES = 1 << 28


def pack_tokens(tokens: Any) -> memoryview:
    """Return token ids as u32 LE: of a sequence of whole numbers, a numpy array or a torch tensor of one axis.

    A memoryview is packed already and returned as it is. Raises BadInput, which names the position of the first value
    that is no token id.
    """
    import numpy as np

    if isinstance(tokens, memoryview):
        if not tokens.nbytes or tokens.nbytes % 4 or tokens.format != "B" or not tokens.c_contiguous:
            raise BadInput("tokens", f"are {tokens.nbytes} bytes in a memoryview, wanted u32 LE, one after the other")
        return tokens
    if hasattr(tokens, "detach"):  # a torch tensor, perhaps on a device
        tokens = tokens.detach().cpu().numpy()
    if not isinstance(tokens, np.ndarray | np.generic):
        if isinstance(tokens, str | bytes | bytearray) or not isinstance(tokens, Iterable):
            raise BadInput("tokens", f"are {type(tokens).__name__}, wanted a sequence of whole numbers")
        tokens = list(tokens)
        if not set(map(type, tokens)) <= {int}:  # because numpy would turn True and 1.0 into 1
            tokens = [int(token) if isinstance(token, np.integer) else token for token in tokens]
        _check_each(tokens)
        tokens = np.array(tokens, np.int64)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise BadInput("tokens", f"are {tokens.dtype} with {tokens.ndim} axes, wanted whole numbers on one axis")
    if not 0 < tokens.size <= TOKENS_MAX_COUNT:
        raise BadInput("tokens", f"are {tokens.size}, wanted 1 to {TOKENS_MAX_COUNT}")
    bad = np.flatnonzero((tokens < 0) | (tokens > TOKEN_MAX))
    if bad.size:
        _refuse(int(bad[0]), tokens[bad[0]])
    return np.ascontiguousarray(tokens, "<u4").data.cast("B")


def read_tokens(text: str) -> memoryview:
    """Return the token ids that a command line names: a JSON or `.npy` file, or numbers parted by commas."""
    path = Path(text)
    # Path.exists would raise for a list that is longer than a path can be.
    if re.fullmatch(r"[0-9]+", text) or ("," in text and not os.path.exists(text)):
        parts = [part.strip() for part in text.rstrip(", ").split(",")]
        return pack_tokens([int(part) if re.fullmatch(r"[0-9]{1,10}", part) else part for part in parts])
    content = _read(path)
    if content.startswith(b"\x93NUMPY"):
        return pack_tokens(_array(content, text))
    try:
        tokens = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput(text, f"neither JSON nor .npy ({error}), wanted a list of token ids") from None
    if not isinstance(tokens, list):
        raise BadInput(text, f"holds {type(tokens).__name__}, wanted a list of token ids")
    return pack_tokens(tokens)


def _array(content: bytes, where: str) -> Any:
    """Return the numpy array of an `.npy` file; raise BadInput if it is damaged or doesn't hold whole numbers."""
    import numpy as np

    try:
        # Numpy's own reader isn't used, because a damaged header makes it raise errors of Python's tokenizer.
        descr, shape, start = read_header(MemorySource([memoryview(content)]))
        if not isinstance(descr, str) or not re.fullmatch(r"[<>]?[iu][248]|\|?[iu]1", descr) or len(shape) != 1:
            raise FormatError(f"holds {str(descr)[:40]} with {len(shape)} axes, wanted whole numbers on one axis")
        if shape[0] > (len(content) - start) // np.dtype(descr).itemsize:
            raise FormatError("is cut short")
        return np.frombuffer(content, descr, shape[0], start) if shape[0] else []
    except (FormatError, ValueError) as error:
        raise BadInput(where, f"not a .npy file of token ids: {error}") from None


def _read(path: Path) -> bytes:
    try:
        with open_user_file(path) as file:
            content = file.read(_FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"tokens {path}", "no such file, and not numbers parted by commas") from None
    except OSError as error:
        raise StorageFailed(str(path), reason(error)) from None
    if len(content) > _FILE_MAX_BYTES:
        raise BadInput(str(path), f"exceeds {_FILE_MAX_BYTES} bytes")
    return content


def _check_each(tokens: list[Any]) -> None:
    for position, token in enumerate(tokens):
        if type(token) is not int or not 0 <= token <= TOKEN_MAX:
            _refuse(position, token)


def _refuse(position: int, token: object) -> None:
    raise BadInput(f"tokens: position {position}", f"{str(token)[:40]!r} is not a token id, wanted 0 to {TOKEN_MAX}")
