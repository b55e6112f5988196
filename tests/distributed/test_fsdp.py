"""FSDP2 trains what DDP trains, to the bit where both sum over two processes; what it frees, it packs again.

Sums over three and more processes are made in another order than DDP's, and norms over shards in another than over
whole tensors: there parameters agree to 1e-5, at a learning rate of 1e-2, and masks all the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import Shard

import s24compile
from s24compile.errors import ModelError
from tests.distributed.ranks import Ranks
from tests.distributed.training import (
    Setup,
    batch,
    digest,
    full,
    largest_difference,
    loss_of,
    net,
    operands,
    packed_bytes,
    seen,
    shard,
    states,
    train,
    trained,
    whole,
)  # fmt: skip


def same_as_ddp(rank: int, world: int, setup: Setup, variants: list[dict[str, Any]]) -> dict[str, Any]:
    """Trains once under DDP, and once under FSDP2 for each variant of the setup."""
    expected = trained(setup, "ddp", rank)
    found = {}
    for number, variant in enumerate(variants):
        got = trained(dataclasses.replace(setup, **variant), "fsdp", rank)
        found[f"{number}: {', '.join(variant)}"] = {
            "losses": got["losses"] == expected["losses"],
            "difference": largest_difference(got["weights"], expected["weights"]),
            "states": got["states"] == expected["states"],
            "seen": got["states"],
        }
    return found


def assert_same(answers: list[dict[str, Any]], weights: int, *, within: float = 0.0, losses: bool = True) -> None:
    for variant, result in answers[0].items():
        assert len(result["seen"]) == weights, f"{variant}: not all is sparse"
        for answer in answers:
            assert answer[variant]["seen"] == result["seen"], f"{variant}: ranks have other masks"
            assert answer[variant]["states"], f"{variant}: masks are not DDP's"
            assert answer[variant]["losses"] or not losses, f"{variant}: losses are not DDP's"
            assert answer[variant]["difference"] <= within, f"{variant}: parameters are not DDP's"


RESHARD = [{"shard": {"reshard_after_forward": reshard}} for reshard in (True, False)]


@pytest.mark.parametrize("recipe", ["fst", "fst-exact", "fst-down", "sste", "srste", "ste"])
def test_train_by_each_recipe_as_ddp_does(recipe: str, ranks: Ranks) -> None:
    ffn = "mlp" if recipe in ("fst-exact", "sste") else "swiglu"
    weights = {"mlp": 2, "swiglu": 3}[ffn] if recipe != "fst-down" else 1
    setup = Setup(ffn=ffn, options={"recipe": recipe} if recipe != "ste" else {"recipe": "ste"})
    assert_same(ranks.run(same_as_ddp, setup=setup, variants=RESHARD), weights)


def test_train_in_each_order_of_compiling_and_sharding(ranks: Ranks) -> None:
    orders = ("in place", "wrapped", "checkpointed", "sharded first", "whole model")
    answers = ranks.run(same_as_ddp, setup=Setup(layers=2, steps=3), variants=[{"order": order} for order in orders])
    assert_same(answers, 6)


def test_step_by_each_kind_of_optimizer(ranks: Ranks) -> None:
    kinds = [{"foreach": True}, {"fused": True}, {"foreach": False}]
    for kind in kinds:
        setup = Setup(ffn="mlp", optimizer_options=kind, options={"inner": "eager"})
        assert_same(ranks.run(same_as_ddp, setup=setup, variants=RESHARD[:1]), 2)


def test_step_by_adamw_step(ranks: Ranks) -> None:
    options = {"total_steps": 10, "clip": (0.2, 0.4)}
    setup = Setup(
        ffn="mlp", optimizer="AdamW_STEP", optimizer_options=options, steps=7,
        options={"recipe": "step", "inner": "eager", "decay": 0.0},
    )  # fmt: skip
    assert_same(ranks.run(same_as_ddp, setup=setup, variants=RESHARD[:1]), 2)


def test_accumulate_gradients(ranks: Ranks) -> None:
    setup = Setup(accumulate=3, options={"inner": "eager"})
    assert_same(ranks.run(same_as_ddp, setup=setup, variants=RESHARD), 3)


def test_clip_gradients(ranks: Ranks) -> None:
    setup = Setup(clip=0.5, optimizer="SGD", options={"inner": "eager", "decay": 1e-4})
    assert_same(ranks.run(same_as_ddp, setup=setup, variants=RESHARD[:1]), 3, within=1e-5, losses=False)


def test_shard_columns_and_offload_to_the_host(ranks: Ranks) -> None:
    variants = [
        {"shard": {"shard_placement_fn": columns}},
        {"shard": {"offload_policy": CPUOffloadPolicy(pin_memory=False)}},
    ]
    assert_same(ranks.run(same_as_ddp, setup=Setup(options={"inner": "eager"}), variants=variants), 3)


def columns(parameter: torch.nn.Parameter) -> Shard | None:
    return Shard(1) if parameter.dim() == 2 else None


def test_train_what_inductor_compiles(ranks: Ranks) -> None:
    setup = Setup(ffn="mlp", steps=3, options={"inner": "inductor"})
    assert_same(ranks.run(same_as_ddp, setup=setup, variants=RESHARD[:1]), 2)


def test_decay_shards_that_cut_blocks_of_four(ranks: Ranks) -> None:
    # 80 rows are 27, 27 and 26; 16 rows over three are 6, 6 and 4 of blocks that end at 4, 8 and 12.
    setup = Setup(hidden=80, options={"inner": "eager"})
    for recipe in ("fst-exact", "srste"):
        with_recipe = dataclasses.replace(setup, options={**setup.options, "recipe": recipe})
        answers = ranks.run(same_as_ddp, world=3, setup=with_recipe, variants=RESHARD[:1])
        assert_same(answers, 3, within=1e-5, losses=False)


def hybrid(rank: int, world: int) -> dict[str, Any]:
    setup = Setup(options={"inner": "eager"})
    expected = trained(setup, "ddp", rank)
    torch._dynamo.reset()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = setup.sharded(setup.model(), mesh)
    train(setup, model, setup.optimizer_of(model), rank)
    difference = largest_difference(whole(model), expected["weights"])
    return {"difference": difference, "states": states(model), "expected": expected["states"]}


def test_shard_within_groups_that_are_replicated(ranks: Ranks) -> None:
    answers = ranks.run(hybrid, world=4)
    assert len(answers[0]["states"]) == 3
    for answer in answers:
        assert answer["states"] == answers[0]["states"] == answer["expected"]
        assert answer["difference"] <= 1e-5


def from_meta(rank: int, world: int) -> dict[str, Any]:
    setup = Setup(options={"inner": "eager"})
    expected = trained(setup, "ddp", rank)
    torch._dynamo.reset()
    with torch.device("meta"):
        empty = setup.model()
    model = setup.sharded(empty)
    optimizer = setup.optimizer_of(model)
    model.to_empty(device="cpu")
    set_model_state_dict(model, net(layers=setup.layers).state_dict(), options=StateDictOptions(full_state_dict=True))
    train(setup, model, optimizer, rank)
    got = seen(model)
    return {"difference": largest_difference(got["weights"], expected["weights"]),
            "states": got["states"] == expected["states"], "count": len(got["states"])}  # fmt: skip


def test_begin_on_the_meta_device(ranks: Ranks) -> None:
    for answer in ranks.run(from_meta):
        assert answer == {"difference": 0.0, "states": True, "count": 3}


def in_bf16(rank: int, world: int) -> dict[str, Any]:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    setup = Setup(steps=8, options={"recipe": "fst-exact"}, shard={"mp_policy": policy})
    model = setup.sharded(setup.model())
    losses = train(setup, model, setup.optimizer_of(model), rank)
    dtypes = {p.dtype for p in model.parameters()}
    # The mask is that of what graphs multiply by, the numbers rounded, and decay reaches fp32 masters.
    with torch.no_grad():
        loss_of(model, rank, 0)
    masks = {}
    for name, p in model.named_parameters():
        weight = s24compile.sparse_weights(model).get(name)
        if weight is not None and weight.age == 0:
            rounded = full(p).detach().bfloat16()
            masks[name] = torch.equal(weight.mask, weight.mask_of(weight.found_patterns(rounded)))
    return {"losses": losses, "states": states(model), "masks": masks, "dtypes": dtypes}


def test_pack_what_is_gathered_in_bfloat16(ranks: Ranks) -> None:
    first, second = ranks.run(in_bf16)
    assert first["states"] == second["states"]
    assert first["masks"] == dict.fromkeys(first["states"], True)
    assert len(first["states"]) == 3
    assert first["dtypes"] == {torch.float32}
    assert sum(first["losses"][-2:]) < sum(first["losses"][:2])


def memory(rank: int, world: int, reshard: bool) -> dict[str, Any]:
    setup = Setup(shard={"reshard_after_forward": reshard}, options={"inner": "eager"})
    model = setup.sharded(setup.model())
    optimizer = setup.optimizer_of(model)
    at = []
    for step in range(2):
        for part in range(2):
            loss = loss_of(model, rank, 2 * step + part)
            at.append(packed_bytes())
            loss.backward()
            at.append(packed_bytes())
        optimizer.step()
        optimizer.zero_grad()
    return {"bytes": at, "packs": {op.times_packed for op in operands()}, "operands": len(operands())}


@pytest.mark.parametrize(("reshard", "packs"), [(True, 8), (False, 4)])
def test_free_packed_weights_with_the_gathered_ones(reshard: bool, packs: int, ranks: Ranks) -> None:
    for answer in ranks.run(memory, reshard=reshard):
        assert answer["operands"] == 2  # gate and up in one
        assert answer["packs"] == {packs}, "twice for each backward, or once"
        after_forward, after_backward = answer["bytes"][0::2], answer["bytes"][1::2]
        assert set(after_backward) == {0}
        # Values of W and W^T are half of the elements each, in fp32; metadata comes on top.
        values = 4 * 3 * 32 * 64
        assert len(set(after_forward)) == 1
        assert after_forward[0] == 0 if reshard else values < after_forward[0] < 1.25 * values


def several_forwards(rank: int, world: int) -> dict[str, Any]:
    setup = Setup(options={"inner": "aot_eager"})
    expected = []
    for how in ("ddp", "fsdp"):
        torch._dynamo.reset()
        inner = setup.model()
        model = setup.replicated(inner) if how == "ddp" else setup.sharded(inner)
        optimizer = setup.optimizer_of(model)
        torch.manual_seed(3)
        for step in range(3):
            losses = [loss_of(model, rank, 2 * step + part) for part in range(2)]
            with torch.no_grad():
                loss_of(model, rank, 100)
            sum(losses).backward()
            optimizer.step()
            optimizer.zero_grad()
        expected.append(seen(inner))
    return {"difference": largest_difference(expected[0]["weights"], expected[1]["weights"]),
            "states": expected[0]["states"] == expected[1]["states"]}  # fmt: skip


def test_run_several_forwards_before_their_backwards(ranks: Ranks) -> None:
    for answer in ranks.run(several_forwards):
        assert answer == {"difference": 0.0, "states": True}


def sharded_late(rank: int, world: int) -> dict[str, Any]:
    setup = Setup(options={"inner": "eager"}, steps=3)
    model = setup.compiled(setup.model())
    train(setup, model, setup.optimizer_of(model), 0)
    before = states(model)
    shard(model)
    optimizer = setup.optimizer_of(model)
    with torch.no_grad():
        loss_of(model, rank, 0)
    between = states(model)
    train(setup, model, optimizer, rank, first=3)
    return {"before": before, "between": between, "after": states(model)}


def test_keep_masks_and_counters_where_sharding_comes_later(ranks: Ranks) -> None:
    first, second = ranks.run(sharded_late)
    assert {n: s[1] for n, s in first["between"].items()} == {n: s[1] for n, s in first["before"].items()}
    assert {n: s[1] for n, s in first["after"].items()} == dict.fromkeys(first["before"], 6)
    assert first["after"] == second["after"]


def raised(call: Any) -> str:
    try:
        call()
    except ModelError as error:
        return str(error)
    return ""


def misuse(rank: int, world: int) -> dict[str, str]:
    setup = Setup(options={"inner": "eager"})
    model = setup.sharded(setup.model())
    optimizer = setup.optimizer_of(model)
    train(setup, model, optimizer, rank)
    found = {}
    waiting = loss_of(model, rank, 0)
    loss_of(model, rank, 1).backward()
    optimizer.step()
    found["stepped"] = raised(waiting.backward)
    found["graphs"] = str(s24compile.explain(
        torch.compile(shard(net(layers=1)), backend="s24", mode="reduce-overhead"), batch(rank, 0)[0]
    ))  # fmt: skip
    return found


def frees_before_backward(rank: int, world: int) -> dict[str, str]:
    setup = Setup(options={"inner": "eager"})
    model = setup.sharded(setup.model())
    model.layers[0].set_unshard_in_backward(False)
    return {"freed": raised(loss_of(model, rank, 0).backward)}


def test_say_what_a_backward_lacks(ranks: Ranks) -> None:
    found = ranks.run(misuse)[0]
    assert "an optimizer stepped it" in found["stepped"]
    assert "CUDA graphs would go on reading where they were" in found["graphs"]
    assert "set_unshard_in_backward(True)" in ranks.run(frees_before_backward)[0]["freed"]


def explained(rank: int, world: int) -> dict[str, Any]:
    model = shard(net(layers=2))
    report = s24compile.explain(model, batch(rank, 0)[0])
    return {"rows": [(site.path, site.linears) for site in report.sites], "unseen": report.unseen}


def test_explain_a_sharded_model(ranks: Ranks) -> None:
    found = ranks.run(explained)[0]
    assert found["rows"] == [(f"layers.{i}.ffn", 3) for i in range(2)]
    assert not [name for name in found["unseen"] if "ffn" in name], "the modules hold shards, the graph took others"


def baked(rank: int, world: int) -> dict[str, Any]:
    result = []
    for how in ("ddp", "fsdp"):
        for recipe in ("fst-exact", "sste"):
            torch._dynamo.reset()
            setup = Setup(options={"inner": "eager", "recipe": recipe}, steps=3)
            inner = setup.model()
            model = setup.replicated(inner) if how == "ddp" else setup.sharded(inner)
            train(setup, model, setup.optimizer_of(model), rank)
            s24compile.refresh(model)
            s24compile.bake_(model)
            result.append(whole(inner))
    pairs = zip(result[:2], result[2:], strict=True)
    kept = [digest(weights["layers.0.ffn.w1.weight"] != 0) for weights in result]
    return {"differences": [largest_difference(one, other) for one, other in pairs], "kept": kept}


def test_bake_shards(ranks: Ranks) -> None:
    for answer in ranks.run(baked):
        assert answer["differences"] == [0.0, 0.0]


def idle_steps(rank: int, world: int) -> dict[str, Any]:
    """A step at learning rate 0, in which this rank's shards have gradients of 0 and the other's have not."""
    setup = Setup(options={"inner": "eager"}, optimizer_options={"lr": 0.0})
    model = setup.sharded(setup.model())
    optimizer = setup.optimizer_of(model)
    loss_of(model, rank, 0).backward()
    if rank == 0:
        for parameter in model.parameters():
            parameter.grad.zero_()
    optimizer.step()
    counted = {weight.steps for weight in s24compile.sparse_weights(model).values()}
    for parameter in model.parameters():
        parameter.grad.zero_()
    optimizer.step()
    return {"counted": counted, "idle": {weight.steps for weight in s24compile.sparse_weights(model).values()}}


def test_count_a_step_on_all_ranks_or_on_none(ranks: Ranks) -> None:
    for answer in ranks.run(idle_steps):
        assert answer == {"counted": {1}, "idle": {1}}
