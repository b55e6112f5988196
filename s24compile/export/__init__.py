"""After training: the sparse weights in the formats of other programs.

* `baked_weights(model)`: what the sparse forward computes with, as dense tensors (`s24compile.bake_` writes them back).
* `to_torch_sparse`, `to_torch_sparse_`: torch.sparse's own semi-structured tensors, for inference with torch alone.
* `save_compressed`, `load_compressed`: safetensors in compressed-tensors' layout "sparse-24-bitmask".
* `to_bitmask`, `from_bitmask`: that layout, for one tensor.
"""

from __future__ import annotations

from s24compile.export.baked import baked_weights
from s24compile.export.bitmask import from_bitmask, to_bitmask
from s24compile.export.files import load_compressed, save_compressed
from s24compile.export.torch_sparse import to_torch_sparse, to_torch_sparse_

__all__ = [
    "baked_weights",
    "from_bitmask",
    "load_compressed",
    "save_compressed",
    "to_bitmask",
    "to_torch_sparse",
    "to_torch_sparse_",
]
