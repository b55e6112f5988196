"""The state of one weight, driven by hand: masks and their schedule, freshness, life and death, conflicts."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from s24compile import errors
from s24compile.config import Config
from s24compile.weights.model_state import bake_, load_state_dict, refresh, sparse_weights, state_dict
from s24compile.weights.operand import Operand
from s24compile.weights.operand_map import OPERANDS, operand
from s24compile.weights.packing import freshen
from s24compile.weights.registry import TOLD, WEIGHTS
from tests.freshening import MLP, dense_values, operand_of, recorded_ops, request_for, sparse_forward, train

pytestmark = pytest.mark.usefixtures("on_device")

FST = Config(mask_interval=3, gradient="dense")


def weight_of(parameter):
    found = WEIGHTS.get(parameter)
    assert found is not None
    return found


def new_parameter(rows=32, cols=16, **kwargs):
    return nn.Parameter(torch.randn(rows, cols, **kwargs))


def step(parameter, optimizer):
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def is_transposable(mask):
    rows = mask.unflatten(1, (-1, 4)).sum(-1)
    columns = mask.unflatten(0, (-1, 4)).sum(1)
    return bool((rows == 2).all() and (columns == 2).all())


def test_search_at_the_first_forward_and_after_each_interval():
    parameter = new_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    ages = []
    for _ in range(8):
        freshen(operand_of(parameter, config=FST), True)
        ages.append(weight_of(parameter).age)
        step(parameter, optimizer)
    assert ages == [0, 1, 2, 0, 1, 2, 0, 1]
    assert weight_of(parameter).steps == 8


def test_keep_the_mask_between_searches_and_follow_the_values():
    parameter = new_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for i in range(5):
        packed = freshen(operand_of(parameter, config=FST), True)
        mask = weight_of(parameter).mask
        assert is_transposable(mask)
        if i % 3 == 0:
            searched = torch.ops.s24.transposable_mask(parameter.detach())
        assert torch.equal(mask, searched), "steps 0 and 3 search the present weights, the others keep that mask"
        assert torch.equal(dense_values(packed, 32, 16), parameter.detach() * mask)
        transposed = torch.ops.s24.unpack(packed[2], packed[3], 16, 32, "sm90")
        assert torch.equal(transposed, (parameter.detach() * mask).t())
        step(parameter, optimizer)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "foreach", "fused"])
def test_repack_after_a_step_of_any_optimizer(kind):
    parameter = new_parameter()
    optimizer = {
        "sgd": lambda: torch.optim.SGD([parameter], lr=0.1),
        "adamw": lambda: torch.optim.AdamW([parameter], foreach=False),
        "foreach": lambda: torch.optim.AdamW([parameter], foreach=True),
        "fused": lambda: torch.optim.AdamW([parameter], fused=True),
    }[kind]()
    freshen(operand_of(parameter, config=FST), True)
    step(parameter, optimizer)
    packed = freshen(operand_of(parameter, config=FST), True)
    assert torch.equal(dense_values(packed, 32, 16), parameter.detach() * weight_of(parameter).mask)


def test_pack_once_per_optimizer_step_however_many_micro_batches():
    model = MLP()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with recorded_ops() as calls:
        train(model, optimizer, FST, range(5), micro_batches=4)
    assert calls.count("pack_weight_") == 2 * 5


def test_repack_with_the_old_mask_after_an_edit_in_place():
    parameter = new_parameter()
    freshen(operand_of(parameter, config=FST), True)
    mask = weight_of(parameter).mask.clone()
    with torch.no_grad():
        parameter.copy_(torch.randn(32, 16))
    packed = freshen(operand_of(parameter, config=FST), True)
    assert torch.equal(weight_of(parameter).mask, mask)
    assert torch.equal(dense_values(packed, 32, 16), parameter.detach() * mask)


def test_repack_with_the_old_mask_after_load_state_dict():
    model = MLP()
    x = torch.randn(8, 16)
    sparse_forward(model, x, FST)
    mask = sparse_weights(model)["up.weight"].mask.clone()
    model.load_state_dict(MLP().state_dict())
    expected = torch.relu(x @ (model.up.weight * mask).t() + model.up.bias)
    expected = expected @ (model.down.weight * sparse_weights(model)["down.weight"].mask).t() + model.down.bias
    torch.testing.assert_close(sparse_forward(model, x, FST), expected)
    assert torch.equal(sparse_weights(model)["up.weight"].mask, mask)


def test_inherit_state_when_load_state_dict_assigns():
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, FST, range(2))
    mask = sparse_weights(model)["up.weight"].mask.clone()
    model.load_state_dict(MLP().state_dict(), assign=True)
    sparse_forward(model, torch.randn(8, 16), FST)
    weight = sparse_weights(model)["up.weight"]
    assert torch.equal(weight.mask, mask)
    assert (weight.steps, weight.age) == (2, 2)


ROW_WISE = ["ste", "srste", "step", "sste"]


def has_best_masks(model: nn.Module) -> bool:
    return all(
        torch.equal(weight.mask, torch.ops.s24.magnitude_mask(parameter.detach()))
        for parameter in model.parameters()
        if (weight := WEIGHTS.get(parameter)) is not None
    )


@pytest.mark.parametrize("how", ["assign", "replace", "restore", "restore first"])
@pytest.mark.parametrize("recipe", ROW_WISE)
def test_search_row_wise_masks_of_weights_that_came_with_an_old_mask(recipe: str, how: str) -> None:
    model, config, x = MLP(), Config(recipe=recipe), torch.randn(8, 16)
    sparse_forward(model, x, config)
    old = sparse_weights(model)["up.weight"].mask
    state = state_dict(model)
    if how == "assign":
        model.load_state_dict(MLP().state_dict(), assign=True)
    elif how == "replace":
        model.up.weight = new_parameter()
    else:
        model = MLP() if how == "restore first" else model
        load_state_dict(model, state)
        model.load_state_dict(MLP().state_dict())
    sparse_forward(model, x, config)
    assert has_best_masks(model)
    weight = sparse_weights(model)["up.weight"]
    assert (weight.age, weight.flip_rate) == (0, float((weight.mask != old).float().mean()))


@pytest.mark.parametrize("recipe", ROW_WISE)
def test_keep_age_and_flip_rate_of_a_frozen_row_wise_weight_over_a_restore(recipe: str) -> None:
    model, config, x = MLP(), Config(recipe=recipe, gradient="dense"), torch.randn(8, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    train(model, optimizer, config, range(3))
    sparse_forward(model, x, config)
    model.down.weight.requires_grad_(False)
    train(model, optimizer, config, range(3, 5))
    other = copy.deepcopy(model)
    load_state_dict(other, state_dict(model))
    expected = weight_of(model.down.weight)
    for m in (model, other):
        sparse_forward(m, x, config)
    found = weight_of(other.down.weight)
    assert (found.age, found.flip_rate) == (expected.age, expected.flip_rate)
    assert found.age == 2


def test_inherit_loaded_state_when_load_state_dict_assigns_before_the_first_forward():
    model, other = MLP(), MLP()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), FST, range(2))
    load_state_dict(other, state_dict(model))
    other.load_state_dict(model.state_dict(), assign=True)
    sparse_forward(other, torch.randn(8, 16), FST)
    assert sparse_weights(other)["up.weight"].steps == 2


def test_follow_data_writes_at_a_refresh_and_under_always():
    parameter = new_parameter()
    found = operand_of(parameter, config=FST)
    freshen(found, True)
    parameter.data.add_(1.0)
    model = nn.Module()
    model.weight = parameter
    refresh(model)
    assert torch.equal(dense_values(found.forward, 32, 16), parameter.detach() * weight_of(parameter).mask)

    other = new_parameter()
    always = Config(freshness="always")
    freshen(operand_of(other, config=always), True)
    mask = weight_of(other).mask.clone()
    other.data.mul_(-3.0).add_(torch.randn(32, 16))
    packed = freshen(operand_of(other, config=always), True)
    assert torch.equal(weight_of(other).mask, mask), "always packs anew, and searches by the schedule"
    assert torch.equal(dense_values(packed, 32, 16), other.detach() * mask)


@pytest.mark.parametrize("recipe", ROW_WISE)
def test_search_row_wise_masks_of_refreshed_weights(recipe: str) -> None:
    model, config = MLP(), Config(recipe=recipe)
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), config, range(2))
    sparse_forward(model, torch.randn(8, 16), config)
    weight = sparse_weights(model)["up.weight"]
    rate, old = weight.flip_rate, weight.mask
    refresh(model)
    assert weight.flip_rate == rate, "nothing was written"
    model.up.weight.data.add_(torch.randn(32, 16))
    refresh(model)
    assert has_best_masks(model)
    assert weight.flip_rate == float((weight.mask != old).float().mean())


def test_search_a_frozen_weight_at_the_end_of_its_interval_once_it_was_refreshed() -> None:
    model, config = MLP(), Config(mask_interval=2)
    model.up.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, config, range(1))
    model.up.weight.data.copy_(torch.randn(32, 16))
    refresh(model)
    train(model, optimizer, config, range(1, 4))
    assert torch.equal(weight_of(model.up.weight).mask, torch.ops.s24.transposable_mask(model.up.weight))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1.0, "x", True])
def test_refuse_a_decay_that_config_refuses(value):
    model = MLP()
    sparse_forward(model, torch.randn(4, model.up.in_features), FST)
    weight = weight_of(model.up.weight)
    weight.decay = 1e-3
    with pytest.raises(errors.OptionError, match="decay"):
        weight.decay = value
    assert weight.decay == 1e-3


def test_leave_lazy_parameters_of_other_modules_alone():
    sparse_forward(MLP(), torch.randn(4, MLP().up.in_features), FST)  # from here on replaced parameters are followed
    lazy = nn.LazyLinear(8)
    assert lazy(torch.randn(2, 4)).shape == (2, 8)


def test_follow_replaced_data():
    parameter = new_parameter()
    found = operand_of(parameter, config=FST)
    freshen(found, True)
    parameter.data = torch.randn(32, 16)
    packed = freshen(found, True)
    assert torch.equal(dense_values(packed, 32, 16), parameter.detach() * weight_of(parameter).mask)


class Memory:
    """One address at which one storage may follow another, as allocators have it when they please."""

    def __init__(self, rows: int = 32, cols: int = 16) -> None:
        self.memory = bytearray(4 * rows * cols)
        self.shape = rows, cols

    def next_storage(self) -> torch.Tensor:
        """New values in a storage of its own."""
        torch.frombuffer(self.memory, dtype=torch.float32).normal_()
        return torch.frombuffer(self.memory, dtype=torch.float32).view(self.shape)


@pytest.mark.parametrize("recipe", ["fst", "ste"])
def test_follow_replaced_data_at_the_same_address(recipe: str) -> None:
    memory = Memory()
    parameter = nn.Parameter(memory.next_storage())
    found = operand_of(parameter, config=Config(recipe=recipe), transpose=recipe == "fst")
    freshen(found, recipe == "fst")
    old, seen = weight_of(parameter).mask, (parameter._version, parameter.data_ptr())
    parameter.data = torch.empty(32, 16, device="cpu")
    parameter.data = memory.next_storage()
    assert (parameter._version, parameter.data_ptr()) == seen, "neither of these can tell"
    packed = freshen(found, recipe == "fst")
    mask = weight_of(parameter).mask
    assert torch.equal(dense_values(packed, 32, 16), parameter.detach() * mask)
    assert torch.equal(mask, old if recipe == "fst" else torch.ops.s24.magnitude_mask(parameter.detach()))


@pytest.mark.parametrize("recipe", ["fst", "ste", "sste"])
@pytest.mark.parametrize("edit", [False, True])
def test_run_several_forwards_before_a_backward_under_always(recipe: str, edit: bool) -> None:
    config = Config(recipe=recipe, freshness="always", gradient="dense")
    model = MLP()
    xs = [torch.randn(8, 16, requires_grad=True) for _ in range(2)]
    expected = []
    values = [model.up.weight.detach().clone(), torch.randn(32, 16) if edit else model.up.weight.detach().clone()]
    sparse_forward(model, xs[0], config)
    for x, value in zip(xs, values, strict=True):
        model.up.weight.data.copy_(value)
        expected += torch.autograd.grad(sparse_forward(model, x, config).square().sum(), [x, model.up.weight])
    losses = []
    for x, value in zip(xs, values, strict=True):
        model.up.weight.data.copy_(value)
        losses.append(sparse_forward(model, x, config).square().sum())
    found = [g for x, loss in zip(xs, losses, strict=True) for g in torch.autograd.grad(loss, [x, model.up.weight])]
    torch.testing.assert_close(found, expected)


def test_follow_replaced_data_with_two_operands() -> None:
    memory = Memory()
    parameter = nn.Parameter(memory.next_storage())
    wide, narrow = (operand_of(parameter, config=FST, dtype=d) for d in (torch.float32, torch.bfloat16))
    for found in (wide, narrow):
        freshen(found, True)

    def follows(*operands: Operand) -> bool:
        masked = parameter.detach() * weight_of(parameter).mask
        return all(
            torch.equal(dense_values(freshen(found, True), 32, 16), masked.to(found.request.dtype))
            for found in operands
        )

    kept = parameter.data
    for data in (torch.empty(32, 16, device="cpu").normal_(), kept):  # an average of the weights, and back
        parameter.data = data
        assert follows(narrow)
    del kept, data
    parameter.data = torch.empty(32, 16, device="cpu")
    parameter.data = memory.next_storage()
    assert follows(wide, narrow)


def test_hold_no_storage_alive_and_copy_without_harm() -> None:
    parameter = new_parameter()
    freshen(operand_of(parameter, config=FST), True)
    reference = StorageWeakRef(parameter.untyped_storage())
    copies = [copy.deepcopy(weight_of(parameter).contents.storage)]
    copies.append(copy.copy(weight_of(parameter).contents.storage))
    parameter.data = torch.randn(32, 16)
    assert reference.expired()
    del copies
    packed = freshen(operand_of(parameter, config=FST), True)
    assert torch.equal(dense_values(packed, 32, 16), parameter.detach() * weight_of(parameter).mask)


def test_survive_half_and_double():
    model = nn.Linear(16, 32, bias=False)
    freshen(operand_of(model.weight, config=FST), True)
    mask = weight_of(model.weight).mask.clone()
    model.bfloat16()
    packed = freshen(operand_of(model.weight, config=FST), True)
    assert packed[0].dtype == torch.bfloat16
    assert torch.equal(weight_of(model.weight).mask, mask)
    assert torch.equal(dense_values(packed, 32, 16), model.weight.detach() * mask)
    operands = OPERANDS.get(model.weight)
    assert operands is not None
    assert len(operands) == 1, "the fp32 operand of the fp32 parameter has gone"


def test_start_afresh_after_deepcopy():
    model = MLP()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), FST, range(2))
    twin = copy.deepcopy(model)
    assert sparse_weights(twin) == {}
    sparse_forward(twin, torch.randn(8, 16), FST)
    assert sparse_weights(twin)["up.weight"].steps == 0
    assert sparse_weights(model)["up.weight"].steps == 2
    load_state_dict(twin, state_dict(model))
    assert torch.equal(sparse_weights(twin)["up.weight"].mask, sparse_weights(model)["up.weight"].mask)


def test_follow_an_ema_copy():
    model = MLP()
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for i in range(3):
        train(model, optimizer, FST, range(i, i + 1))
        ema.update_parameters(model)
        packed = freshen(operand_of(ema.module.up.weight, config=FST), False)
        masked = ema.module.up.weight.detach() * weight_of(ema.module.up.weight).mask
        assert torch.equal(dense_values(packed, 32, 16), masked)
    assert weight_of(ema.module.up.weight).steps == 0


def test_free_everything_with_the_model():
    model = MLP()
    train(model, torch.optim.AdamW(model.parameters()), FST, range(2))
    gate, up = new_parameter(), new_parameter()
    joint = operand_of(gate, up, config=FST)
    freshen(joint, True)
    watched = [weakref.ref(weight_of(model.up.weight)), weakref.ref(joint), weakref.ref(joint.forward[0])]
    watched += [weakref.ref(weight_of(gate)), weakref.ref(weight_of(up))]
    gc.collect()
    sizes = len(WEIGHTS), len(OPERANDS), len(TOLD)
    gc.disable()  # reference counts alone must do: GPU memory cannot wait for the collector
    try:
        del model.up, gate, up, joint
        assert [ref() for ref in watched] == [None] * 5
    finally:
        gc.enable()
    assert (len(WEIGHTS), len(OPERANDS)) == (sizes[0] - 3, sizes[1] - 2)


def test_refuse_conflicting_options_by_name():
    parameter = new_parameter()
    operand_of(parameter, config=FST, names=("blocks.0.up.weight",))
    others: list[dict[str, object]] = [
        {"mask_interval": 4},
        {"decay": 1.0},
        {"recipe": "ste"},
        {"gradient": "mvue"},
        {"gradient": "auto"},
    ]
    for changed in others:
        other = dataclasses.replace(FST, **changed)
        with pytest.raises(errors.ConflictError, match=r"blocks\.0\.up\.weight"):
            operand_of(parameter, config=other, names=("blocks.0.up.weight",))
    same = dataclasses.replace(FST, inner="eager", min_speedup=0.0)
    assert operand_of(parameter, config=same) is operand_of(parameter, config=FST)


def test_refuse_two_input_gradients_of_one_weight():
    parameter = new_parameter()
    rows = Config(recipe="ste", input_gradient="dense")
    found = operand_of(parameter, config=rows)
    with pytest.raises(errors.ConflictError, match=r"input_gradient='dense'; .* input_gradient='mvue'"):
        operand_of(parameter, config=dataclasses.replace(rows, input_gradient="mvue"))
    assert operand_of(parameter, config=Config(recipe="ste")) is found, "'auto' is 'dense' in this recipe"


def test_count_only_steps_of_optimizers_that_hold_the_weight():
    one, two = MLP(), MLP()
    sparse_forward(two, torch.randn(8, 16), FST)
    train(one, torch.optim.SGD(one.parameters(), lr=0.1), FST, range(5))
    assert sparse_weights(one)["up.weight"].steps == 5
    assert sparse_weights(two)["up.weight"].steps == 0
    assert sparse_weights(two)["up.weight"].age == 0


def test_repack_what_no_optimizer_is_seen_to_hold_after_any_step():
    # Sharded optimizers step other objects, and the version and address of what they hand out may say nothing.
    orphan, other = new_parameter(), new_parameter()
    found = operand_of(orphan, config=FST)
    freshen(found, True)
    orphan.data.mul_(2.0)
    step(other, torch.optim.SGD([other], lr=0.1))
    packed = freshen(found, True)
    assert torch.equal(dense_values(packed, 32, 16), orphan.detach() * weight_of(orphan).mask)


def test_warn_once_that_no_optimizer_holds_a_weight_that_trains(caplog):
    lost, held, idle = new_parameter(), new_parameter(), new_parameter()
    optimizer = torch.optim.SGD([held], lr=0.1)
    with caplog.at_level("WARNING", logger="s24compile"):
        for _ in range(45):
            for name, parameter in (("lost", lost), ("held", held)):
                freshen(operand_of(parameter, config=FST, names=(name,)), True)
            with torch.no_grad():
                freshen(operand_of(idle, config=FST, names=("idle",)), True)
            step(held, optimizer)
    texts = [record.getMessage() for record in caplog.records if "flip" not in record.getMessage()]
    assert len(texts) == 1
    assert "none of them with lost," in texts[0]
    assert weight_of(lost).age == 0
    assert torch.equal(weight_of(lost).mask, torch.ops.s24.transposable_mask(lost.detach()))


def test_pack_frozen_weights_once_and_leave_them_alone():
    model = MLP()
    model.up.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.up.weight.clone()
    with recorded_ops() as calls:
        train(model, optimizer, Config(mask_interval=2, decay=0.1, gradient="dense"), range(5))
    assert calls.count("pack_weight_") == 1 + 5, "up once, down once a step"
    assert torch.equal(model.up.weight, before)


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_search_a_frozen_weight_at_the_end_of_its_interval_once_it_was_edited(held: bool, restored: bool) -> None:
    model = MLP()
    model.up.weight.requires_grad_(False)
    config = Config(mask_interval=2, gradient="dense")
    optimizer = torch.optim.SGD([p for p in model.parameters() if held or p.requires_grad], lr=0.1)
    train(model, optimizer, config, range(1))
    with torch.no_grad():
        model.up.weight.copy_(torch.randn(32, 16))
    if restored:
        load_state_dict(model, state_dict(model))
    sparse_forward(model, torch.randn(8, 16), config)
    best = torch.ops.s24.transposable_mask(model.up.weight)
    assert not torch.equal(weight_of(model.up.weight).mask, best), "the interval is not over"
    with recorded_ops() as calls:
        train(model, optimizer, config, range(1, 6))
    assert calls.count("pack_weight_") == 1 + 4, "up once, at its interval's end; down after each step but the last"
    x = torch.randn(8, 16)
    out = sparse_forward(model, x, config)
    assert torch.equal(weight_of(model.up.weight).mask, best)
    bake_(model)
    torch.testing.assert_close(sparse_forward(model, x, config), out)


def test_keep_age_and_flip_rate_of_a_frozen_weight_over_a_restore() -> None:
    model = MLP()
    model.up.weight.requires_grad_(False)
    config = Config(mask_interval=2, gradient="dense")
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), config, range(5))
    other = copy.deepcopy(model)
    load_state_dict(other, state_dict(model))
    sparse_forward(other, torch.randn(8, 16), config)
    one, two = weight_of(model.up.weight), weight_of(other.up.weight)
    assert (two.age, two.flip_rate) == (one.age, one.flip_rate)


def test_share_one_state_between_tied_weights():
    parameter = new_parameter(16, 16)
    one, two = operand_of(parameter, config=FST, names=("a",)), operand_of(parameter, config=FST, names=("b",))
    assert one is two
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    freshen(one, True)
    step(parameter, optimizer)
    assert weight_of(parameter).steps == 1


def test_pack_the_transpose_only_when_asked_and_keep_it_fresh_then():
    parameter = new_parameter()
    found = operand_of(parameter, config=FST)
    assert len(freshen(found, False)) == 2
    assert found.transposed == ()
    buffers = freshen(found, True)
    assert len(buffers) == 4
    with torch.no_grad():
        parameter.add_(1.0)
    freshen(found, False)
    transposed = torch.ops.s24.unpack(buffers[2], buffers[3], 16, 32, "sm90")
    assert torch.equal(transposed, (parameter.detach() * weight_of(parameter).mask).t())


def test_keep_buffers_static_and_move_their_version():
    parameter = new_parameter()
    found = operand_of(parameter, config=FST)
    buffers = freshen(found, True)
    addresses, versions = [b.data_ptr() for b in buffers], [b._version for b in buffers]
    with torch.no_grad():
        parameter.add_(1.0)
    again = freshen(found, True)
    assert all(a is b for a, b in zip(buffers, again, strict=True))
    assert [b.data_ptr() for b in again] == addresses
    assert all(b._version > v for b, v in zip(again, versions, strict=True))


def test_raise_in_a_backward_through_weights_that_were_stepped_meanwhile():
    model = MLP()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(8, 16, requires_grad=True)
    out = sparse_forward(model, x, FST).sum()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    sparse_forward(model, x.detach(), FST)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("guard", [torch.inference_mode, torch.no_grad])
def test_serve_a_training_forward_with_packs_made_without_gradients(guard):
    model = MLP()
    with guard():
        sparse_forward(model, torch.randn(8, 16), FST)
    with recorded_ops() as calls:
        sparse_forward(model, torch.randn(8, 16), FST).sum().backward()
    assert "pack_weight_" not in calls
    assert model.up.weight.grad is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with guard():
        optimizer.step()
        sparse_forward(model, torch.randn(8, 16), FST)
    sparse_forward(model, torch.randn(8, 16), FST).sum().backward()


def test_run_with_parameters_made_under_inference_mode():
    with torch.inference_mode():
        parameter = new_parameter()
        found = operand_of(parameter, config=FST, transpose=False)
        packed = freshen(found, False)
        assert torch.equal(dense_values(packed, 32, 16), parameter * weight_of(parameter).mask)


def test_share_the_mask_between_dtypes():
    parameter = new_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    wide, narrow = (operand_of(parameter, config=FST, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert wide is not narrow
    for i in range(7):
        masked = dense_values(freshen(narrow, True), 32, 16)
        assert masked.dtype == torch.bfloat16
        mask = weight_of(parameter).mask.clone()
        assert torch.equal(dense_values(freshen(wide, True), 32, 16), parameter.detach() * mask), f"step {i}"
        assert torch.equal(masked, parameter.detach().bfloat16() * mask)
        assert torch.equal(weight_of(parameter).mask, mask), "the second operand does not search again"
        step(parameter, optimizer)


def test_pack_gate_and_up_as_one_operand():
    gate, up = new_parameter(), new_parameter()
    optimizer = torch.optim.SGD([gate, up], lr=0.5)
    for _ in range(5):
        packed = freshen(operand_of(gate, up, config=FST, names=("gate", "up")), True)
        masked = torch.cat([gate.detach() * weight_of(gate).mask, up.detach() * weight_of(up).mask])
        assert torch.equal(dense_values(packed, 64, 16), masked)
        gate.grad, up.grad = torch.randn_like(gate), torch.randn_like(up)
        optimizer.step()


def test_search_a_joint_operand_when_only_one_of_its_weights_is_due():
    gate, up = new_parameter(), new_parameter()
    slow, quick = torch.optim.SGD([gate], lr=0.5), torch.optim.SGD([up], lr=0.5)
    found = operand_of(gate, up, config=FST)
    freshen(found, True)
    old = weight_of(gate).mask.clone()
    step(gate, slow)
    for _ in range(3):
        step(up, quick)
    packed = freshen(found, True)
    assert torch.equal(weight_of(gate).mask, old)
    assert (weight_of(gate).age, weight_of(up).age) == (1, 0)
    assert torch.equal(weight_of(up).mask, torch.ops.s24.transposable_mask(up.detach()))
    masked = torch.cat([gate.detach() * weight_of(gate).mask, up.detach() * weight_of(up).mask])
    assert torch.equal(dense_values(packed, 64, 16), masked)


def test_make_a_new_joint_operand_when_a_partner_is_replaced():
    gate, up = new_parameter(), new_parameter()
    freshen(operand_of(gate, up, config=FST), True)
    up = new_parameter()
    packed = freshen(operand_of(gate, up, config=FST), True)
    assert torch.equal(dense_values(packed, 64, 16)[32:], up.detach() * weight_of(up).mask)
    operands = OPERANDS.get(gate)
    assert operands is not None
    assert len(operands) == 1, "the operand of the dead partner has gone"


@pytest.mark.parametrize("change", ["partner", "dtype"])
def test_refresh_past_operands_that_nobody_asks_for_again(change: str) -> None:
    model = nn.Module()
    model.gate, model.up = nn.Linear(16, 32, bias=False), nn.Linear(16, 32, bias=False)
    freshen(operand_of(model.gate.weight, model.up.weight, config=FST), True)
    if change == "partner":
        model.up.weight = new_parameter()
    else:
        model.bfloat16()
    with recorded_ops() as calls:
        refresh(model)
    assert "pack_weight_" not in calls
    packed = freshen(operand_of(model.gate.weight, model.up.weight, config=FST), True)
    masked = torch.cat([p.detach() * weight_of(p).mask for p in (model.gate.weight, model.up.weight)])
    assert torch.equal(dense_values(packed, 64, 16), masked)


def test_refresh_an_operand_made_under_autocast_once_the_weight_is_of_its_dtype() -> None:
    model = nn.Linear(16, 32, bias=False)
    freshen(operand_of(model.weight, config=FST, dtype=torch.bfloat16), True)
    model.bfloat16()
    found = operand_of(model.weight, config=FST, dtype=torch.bfloat16)
    freshen(found, True)
    model.weight.data.mul_(2.0)
    refresh(model)
    masked = model.weight.detach() * weight_of(model.weight).mask
    assert torch.equal(dense_values(found.forward, 32, 16), masked)


def test_give_the_mask_the_shape_of_the_parameter_in_either_layout():
    parameter = new_parameter(16, 32)  # Conv1D: [K, N]
    packed = freshen(operand_of(parameter, config=FST, layout="in_out"), True)
    mask = weight_of(parameter).mask
    assert mask.shape == parameter.shape
    assert torch.equal(dense_values(packed, 32, 16), (parameter.detach() * mask).t())
    with pytest.raises(errors.ConflictError, match="layout"):
        operand_of(parameter, config=FST, layout="out_in")


def test_refuse_a_parameter_of_another_shape_than_asked_for():
    parameter = new_parameter()
    request = request_for(new_parameter(64, 16))
    with pytest.raises(errors.ShapeError, match="weight0"):
        operand((parameter,), request, FST)


def test_tolerate_fake_parameters_without_remembering_them():
    parameter = new_parameter()
    real = freshen(operand_of(parameter, config=FST), True)
    size = len(WEIGHTS)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(parameter)
    buffers = freshen(operand_of(fake, config=FST), True)
    assert all(isinstance(b, FakeTensor) for b in buffers)
    assert [(b.shape, b.stride(), b.dtype) for b in buffers] == [(b.shape, b.stride(), b.dtype) for b in real]
    assert len(WEIGHTS) == size


@pytest.mark.parametrize("recipe", ["fst", "fst-exact", "fst-down", "sste", "ste", "srste", "step"])
def test_hold_legal_masks_whatever_the_weights(recipe):
    parameter = new_parameter()
    with torch.no_grad():
        parameter[0, :4] = float("nan")
        parameter[5, 3] = float("inf")
        parameter[8:12] = 0.0
    config = Config(recipe=recipe)
    freshen(operand_of(parameter, config=config, transpose=False), False)
    kept = weight_of(parameter).mask.unflatten(1, (-1, 4)).sum(-1)
    assert bool((kept == 2).all())


@pytest.mark.parametrize("recipe", ROW_WISE)
def test_search_row_wise_masks_at_each_step_and_not_at_each_forward(recipe):
    parameter = new_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    config = Config(recipe=recipe)
    found = operand_of(parameter, config=config, transpose=False)
    other = operand_of(parameter, config=config, transpose=False, dtype=torch.bfloat16)
    for i in range(4):
        freshen(found, False)
        assert torch.equal(weight_of(parameter).mask, torch.ops.s24.magnitude_mask(parameter.detach()))
        rate = weight_of(parameter).flip_rate
        assert (rate is None) == (i == 0)
        assert rate is None or rate > 0
        freshen(other, False)
        assert weight_of(parameter).flip_rate == rate, "the second dtype is no second search"
        step(parameter, optimizer)


def test_fix_the_soft_threshold_scale_at_the_first_forward():
    config = Config(recipe="sste")
    gate, up = new_parameter(), new_parameter()
    with torch.no_grad():
        up.mul_(3.0).exp_()  # another distribution, another scale
    optimizer = torch.optim.SGD([gate, up], lr=0.1)
    found = operand_of(gate, up, config=config, transpose=False)
    scales = [torch.ops.s24.soft_threshold_scale(p.detach()) for p in (gate, up)]
    for _ in range(3):
        packed = freshen(found, False)
        soft = [b * torch.ops.s24.soft_threshold(p.detach()) for b, p in zip(scales, (gate, up), strict=True)]
        torch.testing.assert_close(dense_values(packed, 64, 16), torch.cat(soft))
        gate.grad, up.grad = torch.randn_like(gate), torch.randn_like(up)
        optimizer.step()
    assert [float(s) for s in scales] == [float(weight_of(p).scale) for p in (gate, up)]


def test_never_scale_by_zero():
    parameter = nn.Parameter(torch.zeros(16, 16))
    freshen(operand_of(parameter, config=Config(recipe="sste"), transpose=False), False)
    assert float(weight_of(parameter).scale) == 1.0


def test_take_the_scale_from_the_parameter_not_from_the_compute_dtype():
    parameter = new_parameter()
    freshen(operand_of(parameter, config=Config(recipe="sste"), transpose=False, dtype=torch.bfloat16), False)
    assert float(weight_of(parameter).scale) == float(torch.ops.s24.soft_threshold_scale(parameter.detach()))


def test_report_the_flip_rate_between_the_last_two_searches():
    parameter = new_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    found = operand_of(parameter, config=FST)
    freshen(found, True)
    assert weight_of(parameter).flip_rate is None
    before = weight_of(parameter).mask.clone()
    for _ in range(3):
        step(parameter, optimizer)
        freshen(found, True)
    rate = weight_of(parameter).flip_rate
    assert rate == pytest.approx(float((before != weight_of(parameter).mask).float().mean()))
    assert rate > 0


@pytest.mark.parametrize("due", ["both", "gate"])
@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16])
def test_report_the_flip_rate_of_weights_with_two_operands(due: str, first: torch.dtype) -> None:
    model = nn.Module()
    model.gate, model.up = nn.Linear(16, 32, bias=False), nn.Linear(16, 32, bias=False)
    gate, up = model.gate.weight, model.up.weight
    joint = operand_of(gate, up, config=FST, dtype=first)
    freshen(joint, True)
    lone = operand_of(gate, config=FST)
    other = operand_of(gate, up, config=FST, dtype=torch.float64)
    for found in (lone, other):
        freshen(found, True)
    before = {p: weight_of(p).mask for p in (gate, up)}
    slow, quick = torch.optim.SGD([up], lr=1.0), torch.optim.SGD([gate], lr=1.0)
    for steps in range(3):
        step(gate, quick)
        if due == "both" or steps == 0:
            step(up, slow)
    refresh(model)
    for parameter in (gate, up) if due == "both" else (gate,):
        weight = weight_of(parameter)
        assert torch.equal(weight.mask, torch.ops.s24.transposable_mask(parameter.detach()))
        assert weight.flip_rate == pytest.approx(float((before[parameter] != weight.mask).float().mean()))
        assert weight.flip_rate > 0
    masked = torch.cat([p.detach() * weight_of(p).mask for p in (gate, up)])
    assert torch.equal(dense_values(joint.forward, 64, 16), masked.to(first))
    assert torch.equal(dense_values(other.forward, 64, 16), masked.double())
    assert torch.equal(dense_values(lone.forward, 32, 16), masked[:32])
