"""Checkpoints in safetensors files whose 2:4 weights are compressed, as compressed-tensors lays them out.

Needs the extra `export` (safetensors). Who reads them: this module; compressed-tensors up to 0.14, and what uses it
(transformers; vLLM until its pull request 36799 of March 2026). Later versions have dropped sparse weights: give those
a dense checkpoint of a baked model (`s24compile.bake_`), in which the zeros are just zeros.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s24compile import ops
from s24compile.errors import MaskError, ModelError, TargetError
from s24compile.export.baked import baked_weights
from s24compile.export.bitmask import FIELDS, from_bitmask, to_bitmask
from s24compile.tensor.sparse24 import Sparse24
from s24compile.wrappers import clean_name, unwrapped

FILE = "model.safetensors"


def save_compressed(
    model: nn.Module, directory: str | Path, names: Collection[str] | None = None, dtype: torch.dtype | None = None
) -> list[str]:
    """Writes the model to `directory`: model.safetensors, and config.json that says how it is compressed.

    The sparse weights are written as the sparse forward uses them (see `baked_weights`); the model is not changed.
    A Hugging Face config is written whole; other models get a config.json of the compression alone.

    Args:
        names: which sparse weights to compress, by parameter name; the others are written dense, with their zeros.
            None: all of them.
        dtype: cast all floating-point tensors to it; None keeps each tensor's.

    Returns:
        The names of the compressed weights.

    Raises:
        ModelError: `baked_weights` cannot tell them; an unknown name; or a weight that the layout cannot hold (not
            called ``<module>.weight``, or stored [in, out] under a mask that is 2:4 along `in` only).
        TargetError: safetensors is not installed.
    """
    safetensors = _safetensors()
    baked = baked_weights(model)
    chosen = list(baked) if names is None else _known(names, baked)
    odd = next((name for name in chosen if not name.endswith(".weight")), None)
    if odd is not None:
        raise ModelError(
            what="save_compressed", found=f"the sparse weight {odd!r}",
            accepted="the layout names modules, so a weight must be called <module>.weight; leave this one out of "
            "`names`, and it is saved dense, with its zeros",
        )  # fmt: skip
    tensors = {clean_name(name): t.detach() for name, t in unwrapped(model).state_dict().items()}
    sharded = next((name for name, t in tensors.items() if hasattr(t, "full_tensor")), None)
    if sharded is not None:
        raise ModelError(
            what="save_compressed", found=f"{sharded!r} is sharded over processes (FSDP2, tensor parallel)",
            accepted="save with torch.distributed.checkpoint, load that into the model in one process, and export "
            "there",
        )  # fmt: skip
    tensors |= baked
    tied = _tied(tensors, baked)
    if dtype is not None:
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in chosen:
            stem = name.removesuffix(".weight")
            written |= {f"{stem}.{field}": t.cpu() for field, t in to_bitmask(_packed(name, tensor)).items()}
        elif name not in tied:
            written[name] = tensor.cpu().contiguous()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_config(model, directory, [name.removesuffix(".weight") for name in chosen], tensors)
    safetensors.save_file(written, directory / FILE, metadata={"format": "pt", **tied})
    return chosen


def load_compressed(
    directory: str | Path, *, sparse: bool = False, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Reads what `save_compressed` or compressed-tensors wrote: a state dict, for ``model.load_state_dict``.

    Args:
        sparse: leave compressed weights 2:4, as Sparse24 tensors: with ``load_state_dict(state, assign=True)`` a plain
            eager model computes with them. Else they come back dense, with their zeros.

    Raises:
        ShapeError, MaskError: the compressed tensors do not fit one another.
        TargetError: safetensors is not installed.
    """
    safetensors = _safetensors()
    path = Path(directory) / FILE
    tensors = safetensors.load_file(path, device=str(device))
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, field = name.rpartition(".")
        if field not in FIELDS or not all(f"{stem}.{other}" in tensors for other in FIELDS):
            state[name] = tensor
        elif field == "compressed":
            packed = from_bitmask({other: tensors[f"{stem}.{other}"] for other in FIELDS})
            state[f"{stem}.weight"] = packed if sparse else packed.to_dense()
    for removed, kept in _metadata(path).items():
        if kept in state:
            state[removed] = state[kept]
    return state


def compression_config(modules: Iterable[str], sparsity: float) -> dict[str, Any]:
    """The entry "quantization_config" of a config.json: which modules are compressed, and how."""
    return {
        "quant_method": "compressed-tensors",
        "sparsity_config": {
            "format": "sparse-24-bitmask",
            "sparsity_structure": "2:4",
            "global_sparsity": sparsity,
            "targets": list(modules),
            "ignore": [],
        },
    }


def _packed(name: str, tensor: Tensor) -> Sparse24:
    try:
        packed = ops.pack(tensor)
    except MaskError as error:
        raise ModelError(
            what=f"weight {name!r}",
            found="it is stored [in, out], and is 2:4 along `in` only, where the layout needs it along the last dim",
            accepted="leave it out of `names` (it is then written dense), or train with recipe 'fst'",
        ) from error
    return Sparse24(packed.values, packed.metadata, None, packed.shape, format=packed.format)


def _known(names: Collection[str], baked: dict[str, Tensor]) -> list[str]:
    unknown = [name for name in names if name not in baked]
    if unknown:
        raise ModelError(
            what="names", found=f"{unknown[0]!r} is no sparse weight", accepted=f"they are {', '.join(baked)}"
        )
    return list(names)


def _tied(tensors: dict[str, Tensor], baked: dict[str, Tensor]) -> dict[str, str]:
    """Name -> an earlier name of the very same tensor: files hold it once (safetensors' own convention)."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, t in tensors.items():
        if t.numel() and name not in baked:
            key = (t.data_ptr(), t.shape, t.stride(), t.dtype, t.device)
            if first.setdefault(key, name) != name:
                tied[name] = first[key]
    return tied


def _write_config(model: nn.Module, directory: Path, modules: list[str], tensors: dict[str, Tensor]) -> None:
    path, save = directory / "config.json", getattr(getattr(unwrapped(model), "config", None), "save_pretrained", None)
    if save is not None:
        save(directory)
    elements = max(sum(t.numel() for t in tensors.values()), 1)
    zeros = sum(tensors[f"{module}.weight"].numel() for module in modules) / 2
    content = json.loads(path.read_text()) if path.exists() else {}
    content["quantization_config"] = compression_config(modules, zeros / elements)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _metadata(path: Path) -> dict[str, str]:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise TargetError(
            what="safetensors",
            target="this Python",
            found="the package is not installed",
            accepted="pip install 's24compile[export]'",
        ) from error
    return safetensors.torch
