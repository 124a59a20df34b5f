"""Names of the encoder's tensors: the required ones, their aliases, and those that are ignored. Weights files."""

import io
import pickle
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from scgpt_ray.errors import CheckpointError

RENAMED = (
    ("self_attn._impl.", "self_attn."),
    ("self_attn.in_proj_", "self_attn.Wqkv."),
)
"""Aliases of tensors -> canonical names: wrapped flash attention, torch's attention. Rows are q, k, v in all."""

UNUSED = ("decoder.", "mvc_decoder.", "cls_decoder.", "flag_encoder.", "grad_reverse_discriminator.")
"""Prefixes of tensors that embedding does not use: heads of the training objectives."""

UNREADABLE = (RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError)
"""Exceptions of torch.load for files that are truncated or no torch files."""


def encoder_shapes(n_tokens: int, embsize: int, d_hid: int, nlayers: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of the encoder."""
    d = embsize
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embedding.weight": (n_tokens, d),
        **_affine("encoder.enc_norm", d),
        **_affine("value_encoder.linear1", d, 1),
        **_affine("value_encoder.linear2", d, d),
        **_affine("value_encoder.norm", d),
    }
    for i in range(nlayers):
        layer = f"transformer_encoder.layers.{i}"
        shapes |= _affine(f"{layer}.self_attn.Wqkv", 3 * d, d)
        shapes |= _affine(f"{layer}.self_attn.out_proj", d, d)
        shapes |= _affine(f"{layer}.linear1", d_hid, d)
        shapes |= _affine(f"{layer}.linear2", d, d_hid)
        shapes |= _affine(f"{layer}.norm1", d)
        shapes |= _affine(f"{layer}.norm2", d)
    return shapes


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def unpack(content: bytes, where: str) -> dict[str, Tensor]:
    """Read a weights file without executing code from it.

    Args:
        content: Content of the file.
        where: Path of the file; a safetensors file if it ends so, else a torch file.

    Raises:
        CheckpointError: If it cannot be read, would run code, or holds anything but named tensors.
    """
    state = _unpack_safetensors(content, where) if where.endswith(".safetensors") else _unpack_torch(content, where)
    if not isinstance(state, Mapping):
        raise _unusable(f"{where} holds a {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _unusable(f"{where} holds a {type(tensor).__name__} under {name!r}")
    return dict(state)


def _unpack_safetensors(content: bytes, where: str) -> object:
    # Imported here: the encoder and its benchmark also run without safetensors.
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise _unusable(f"{where} cannot be read ({error})") from error


def _unpack_torch(content: bytes, where: str) -> object:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        code = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise CheckpointError(
                f"{where} is refused, because loading it would run code ({code[1]})",
                expected="safetensors or a plain state dict",
                remedy="save it again as torch.save(model.state_dict(), ...)",
            ) from error
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise _unusable(f"{where} cannot be read ({reason})") from error


def pack(tensors: Mapping[str, Tensor], *, as_safetensors: bool) -> bytes:
    """The content of a weights file; the inverse of `unpack`."""
    if as_safetensors:
        import safetensors.torch

        return bytes(safetensors.torch.save(dict(tensors)))
    content = io.BytesIO()
    torch.save(dict(tensors), content)
    return content.getvalue()


def match(found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Tensor]:
    """Match the tensors of a file with those of the encoder; every tensor must be accounted for.

    Args:
        found: Tensors under their names in the file.
        shapes: Canonical name -> shape of the required tensors.
        where: Path of the file, for messages.

    Returns:
        The tensors of `shapes`, float32 and contiguous.

    Raises:
        CheckpointError: If a tensor is missing, unknown, duplicate, of another shape or not finite.
    """
    matched: dict[str, Tensor] = {}
    for name, tensor in found.items():
        canonical = canonical_name(name)
        if canonical.startswith(UNUSED):
            continue
        if canonical not in shapes:
            raise _unusable(f"{where} has a tensor {name} {list(tensor.shape)}, which the encoder has no place for")
        if canonical in matched:
            raise _unusable(f"{where} has the tensor {canonical} under two names, one of them {name}")
        if tuple(tensor.shape) != shapes[canonical]:
            raise _unusable(f"{where}: {name} has the shape {list(tensor.shape)}", list(shapes[canonical]))
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise _unusable(f"{where}: {name} holds values that are not finite numbers ({tensor.dtype})")
        matched[canonical] = tensor.to(torch.float32).contiguous()
    missing = [name for name in shapes if name not in matched]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _unusable(f"{where} has no tensor {missing[0]}{more}", list(shapes[missing[0]]))
    return {name: matched[name] for name in shapes}


def canonical_name(name: str) -> str:
    """The canonical name of a tensor: that in the published checkpoints with flash attention."""
    for other, canonical in RENAMED:
        name = name.replace(other, canonical)
    return name


def _unusable(found: str, shape: list[int] | None = None) -> CheckpointError:
    expected = "the tensors of the encoder that args.json and vocab.json describe, in a plain state dict"
    return CheckpointError(
        found,
        expected=f"the shape {shape}" if shape is not None else expected,
        remedy="copy the checkpoint again, all three files from one place",
    )
