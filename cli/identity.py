"""The identity flags: one for each identity field, and `--identity` to read fields from a file or model directory."""

import functools
import inspect
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..formats.identity import FIELDS, PROVENANCE
from ..store.errors import BadInput, reason
from ..store.store import Store
from ..store.user_file import open_user_file

_IDENTITY_MAX_BYTES = 1 << 20
_HELP = {
    "model": "The model.",
    "revision": "The revision of the model.",
    "weights": "The digest of the model's weights.",
    "precision": "The dtype that is in effect, as bf16.",
    "quantisation": "The quantisation scheme.",
    "adapter": "The digest of the adapter (LoRA).",
    "rope": "The type of RoPE.",
    "rope_theta": "The base of RoPE.",
    "rope_factor": "The scaling factor of RoPE.",
    "window": "The length of the sliding window, in tokens.",
    "layer": "The layer.",
    "layout": "The order of axes, as NHD.",
    "sequence": "The sequence it was computed from.",
    "positions": "Token positions, from A up to but not B, as A:B.",
    "block_tokens": "The tokens of a prefix block; 256 if not given.",
    "strict": "Engine, kernels and hardware are part of the identity, too.",
}
_RARE_HELP = {  # --help leaves these flags out, because only adapters for engines use them
    "adapter_scale": "The scale of the adapter.",
    "adapter_targets": "The modules that the adapter changes, parted by commas.",
    "scales": "The digest of the quantisation scales.",
    "rope_original_positions": "The positions that RoPE was trained for.",
    "rope_sections": "The sections of a multimodal RoPE, as JSON.",
    "rope_scaling": "All parameters of RoPE, as JSON.",
    "rope_partial": "The part of each head that RoPE turns.",
    "architecture": "The architecture of the model.",
    "config": "The digest of what else the model's config says.",
    "attention": "The kind of attention, as MLA.",
    "attention_chunk": "The length of an attention chunk, in tokens.",
    "sinks": "The tokens at the start that attention keeps.",
    "layer_kinds": "The kind of each layer, where layers differ.",
    "layers": "The layers it holds, as 0-15,20.",
    "module": "The module it was computed by.",
    "heads": "The attention heads.",
    "kv_heads": "The key and value heads.",
    "head_dim": "The dimensions of a head.",
    "page_tokens": "The tokens of a page, for a layout with pages.",
    "shard": "The part of the model that a rank holds.",
    "encoding": "The lossy encoding, if there is one.",
    "tokenizer": "The tokenizer.",
    "start": "The position of the first token.",
    "step": "The step of a loop, as in diffusion or training.",
    "contents": "The digests of images and the like, as digest@position.",
    "embeddings": "The digest of prompt embeddings.",
    "draft": "The draft model it belongs to.",
    "salt": "A salt that keeps users of one tenant apart.",
    "engine": "The engine that computed it.",
    "engine_version": "The version of the engine.",
    "attention_backend": "The attention kernels.",
    "chunk_schedule": "The chunks in which a prompt was computed.",
    "hardware": "The hardware it was computed on.",
    "framework": "The framework and its version.",
}


@dataclass(frozen=True, slots=True)
class IdentityFlags:
    """What the identity flags of one command say."""

    path: Path | None
    given: dict[str, object]

    def fields(self, store: Store) -> dict[str, object]:
        """Return the fields of the file or model directory. A flag replaces the field that the file gives."""
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
        typer.Option(
            "--identity", metavar="FILE|MODEL_DIR", help="Read fields from JSON, or from a model. Flags override them."
        ),
    ]
    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "identity"]
    parameters += [_parameter("identity_path", path), *(_parameter(f"field_{n}", flags[n]) for n in names)]

    @functools.wraps(command)
    def run(**words: Any) -> None:
        chosen = {name: words.pop(f"field_{name}") for name in names}
        given = {
            name: "yes" if value is True else value for name, value in chosen.items() if value not in (None, False)
        }
        command(identity=IdentityFlags(words.pop("identity_path"), given), **words)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(name: str) -> object:
    help_ = _HELP.get(name) or _RARE_HELP[name]
    help_ += " Counts only with --strict." if name in PROVENANCE else ""
    option = typer.Option(f"--{name.replace('_', '-')}", help=help_, hidden=name not in _HELP)
    return Annotated[bool | None, option] if name == "strict" else Annotated[str | None, option]


def _read(path: Path) -> dict[str, object]:
    try:
        with open_user_file(path) as file:
            fields = json.loads(file.read(_IDENTITY_MAX_BYTES))
    except OSError as error:
        raise BadInput(str(path), reason(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(str(path), f"not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadInput(str(path), "wanted one JSON object of identity fields")
    return fields
