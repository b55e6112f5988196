"""Models around the zoo's layers: residual stacks, checkpointed or not, and a small GPT."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests import ffns
from tests.ffn_spellings import gelu_new


class Stack(nn.Module):
    """Several layers in a row with residuals, checkpointed by `wrap`."""

    def __init__(self, *layers: nn.Module, wrap=lambda layer, x: layer(x)) -> None:
        super().__init__()
        self.Blocks = nn.ModuleList(layers)
        self.wrap = wrap

    def forward(self, x):
        for block in self.Blocks:
            x = self.wrap(block, x) + x
        return x


def checkpointed(layer, x):
    return checkpoint(layer, x, use_reentrant=False)


def nested(layer, x):
    return checkpoint(lambda x: checkpoint(layer, x, use_reentrant=False), x, use_reentrant=False)


class Gpt(nn.Module):
    """Twelve pre-norm blocks with attention, an embedding and a tied head."""

    def __init__(self, layers: int = 12) -> None:
        super().__init__()
        self.wte = nn.Embedding(64, ffns.D)
        self.h = nn.ModuleList(GptBlock() for _ in range(layers))
        self.lm_head = nn.Linear(ffns.D, 64, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return F.cross_entropy(self.lm_head(x).flatten(0, 1), tokens.flatten())


class GptBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(ffns.D), nn.LayerNorm(ffns.D)
        self.qkv, self.proj = nn.Linear(ffns.D, 3 * ffns.D), nn.Linear(ffns.D, ffns.D)
        self.mlp = ffns.Plain(gelu_new)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.ln_1(x)).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))
