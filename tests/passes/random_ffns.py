"""Random feed-forward layers: each part in any spelling, with everything around them that a model might have.

A layer is drawn as a `Draft`, which prints as what it is, so that a failing example says all.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests import ffn_spellings, ffns
from tests.ffn_spellings import H
from tests.ffns import D
from tests.passes import test_products as products

FORMULAS: dict[str, tuple[Callable[..., torch.Tensor], bool]] = {
    **ffn_spellings.LINEARS,
    **{name: (formula, False) for name, formula in products.TAKEN.items()},
    **{name: (formula, False) for name, (_, formula) in {**products.DENSE, **products.WHOLE}.items()},
}
"""Products of (x, W, b); True where W is stored [in, out]. All work on x [2, 8, in]."""
ACTIVATIONS = {
    **{name: act for name, (_, act) in {**ffn_spellings.ACTIVATIONS, **ffn_spellings.SPELLED_OUT}.items()},
    **{f"other_{name}": act for name, act in ffn_spellings.OTHER_SLOPES.items()},
    **{f"near_{name}": act for name, act in ffn_spellings.NEARLY.items() if name != "random"},
}


def _scaled_in_place(h):
    h *= 0.5
    return h


def _shifted_in_place(h):
    return h.add_(0.25)


BETWEEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout": lambda h: F.dropout(h, 0.0, True),
    "no_dropout": lambda h: F.dropout(h, p=0.5, training=False),
    "flattened": lambda h: h.flatten(0, 1).view(2, 8, -1),
    "contiguous": lambda h: h.contiguous(),
    "scaled": lambda h: h * 1.5,
    "scaled_in_place": _scaled_in_place,
    "shifted_in_place": _shifted_in_place,
    "float": lambda h: h.to(torch.float64),
    "turned": lambda h: h.transpose(0, 1).transpose(0, 1),
    "item": lambda h: h[:],
    "clone": lambda h: h.clone(),
}
"""What may stand between the parts of a layer, once or several times."""
WATCHES: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "hidden_mean": lambda m, z, h: h.mean(),
    "projection_norm": lambda m, z, h: z.square().mean(),
    "weight_norm": lambda m, z, h: m.up.weight.square().sum(),
    "down_weight": lambda m, z, h: m.down.weight.sum(),
    "again": lambda m, z, h: m.down(h).sum() * 0.1,
    "detached": lambda m, z, h: h.detach().mean(),
}
"""Further users of what a layer computes."""
SWITCHES = ("up", "activation", "down", "watch")
"""Parts that may run under no_grad."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """One layer in words."""

    kind: str
    up: str
    down: str
    activation: str
    product: str = "operator"
    split: str = "chunk"
    turned: bool = False
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    watch: str = ""
    frozen: tuple[str, ...] = ()
    without_gradient: str = ""
    checkpointed: bool = False
    residual: str = "sum"
    writes: bool = False
    """Where nothing has a gradient, the input is overwritten in the middle of the layer."""


class Layer(nn.Module):
    """What a draft says. `up`, `gate` and `down` hold the weights."""

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self.draft = draft
        self.up = _projection(draft.up, D, 2 * H if draft.kind == "fused" else H)
        if draft.kind == "gated":
            self.gate = _projection("functional", D, H)
        self.down = _projection(draft.down, H, D)
        for name in draft.frozen:
            getattr(self, name, self.up).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = self.body
        y = checkpoint(body, x, use_reentrant=False) if self.draft.checkpointed else body(x)
        if self.draft.residual == "sum":
            return x + y
        if self.draft.residual == "in_place":
            y += x
        return y

    def body(self, x: torch.Tensor) -> torch.Tensor:
        draft = self.draft
        with self.switch("up"):
            z = self.up(x)
        for name in draft.before:
            z = BETWEEN[name](z)
        with self.switch("activation"):
            h = self.activated(x, z)
        if self.draft.writes and not torch.is_grad_enabled():  # a backward would need the x of before
            x.mul_(0.5)
        for name in draft.after:
            h = BETWEEN[name](h)
        with self.switch("down"):
            y = self.down(h)
        if draft.watch:
            with self.switch("watch"):
                y = y + WATCHES[draft.watch](self, z, h)
        return y

    def activated(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        draft = self.draft
        act = ACTIVATIONS[draft.activation]
        if draft.kind == "plain":
            return act(z)
        halves = (z, self.gate(x)) if draft.kind == "gated" else ffn_spellings.SPLITS[draft.split](z)
        g, u = halves[::-1] if draft.turned else halves
        if draft.product in ffn_spellings.GATES:
            return ffn_spellings.GATES[draft.product][1](g, u)
        return ffn_spellings.PRODUCTS[draft.product](act(g), u)

    def switch(self, part: str) -> contextlib.AbstractContextManager[object]:
        return torch.no_grad() if self.draft.without_gradient == part else contextlib.nullcontext()


TIES = {
    "": ("", ""),
    "down": ("layers.0.down", "layers.1.down"),
    "up": ("layers.0.up", "layers.1.up"),
    "turned": ("layers.0.up", "layers.1.down"),
    "within": ("layers.0.up", "layers.0.down"),
    "gate": ("layers.0.up", "layers.0.gate"),
}
"""Pairs of projections that share a weight, where their shapes allow it."""


class Model(nn.Module):
    """Layers in a row; `tie`: a key of `TIES`."""

    def __init__(self, drafts: tuple[Draft, ...], tie: str = "") -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(draft) for draft in drafts)
        modules = dict(self.named_modules())
        one, other = (modules.get(name) if name else None for name in TIES[tie])
        if one is not None and other is not None and one.weight.shape == other.weight.shape:
            other.weight = one.weight
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1.0
        for layer in self.layers:
            x = F.layer_norm(layer(x), (D,))  # else squares of squares overflow
        return x

    def without_checkpoints(self) -> Model:
        """The same parameters in a model that recomputes nothing."""
        drafts = tuple(dataclasses.replace(layer.draft, checkpointed=False) for layer in self.layers)
        model = Model(drafts)
        for ours, theirs in zip(model.layers, self.layers, strict=True):
            ours._modules = theirs._modules
        return model


def _projection(name: str, n_in: int, n_out: int) -> nn.Module:
    if name == "module":
        return nn.Linear(n_in, n_out)
    if name == "conv1d":
        return ffns.Conv1D(n_in, n_out)
    formula, turned = FORMULAS[name]
    return ffns.Spelled(formula, n_in, n_out, turned)


def sized(formula: Callable[..., torch.Tensor]) -> bool:
    """Whether a formula takes any widths: some of `test_products` name those of the first projection."""
    w, b = torch.randn(D, H), torch.randn(D)
    try:
        formula(torch.randn(2, 8, H), w, b)
    except RuntimeError:
        return False
    return True


PROJECTIONS = ("module", "conv1d", *FORMULAS)
DOWNS = ("module", "conv1d", *(n for n, (formula, turned) in FORMULAS.items() if not turned and sized(formula)))


@strategies.composite
def drafts(draw: strategies.DrawFn) -> Draft:
    """One layer. Most of its parts are plain, so that several odd ones seldom hide each other."""

    def seldom(values, otherwise):
        return draw(strategies.sampled_from(list(values))) if draw(strategies.integers(0, 3)) == 0 else otherwise

    kind = draw(strategies.sampled_from(("plain", "plain", "gated", "fused")))
    up = draw(strategies.sampled_from(PROJECTIONS if kind != "fused" else ("module", *ffn_spellings.LINEARS)))
    between = strategies.lists(strategies.sampled_from(sorted(BETWEEN)), max_size=2).map(tuple)
    return Draft(
        kind=kind,
        up=up,
        down=seldom(DOWNS, "module"),
        activation=draw(strategies.sampled_from(sorted(ACTIVATIONS))),
        product=draw(strategies.sampled_from([*ffn_spellings.PRODUCTS, *ffn_spellings.GATES])),
        split=draw(strategies.sampled_from(sorted(ffn_spellings.SPLITS))),
        turned=draw(strategies.booleans()),
        before=draw(between) if draw(strategies.integers(0, 2)) == 0 else (),
        after=draw(between) if draw(strategies.integers(0, 2)) == 0 else (),
        watch=seldom(WATCHES, ""),
        frozen=draw(strategies.sampled_from(((), (), (), ("up",), ("down",), ("gate",)))),
        without_gradient=seldom(SWITCHES, ""),
        checkpointed=draw(strategies.integers(0, 4)) == 0,
        residual=draw(strategies.sampled_from(("sum", "in_place", "none"))),
        writes=draw(strategies.booleans()),
    )
