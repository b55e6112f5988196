"""A small language model, trained in one process, under DDP or under FSDP2, with the same numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import s24compile
from s24compile.weights.operand_map import OPERANDS
from s24compile.weights.sharded_operand import ShardedOperand

WIDTH, VOCABULARY = 32, 32
OPTIONS = {"inner": "aot_eager", "mask_interval": 2, "decay": 1e-2}


class SwiGLU(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(WIDTH, hidden, bias=False), nn.Linear(WIDTH, hidden, bias=False)
        self.w2 = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class MLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(x)))


FFNS: dict[str, type[SwiGLU] | type[MLP]] = {"swiglu": SwiGLU, "mlp": MLP}


class Block(nn.Module):
    def __init__(self, ffn: str, hidden: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.ffn = FFNS[ffn](hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + self.ffn(self.norm(x))


class Net(nn.Module):
    def __init__(self, ffn: str = "swiglu", hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block(ffn, hidden) for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.layers:
            x = block(x)
        return self.head(x)


def net(**shape: Any) -> Net:
    """The same numbers in each process."""
    torch.manual_seed(0)
    return Net(**shape)


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Tokens, and those that follow them."""
    generator = torch.Generator().manual_seed(1000 + 10 * step + rank)
    tokens = torch.randint(VOCABULARY, (2, 8), generator=generator)
    return tokens, (tokens + 1) % VOCABULARY


def loss_of(model: Callable[[Tensor], Tensor], rank: int, step: int) -> Tensor:
    tokens, following = batch(rank, step)
    return F.cross_entropy(model(tokens).flatten(0, 1).float(), following.flatten())


Order = Literal["in place", "wrapped", "checkpointed", "sharded first", "whole model"]
"""Which comes first: torch.compile of each block, in place or not, after checkpointing as torchtitan has it; or
fully_shard; and whether the model is compiled as a whole."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a model is trained."""

    ffn: str = "swiglu"
    hidden: int = 64
    layers: int = 1
    order: Order = "in place"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    shard: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of `fully_shard`: reshard_after_forward, mp_policy, ..."""
    optimizer: str = "AdamW"
    """A class of torch.optim, or of s24compile."""
    optimizer_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    clip: float | None = None
    steps: int = 5

    @property
    def all_options(self) -> dict[str, Any]:
        return {**OPTIONS, **self.options}

    def model(self) -> Net:
        return net(ffn=self.ffn, hidden=self.hidden, layers=self.layers)

    def compiled(self, model: Net) -> nn.Module:
        """The model with its blocks compiled; compiled as a whole, what is to be called instead."""
        if self.order == "whole model":
            return torch.compile(model, backend="s24", options=self.all_options)
        for name, block in list(model.layers.named_children()):
            if self.order == "wrapped":
                model.layers.register_module(name, torch.compile(block, backend="s24", options=self.all_options))
                continue
            if self.order == "checkpointed":
                block = checkpoint_wrapper(block)
                model.layers.register_module(name, block)
            block.compile(backend="s24", options=self.all_options)
        return model

    def sharded(self, model: Net, mesh: Any = None) -> nn.Module:
        """The model under FSDP2, compiled."""
        if self.order in ("sharded first", "whole model"):
            return self.compiled(shard(model, mesh, **self.shard))
        self.compiled(model)
        return shard(model, mesh, **self.shard)

    def replicated(self, model: Net) -> DistributedDataParallel:
        """The model under DDP, its blocks compiled."""
        return DistributedDataParallel(self.compiled(model))

    def optimizer_of(self, model: nn.Module) -> Optimizer:
        kind = getattr(torch.optim, self.optimizer, None) or getattr(s24compile, self.optimizer)
        return kind(model.parameters(), **{"lr": 1e-2, **self.optimizer_options})


def shard(model: Net, mesh: Any = None, **options: Any) -> Net:
    """Block by block, and then what is left."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    for block in model.layers:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def train(setup: Setup, model: nn.Module, optimizer: Optimizer, rank: int, first: int = 0) -> list[float]:
    """The losses of `setup.steps` steps."""
    torch.manual_seed(7 + first)
    losses = []
    for step in range(first, first + setup.steps):
        for part in range(setup.accumulate):
            last = part == setup.accumulate - 1
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(last)
            waits = isinstance(model, DistributedDataParallel) and not last
            with model.no_sync() if waits else contextlib.nullcontext():
                loss = loss_of(model, rank, step * setup.accumulate + part)
                loss.backward()
        if setup.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def trained(setup: Setup, how: Literal["ddp", "fsdp"], rank: int) -> dict[str, Any]:
    """Trains a new model; what can be compared of it afterwards."""
    torch._dynamo.reset()  # its guards do not ask for hooks: what has none would be run for what FSDP2 gave some
    inner = setup.model()
    model = setup.replicated(inner) if how == "ddp" else setup.sharded(inner)
    losses = train(setup, model, setup.optimizer_of(model), rank)
    return {"losses": losses, **seen(model)}


def seen(model: nn.Module) -> dict[str, Any]:
    """Weights as they are whole, and the state of the sparse ones."""
    return {"weights": whole(model), "states": states(model)}


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {clean(name): full(p).detach().clone() for name, p in model.named_parameters()}


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def clean(name: str) -> str:
    for part in ("_orig_mod.", "_checkpoint_wrapped_module.", "module."):
        name = name.replace(part, "")
    return name


def states(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Name -> mask in short, steps, age, whether an optimizer holds it."""
    return {
        clean(name): (digest(weight.mask), weight.steps, weight.age, weight.held)
        for name, weight in s24compile.sparse_weights(model).items()
    }


def digest(tensor: Tensor) -> str:
    return hashlib.md5(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def operands() -> list[ShardedOperand]:
    return [op for known in OPERANDS.values() for op in known.values() if isinstance(op, ShardedOperand)]


def packed_bytes() -> int:
    """Of all packed forms of sharded weights in this process."""
    return sum(buffer.untyped_storage().size() for operand in operands() for buffer in operand.buffers(True))
