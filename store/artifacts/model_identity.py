"""Model identity: the identity that a model's directory, or its tensors, give by themselves.

Invariant: for one directory, `put` records the identity that `identify_inputs` returns without storing it.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain

from ...formats.digest import Digest, digest_bytes
from ...formats.errors import FormatError
from ...formats.identity import Identity, make_identity
from ...formats.readers.model_config import CONFIG_MAX_BYTES, digest_weights, fields_of_config, parse_config
from ...formats.tensor import TensorSpan, cut_span
from ..errors import BadInput
from ..progress import Progress
from ..workers import run_all
from .cuts import Cut, FileCuts, Group, digest_files
from .inputs import InputFile, Inputs

_CONFIG = "config.json"


def config_fields(inputs: Inputs, opaque: Sequence[str] = ()) -> dict[str, object]:
    """Return the identity fields that the config.json of a directory gives, or none if it is missing or opaque."""
    file = _config_of(inputs)
    if file is None or any(fnmatch.fnmatchcase(_CONFIG, glob) for glob in opaque):
        return {}
    try:
        if file.source.size > CONFIG_MAX_BYTES:
            raise FormatError(f"has {file.source.size} bytes, at most {CONFIG_MAX_BYTES} are allowed")
        return dict(make_identity(fields_of_config(parse_config(file.source.read(0, file.source.size)))))
    except FormatError as error:
        raise BadInput(_CONFIG, str(error), hint=f"to store it as bytes, unread, add --opaque {_CONFIG}") from None


def weights_files(inputs: Inputs) -> frozenset[str]:
    """Return the paths of the files that hold a model's weights, chosen as loaders choose them.

    If there is a config.json, only files beside it count. If there are safetensors files, only these count.
    """
    described = _config_of(inputs) is not None
    files = [file for file in inputs.files if file.spans and not (described and "/" in file.path)]
    return frozenset(file.path for file in [f for f in files if f.format == "safetensors"] or files)


def digest_tensors(
    key: bytes, file: InputFile, cuts: Sequence[Cut], digests: Sequence[Digest]
) -> Iterator[tuple[TensorSpan, list[Digest]]]:
    """Yield each tensor of a file with the digests of its blobs. `cuts` and `digests` are those of the whole file."""
    at = {start: n for n, start in enumerate(accumulate((cut.length for cut in cuts), initial=0))}
    for span in file.spans:
        lengths = list(cut_span(span))
        first = at.get(span.start, len(cuts))
        if [cut.length for cut in cuts[first : first + len(lengths)]] == lengths:
            yield span, list(digests[first : first + len(lengths)])
            continue
        own, start = [], span.start  # it shares bytes with another tensor, so it has no blobs of its own
        for length in lengths:
            own.append(digest_bytes(key, file.source.read(start, length)))
            start += length
        yield span, own


def add_weights(identity: Identity, key: bytes, inputs: Inputs, files: Iterable[FileCuts]) -> Identity:
    """Return the identity with the digest of the weights added, unless it has one already."""
    if "weights" in dict(identity):
        return identity
    chosen = weights_files(inputs)
    weights = [stored for stored in files if stored.file.path in chosen]
    tensors = chain.from_iterable(digest_tensors(key, stored.file, stored.cuts, stored.digests) for stored in weights)
    return make_identity({**dict(identity), "weights": digest_weights(key, tensors)})


def identify_inputs(inputs: Inputs, key: bytes, opaque: Sequence[str], progress: Progress) -> Identity:
    """Return the identity of a model that is read but not stored. It is hashed on every core."""
    identity = make_identity(config_fields(inputs, opaque))
    chosen = weights_files(inputs)
    if not chosen:
        raise BadInput("identity", "no tensors were found, wanted a model")
    files = [file for file in inputs.files if file.path in chosen]
    total = sum(file.source.size for file in files)

    def perform(group: Group) -> list[Digest]:
        with group.source.mapped(group.offset, group.length) as plain:
            digests = [digest_bytes(key, part) for part in group.parts(plain)]
        progress(group.length, total)
        return digests

    return add_weights(identity, key, inputs, digest_files(files, lambda groups: run_all(perform, groups)))


def _config_of(inputs: Inputs) -> InputFile | None:
    return next((file for file in inputs.files if file.path == _CONFIG and not inputs.single), None)
