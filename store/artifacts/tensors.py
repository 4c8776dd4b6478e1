"""Tensors: torch tensors over verified bytes in host memory, and bytes of torch tensors."""

from typing import TYPE_CHECKING

from ...formats.tensor import TensorSpan
from ..errors import BadInput

if TYPE_CHECKING:
    import torch

# Torch's names of dtypes, by safetensors' names. Dtypes that torch lacks are handed out as raw bytes (uint8).
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16",
    "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32",
    "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64", "C128": "complex128",
}  # fmt: skip
_ALIGN_BYTES = 64


def aligned(length: int) -> int:
    """Return the offset at which the next tensor begins, after `length` bytes of a buffer."""
    return -(-length // _ALIGN_BYTES) * _ALIGN_BYTES


def tensor_from(buffer: memoryview, span: TensorSpan) -> "torch.Tensor":
    """Return a tensor over `buffer` (the span's bytes) without copying; see `shape_tensor`."""
    import torch

    return shape_tensor(torch.frombuffer(buffer, dtype=torch.uint8) if len(buffer) else torch.empty(0), span)


def shape_tensor(raw: "torch.Tensor", span: TensorSpan) -> "torch.Tensor":
    """Return bytes (one axis of uint8, on any device) as the tensor that a span describes, without copying.

    Block-quantised types and types smaller than a byte come as one dimension of raw bytes.
    """
    import torch

    name = _TORCH_NAMES.get(span.dtype)
    if name is not None and not span.length:
        return torch.empty(span.shape, dtype=getattr(torch, name), device=raw.device)
    # A byte of the last axis holds two 4-bit floats.
    if span.dtype == "F4" and span.shape and span.shape[-1] % 2 == 0 and hasattr(torch, "float4_e2m1fn_x2"):
        return raw.to(torch.uint8).view(torch.float4_e2m1fn_x2).reshape(*span.shape[:-1], span.shape[-1] // 2)
    if name is None:
        return raw.to(torch.uint8)
    flat = raw.view(getattr(torch, name))
    if span.stride is not None:
        return flat.as_strided(span.shape, span.stride, flat.storage_offset())
    return flat.reshape(span.shape)


def dtype_name(tensor: "torch.Tensor") -> str:
    """Return safetensors' name of a tensor's dtype; raise BadInput if it has none."""
    wanted = str(tensor.dtype).removeprefix("torch.")
    for name, torch_name in _TORCH_NAMES.items():
        if torch_name == wanted:
            return name
    raise BadInput("tensors", f"dtype {tensor.dtype} has no safetensors name")


def tensor_bytes(tensor: "torch.Tensor") -> memoryview:
    """Return the row-major bytes of a tensor in host memory. They are copied only if it is strided or on a device."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_meta:
        raise BadInput("tensors", f"a tensor is {tensor.layout} on {tensor.device}, wanted a dense one with values")
    if not tensor.numel():
        return memoryview(b"")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
