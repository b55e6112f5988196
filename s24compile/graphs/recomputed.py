"""Which s24 ops memory="save" recomputes in the backward: those that make a hidden state. A leaf."""

from __future__ import annotations

RECOMPUTED = frozenset({"act", "glu"})
"""Names in torch.ops.s24. Each is one pointwise pass over what is kept anyway."""
