"""What a saved `Sparse24` is: the arguments of `rebuild_sparse24`, a function that `torch.load` trusts. A leaf.

Imported with the package, so that ``import s24compile`` is all that ``torch.load(path, weights_only=True)`` needs;
the class itself, which needs much more, is imported when the first one is read.
"""

from __future__ import annotations

from typing import Any

import torch


def rebuild_sparse24(kept: torch.Tensor, metadata: torch.Tensor, scale: torch.Tensor | None, meta: Any) -> Any:
    """The `Sparse24` whose `__reduce_ex__` gave these arguments; `meta` is (shape, format, transposed, origin)."""
    from s24compile.tensor.sparse24 import Sparse24

    shape, format, transposed, origin = meta
    return Sparse24(kept, metadata, scale, tuple(shape), format=format, transposed=transposed, origin=origin)


torch.serialization.add_safe_globals([rebuild_sparse24])
