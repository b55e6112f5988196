"""DistributedDataParallel in one process, and orders of fully_shard that cannot train sparse."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import s24compile
from s24compile import errors
from s24compile.demo.model import GPT, GPTConfig


@pytest.fixture
def process_group(tmp_path: object) -> Iterator[None]:
    """A gloo group of this process alone; the store is a file, so that parallel test workers don't meet at a port."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train_two_steps(optimize_ddp: bool | str) -> GPT:
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=256, block_size=8))
    wrapped = DistributedDataParallel(model, bucket_cap_mb=1)
    tokens = torch.randint(256, (2, 8))
    with torch._dynamo.config.patch(optimize_ddp=optimize_ddp):
        fast = torch.compile(wrapped, backend="s24", options={"inner": "aot_eager"})
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            fast(tokens, tokens)[1].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert s24compile.sparse_weights(fast).keys() == s24compile.sparse_weights(model).keys()
    return model


@pytest.mark.parametrize("optimize_ddp", ["python_reducer", False])
def test_train_every_layer_sparse_where_ddp_keeps_graphs_whole(optimize_ddp: bool | str, process_group: None) -> None:
    model = train_two_steps(optimize_ddp)
    weights = s24compile.sparse_weights(model)
    assert set(weights) == {f"blocks.{i}.mlp.{n}.weight" for i in range(2) for n in ("c_fc", "c_proj")}
    assert {w.steps for w in weights.values()} == {2}


def test_warn_that_ddp_cuts_layers_and_say_what_to_set(process_group: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="s24compile"):
        train_two_steps(True)
    assert "optimize_ddp = False and compile block by block" in caplog.text


def sharded(model: GPT) -> GPT:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def small_gpt() -> GPT:
    return GPT(GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=8))


def test_raise_where_fsdp_came_after_the_first_forward(process_group: None) -> None:
    model, x = nn.Sequential(small_gpt().blocks[0].mlp), torch.randn(4, 64)
    model[0].compile(backend="s24", options={"inner": "eager"})
    model(x).sum().backward()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(errors.ModelError, match="before the first forward"):  # Dynamo's guards see nothing new
        model(x)


ACTIVATION = {"recipe": "activation", "dense_until": 1, "gradient": "dense", "inner": "aot_eager"}


def losses_with_2_4_states(model: GPT, compiled: nn.Module, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        tokens = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(step))
        loss = compiled(tokens, tokens)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("way", ["fsdp", "fsdp, each block", "ddp"])
def test_train_2_4_hidden_states_under_fsdp_and_ddp(way: str, process_group: None) -> None:
    """No weight is packed, so none need be whole before the forward."""
    found = []
    for parallel in (False, True):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=8, activation="relu2"))
        run: nn.Module = model
        if parallel and way != "ddp":
            sharded(model)
        if parallel and way == "ddp":
            run = DistributedDataParallel(model)
        with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
            if parallel and way == "fsdp, each block":
                for block in model.blocks:
                    block.compile(backend="s24", options=ACTIVATION)
                losses = losses_with_2_4_states(model, run)
            else:
                losses = losses_with_2_4_states(model, torch.compile(run, backend="s24", options=ACTIVATION))
        stats = s24compile.activation_stats(model)
        assert list(stats) == ["blocks.0.mlp", "blocks.1.mlp"]
        assert all(layer.tokens == 16 for layer in stats.values()), "2:4 after the first step"
        found.append(losses)
        assert {entry["steps"] for entry in s24compile.state_dict(model).values()} == {3}
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_warn_that_fsdp1_trains_dense(process_group: None, caplog: pytest.LogCaptureFixture) -> None:
    model, tokens = small_gpt(), torch.randint(256, (2, 8))
    sharded_flat = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    compiled = torch.compile(sharded_flat, backend="s24", options={"inner": "eager"})
    with caplog.at_level(logging.WARNING, logger="s24compile"):
        compiled(tokens, tokens)[1].backward()
    assert "a view of a flat parameter (FullyShardedDataParallel)" in caplog.text
    assert not s24compile.sparse_weights(model)
