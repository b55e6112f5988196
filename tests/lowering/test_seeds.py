"""Seeds: MVUE reads Inductor's seed buffer itself. Look for: no kernel that makes a seed, and draws that differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

WIDTH = 16


class Net(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def gradients(net: Net, compiled: nn.Module, x: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    net.zero_grad()
    compiled(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None and p.dim() == 2]


def test_read_seeds_from_the_buffer_without_a_kernel(device: str) -> None:
    net = Net().to(device)
    compiled = torch.compile(net, backend="s24", options={"min_speedup": 0.0})
    x = torch.randn(32, WIDTH, device=device)
    _, code = run_and_get_code(lambda: gradients(net, compiled, x, seed=1))
    backward = "\n".join(code)
    assert backward.count("aten.randint.low_out") == 1, "one buffer for all seeds of the graph"
    assert "fused_mvue_pack_randint" not in backward
    assert "randint64" not in backward, "a kernel that hashes a seed"
    same, other = gradients(net, compiled, x, seed=1), gradients(net, compiled, x, seed=2)
    first = gradients(net, compiled, x, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True)), "torch.manual_seed governs"
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_keep_a_draw_that_the_user_reads() -> None:
    net = Net(depth=1)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return net(x), torch.randint(0, 5, (1,))

    compiled = torch.compile(step, backend="s24")
    drawn = {compiled(torch.randn(8, WIDTH))[1].item() for _ in range(40)}
    assert drawn == {0, 1, 2, 3, 4}
