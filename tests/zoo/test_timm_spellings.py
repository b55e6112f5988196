"""timm's feed-forward layers as its source spells them, for machines without timm.

Dropouts stand in the middle and at the end, activations are modules with `inplace=False`, halves are cut by `chunk`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.case import Case, D, F, Ffn
from tests.zoo.checks import assert_listed_by_hand, assert_trains_like_masked, explain_case


class Mlp(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(D, F), nn.GELU(), nn.Dropout(drop)
        self.norm, self.fc2, self.drop2 = nn.Identity(), nn.Linear(F, D), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(self.norm(x)))


class GluMlp(nn.Module):
    """GluMlp gates with the second half (gate_last), SwiGLUPacked with the first."""

    def __init__(self, drop: float, act: nn.Module, gate_last: bool) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(D, F), act, nn.Dropout(drop)
        self.norm, self.fc2, self.drop2 = nn.Identity(), nn.Linear(F // 2, D), nn.Dropout(drop)
        self.gate_last = gate_last

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.fc1(x).chunk(2, dim=-1)
        x = x1 * self.act(x2) if self.gate_last else self.act(x1) * x2
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


class SwiGLU(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x, self.act = nn.Linear(D, F), nn.Linear(D, F), nn.SiLU()
        self.drop1, self.norm, self.fc2, self.drop2 = nn.Dropout(drop), nn.Identity(), nn.Linear(F, D), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x_gate, x = self.fc1_g(x), self.fc1_x(x)
        x = self.drop1(self.act(x_gate) * x)
        return self.drop2(self.fc2(self.norm(x)))


def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 8, D)}


def rate(dropout: bool) -> float:
    return 0.1 if dropout else 0.0


def layer(family: str, *weights: str) -> tuple[Ffn, ...]:
    return (Ffn("", family, tuple(f"{weight}.weight" for weight in weights)),)


CASES = {
    "Mlp": Case(lambda dropout: Mlp(rate(dropout)), inputs, layer("gelu", "fc1", "fc2")),
    "GluMlp": Case(lambda dropout: GluMlp(rate(dropout), nn.GELU(), True), inputs, layer("geglu", "fc1", "fc2")),
    "SwiGLUPacked": Case(
        lambda dropout: GluMlp(rate(dropout), nn.SiLU(), False), inputs, layer("swiglu", "fc1", "fc2")
    ),
    "SwiGLU": Case(lambda dropout: SwiGLU(rate(dropout)), inputs, layer("swiglu", "fc1_g", "fc1_x", "fc2")),
}


@pytest.mark.parametrize("name", CASES)
def test_take_the_spellings_of_timm(name: str, device: str) -> None:
    assert_listed_by_hand(CASES[name], explain_case(CASES[name], device))
    assert_trains_like_masked(CASES[name], device)


def test_refuse_the_default_gate_of_glu_mlp(device: str) -> None:
    """Its default activation is a sigmoid, which is none that s24 kernels know."""
    case = Case(lambda dropout: GluMlp(0.0, nn.Sigmoid(), True), inputs, (), (("", "sigmoid"),))
    assert_listed_by_hand(case, explain_case(case, device))
