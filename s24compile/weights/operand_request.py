"""What one rewritten linear asks of the weight state: the word that `passes` and `weights` share. A leaf.

Legend: N output features (rows of all weights stacked), K input features (cols).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

WeightLayout = Literal["out_in", "in_out"]
"""How the parameter is stored: "out_in" is nn.Linear's [N, K], "in_out" is HF Conv1D's [K, N]."""


@dataclasses.dataclass(frozen=True)
class OperandRequest:
    """One packed operand of a graph: which parameters it packs, at which dtype and format, and where it enters.

    Parameters are named by placeholder, not held: one graph serves many layers and models, so they are looked up
    at each call among the arguments that arrive.
    """

    weights: tuple[str, ...]
    """Placeholder node names of the top-level graph; two for gate and up in one operand, stacked along rows."""
    names: tuple[str, ...]
    """Parameter names as in `named_parameters()`, for messages; same order as `weights`."""
    dtype: torch.dtype
    """Of the packed values: the compute dtype, which is the linear's output's, or e4m3 where its GEMMs multiply eight
    bits. The parameter may be wider (autocast)."""
    weight_layout: WeightLayout
    rows: tuple[int, ...]
    """Logical rows (output features) of each weight; the operand has `sum(rows)`."""
    cols: int
    """K, the contraction length of the forward."""
    needs_transpose: bool
    """Whether the backward multiplies by the packed W^T."""
    format: str = "sm90"
    """Name of the 2:4 format, a key of `kernels.format.FORMATS`."""
    placeholders: tuple[str, ...] = ()
    """Names of the added top-level placeholders, in the order values, metadata[, descale, two probes][, values_t,
    metadata_t]."""
    decorated: str | None = None
    """Mark of the `sparse_ffn` module that the linear stands in, whose options then hold; None outside of any."""

    @property
    def eight_bit(self) -> bool:
        """Whether it is packed in eight bits: by its own amax, and with a `descale`, fp32 [1]."""
        return self.dtype.itemsize == 1


@dataclasses.dataclass(frozen=True)
class LayerRequest:
    """One layer of a graph whose hidden state is 2:4: the parameters that it is known by, which hold nothing sparse.

    Named as in `OperandRequest`.
    """

    weights: tuple[str, ...]
    """Placeholder names: the last projection's weight first, which holds the layer's schedule, then the first one's."""
    names: tuple[str, ...]
    weight_layout: WeightLayout
    """Of the last projection's."""
    counted: bool
    """Whether the graph returns what the layer's hidden state holds and drops."""
    decorated: str | None = None
