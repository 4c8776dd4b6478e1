"""The identity flags: one for every identity field, and `--identity` for a file or model directory that says many."""

import functools
import inspect
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..formats.identity import FIELDS, PROVENANCE
from ..store.errors import BadInput
from ..store.store import Store

_IDENTITY_MAX_BYTES = 1 << 20
_HELP = {
    "model": "Model it belongs to.",
    "revision": "Revision of the model.",
    "weights": "Digest of the model's weights.",
    "precision": "Effective dtype.",
    "quantisation": "Quantisation scheme.",
    "adapter": "Adapter (LoRA) digest.",
    "rope": "RoPE type.",
    "rope_theta": "RoPE base.",
    "rope_factor": "RoPE scaling factor.",
    "window": "Sliding window.",
    "layer": "Layer.",
    "layout": "Axis order.",
    "sequence": "Sequence it was computed from.",
    "positions": "Token positions A:B, B not included.",
    "block_tokens": "Tokens of a prefix block (256).",
    "strict": "Engine, kernels and hardware count too.",
}


@dataclass(frozen=True, slots=True)
class IdentityFlags:
    """What the identity flags of one command say."""

    path: Path | None
    given: dict[str, object]

    def fields(self, store: Store) -> dict[str, object]:
        """Return the fields: those of the file or model directory, and before them the flags."""
        if self.path is None:
            return dict(self.given)
        said: dict[str, object] = dict(store.identify(self.path)) if self.path.is_dir() else _read(self.path)
        return said | self.given


def with_identity(command: Callable[..., None], *, without: Collection[str] = ()) -> Callable[..., None]:
    """Return a command with a flag for every identity field but those `without`, handed to it as `identity`."""
    names = [name for name in FIELDS if name not in without]
    own = inspect.signature(command, eval_str=True)
    flags = {name: _flag(name) for name in names}
    path = Annotated[
        Path | None,
        typer.Option("--identity", metavar="FILE|MODEL_DIR", help="Fields as JSON, or a model; flags go before it."),
    ]
    parameters = [one for one in own.parameters.values() if one.name != "identity"]
    parameters += [_parameter("identity_path", path), *(_parameter(f"field_{n}", flags[n]) for n in names)]

    @functools.wraps(command)
    def run(**words: Any) -> None:
        chosen = {name: words.pop(f"field_{name}") for name in names}
        given = {
            name: "yes" if value is True else value for name, value in chosen.items() if value not in (None, False)
        }
        command(identity=IdentityFlags(words.pop("identity_path"), given), **words)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(name: str) -> object:
    help_ = _HELP.get(name) or ("Recorded; identity only with --strict." if name in PROVENANCE else None)
    option = typer.Option(f"--{name.replace('_', '-')}", help=help_, hidden=name not in _HELP)
    return Annotated[bool | None, option] if name == "strict" else Annotated[str | None, option]


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_IDENTITY_MAX_BYTES))
    except OSError as error:
        raise BadInput(str(path), (error.strerror or str(error)).lower()) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(str(path), f"not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadInput(str(path), "wanted one JSON object of identity fields")
    return fields
