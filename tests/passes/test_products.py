"""Products by parameters in spellings that are taken, and in others: each weight that a product reads is in a row."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from s24compile.config import Config
from tests import ffns
from tests.ffn_spellings import H
from tests.ffns import D
from tests.masked import masked_call
from tests.passes.harness import Capture, check_masked, input_of
from tests.passes.stacks import Stack


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def under_no_grad(w: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return w.t()


TAKEN: dict[str, Callable[..., torch.Tensor]] = {
    "view": lambda x, w, b: F.linear(x, w.view(H, D), b),
    "slice": lambda x, w, b: F.linear(x, w[:, :], b),
    "clone": lambda x, w, b: x @ w.clone().t() + b,
    "adjoint": lambda x, w, b: x @ w.adjoint() + b,
    "mH": lambda x, w, b: x @ w.mH + b,
    "movedim": lambda x, w, b: x @ w.movedim(0, 1) + b,
    "contiguous": lambda x, w, b: x @ w.T.contiguous() + b,
    "wide_and_back": lambda x, w, b: F.linear(x, w.double().to(x.dtype), b),
}
DENSE: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "alpha": ("addmm(beta=1, alpha=0.5)", lambda x, w, b: torch.addmm(b, flat(x), w.t(), alpha=0.5).view(2, 8, H)),
    "beta": ("addmm(beta=0.5, alpha=1)", lambda x, w, b: torch.addmm(b, flat(x), w.t(), beta=0.5).view(2, 8, H)),
    "matrix": ("added to a matrix", lambda x, w, b: torch.addmm(b.expand(16, -1), flat(x), w.t()).view(2, 8, H)),
    "scaled": ("computed in the graph by `mul`", lambda x, w, b: F.linear(x, w * 0.5, b)),
    "scaled_turned": ("computed in the graph by `mul`", lambda x, w, b: torch.matmul(x, (w * 1.0).t()) + b),
    "scaled_addmm": ("computed in the graph by `mul`", lambda x, w, b: torch.addmm(b, flat(x), 2 * w.T).view(2, 8, H)),
    "part": ("computed in the graph by `cat`", lambda x, w, b: x @ torch.cat((w[:32], w[32:])).t() + b),
    "detached": ("computed in the graph by `detach`", lambda x, w, b: x @ w.detach().t() + b),
    "no_grad": ("another grad mode", lambda x, w, b: x @ under_no_grad(w) + b),
    "rounded": ("rounded to bfloat16", lambda x, w, b: F.linear(x, w.to(torch.bfloat16).to(x.dtype), b)),
}
"""Layers with these products keep the other linear."""
WHOLE: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "left": ("`matmul` and the weight on its left", lambda x, w, b: (w @ x.mT).mT + b),
    "einsum": ("written with `einsum`", lambda x, w, b: torch.einsum("bsd,fd->bsf", x, w) + b),
    "einsum_scaled": ("written with `einsum`", lambda x, w, b: torch.einsum("fd,bsd->bsf", 2 * w, x) + b),
    "tensordot": ("written with `tensordot`", lambda x, w, b: torch.tensordot(x, w.t(), dims=1) + b),
    "inner": ("written with `inner`", lambda x, w, b: torch.inner(x, w) + b),
    "addmm_in_place": (
        "written with `addmm`", lambda x, w, b: x.new_zeros(16, H).addmm_(flat(x), w.t()).view(2, 8, H) + b
    ),
}  # fmt: skip
"""Layers with these products are refused."""


def layers(formulas: dict[str, Callable[..., torch.Tensor]]) -> Stack:
    """One layer for each: Dynamo is slower than what is tested."""
    torch.manual_seed(0)
    made = (ffns.Plain(F.gelu) for _ in formulas)
    stack = Stack(*made)
    for layer, formula in zip(stack.Blocks, formulas.values(), strict=True):
        layer.fc1 = ffns.Spelled(formula, D, H)
    return stack


def test_see_through_every_view_of_a_weight():
    model, capture = layers(TAKEN), Capture()
    check_masked(model, capture, input_of())
    assert [site.linears for site in capture.sites] == [2] * len(TAKEN)


@pytest.mark.parametrize("targets", ["ffn", "linear"])
def test_say_of_every_weight_why_it_stays_dense(targets):
    formulas = {**DENSE, **WHOLE}
    model = layers({name: formula for name, (_, formula) in formulas.items()})
    capture = Capture(config=Config(targets=targets))
    check_masked(model, capture, input_of())
    dense = [f"Blocks.{i}.fc1.weight" for i in range(len(formulas))]
    for name, (reason, _) in zip(dense, formulas.values(), strict=True):
        (row,) = [site for site in capture.sites if name in site.weights]
        assert reason in row.reason, row
    taken = set(capture.masks)
    assert not taken & set(dense)
    whole = {f"Blocks.{i}.fc2.weight" for i, name in enumerate(formulas) if name in WHOLE and targets == "ffn"}
    assert taken == {f"Blocks.{i}.fc2.weight" for i in range(len(formulas))} - whole


class Pruned(ffns.Plain):
    """torch.nn.utils.prune's: a parameter times a mask that is a buffer."""

    def __init__(self) -> None:
        super().__init__(F.gelu)
        self.register_buffer("mask", (torch.rand(H, D) > 0.5).float())

    def forward(self, x):
        return self.fc2(F.gelu(x @ (self.fc1.weight * self.mask).t() + self.fc1.bias))


def test_know_a_weight_that_is_computed_from_a_buffer_too():
    torch.manual_seed(0)
    model, capture = Pruned(), Capture()
    check_masked(model, capture, input_of())
    (site,) = capture.sites
    assert (site.linears, site.weights) == (1, ("fc1.weight", "fc2.weight"))
    assert "computed in the graph by `mul`" in site.reason


class Bits(ffns.Plain):
    """Reads the bits of what it is given as bfloat16."""

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x.view(torch.bfloat16))))


def test_read_bits_as_the_dtype_that_they_are_viewed_as():
    torch.manual_seed(0)
    model, capture = Bits(F.gelu).bfloat16(), Capture()
    x = torch.randn(2, 8, D).to(torch.bfloat16).view(torch.int16)
    torch._dynamo.reset()
    y = torch.compile(model, backend=capture)(x)
    assert capture.linears == 2
    expected = masked_call(model, capture.masks, x)
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-6 * expected.abs().max().item())


class BitsOfHidden(ffns.Fused):
    """Views the bits of its hidden state as another dtype, and back after half of it was changed as that."""

    def __init__(self) -> None:
        super().__init__(lambda z: z.chunk(2, -1), None)

    def forward(self, x):
        a, b = self.Wi(x).chunk(2, -1)
        return self.Wo(F.silu((a.contiguous().view(torch.int32) & -65536).view(torch.float32)) * b)


def test_take_no_view_of_bits_for_a_reshape():
    torch.manual_seed(0)
    model, capture = BitsOfHidden(), Capture()
    torch._dynamo.reset()
    with torch.no_grad():
        y = torch.compile(model, backend=capture)(input_of())
        torch.testing.assert_close(y, masked_call(model, capture.masks, input_of()))
    assert math.isfinite(float(y.sum()))
