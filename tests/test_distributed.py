"""DistributedDataParallel in one process: layers stay whole where Dynamo keeps them whole, and say so where not."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import s24compile
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
    assert 'optimize_ddp = "python_reducer"' in caplog.text
