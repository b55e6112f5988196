"""`torch.compile(model, backend="s24")` end to end: numerics, phases, sharing of graphs, options, memory."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import s24compile
from s24compile import errors
from s24compile.demo.model import GPT, GPTConfig
from s24compile.weights.operand_map import OPERANDS
from tests.masked import gradients, live_masks, masked_call

INNERS = ("eager", "aot_eager", "inductor")
DENSE_GRADIENT = {"gradient": "dense", "decay": 0.0}


class GeluMLP(nn.Module):
    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """Blocks in a row, as regional compilation sees them."""

    def __init__(self, make: type[nn.Module] = GeluMLP, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture
def x(device: str) -> Tensor:
    return torch.randn(6, 8, 32, device=device)


def compiled(model: nn.Module, inner: str = "aot_eager", **options: Any) -> Any:
    # On a GPU these layers are too small to pay; the cost model has tests of its own.
    given = {"inner": inner, "min_speedup": 0.0, **options}
    return torch.compile(model, backend="s24", options=given, fullgraph=True)


def assert_equals_masked(model: nn.Module, fast: Any, x: Tensor, tolerance: float) -> None:
    """Output, input gradient and parameter gradients equal dense arithmetic on masked weights."""
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = fast(ours)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    got = {"": ours.grad, **gradients(model)}
    expected_y = masked_call(model, live_masks(model), theirs)
    expected_y.backward(cotangent)
    expected = {"": theirs.grad, **gradients(model)}
    torch.testing.assert_close(y, expected_y, rtol=tolerance, atol=tolerance)
    assert got.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max()
        torch.testing.assert_close(got[name] / scale, expected[name] / scale, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("make", [GeluMLP, SwiGLU])
def test_train_like_dense_arithmetic_on_masked_weights(make: type[nn.Module], inner: str, x: Tensor) -> None:
    model = make().to(x.device)
    assert_equals_masked(model, compiled(model, inner, **DENSE_GRADIENT), x, 1e-5)
    assert len(s24compile.sparse_weights(model)) == len([p for p in model.parameters() if p.dim() == 2])


def test_need_no_import_for_the_backend_name() -> None:
    assert "s24" in torch.compiler.list_backends(exclude_tags=())


@pytest.mark.parametrize("inner", INNERS)
def test_follow_autocast_with_fp32_master_weights(inner: str, x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    fast = compiled(model, inner, **DENSE_GRADIENT)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = fast(x)
        expected = masked_call(model, live_masks(model), x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_train_half_precision_models(dtype: torch.dtype, x: Tensor) -> None:
    model = SwiGLU().to(x.device, dtype)
    assert_equals_masked(model, compiled(model, **DENSE_GRADIENT), x.to(dtype), 3e-2)


def test_serve_a_changing_number_of_tokens(x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    fast = compiled(model, **DENSE_GRADIENT)
    for tokens in (8, 7, 5, 3, 1):
        assert_equals_masked(model, fast, x[:, :tokens], 1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_pack_under_inference_and_train_afterwards(mode: Any, x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    fast = compiled(model, **DENSE_GRADIENT)
    with mode():
        y = fast(x)
    torch.testing.assert_close(y.clone(), masked_call(model, live_masks(model), x), rtol=1e-5, atol=1e-5)
    assert_equals_masked(model, fast, x, 1e-5)


def test_keep_layers_apart_that_share_one_graph(x: Tensor) -> None:
    model = Residual().to(x.device)
    for layer in model.layers:
        layer.compile(backend="s24", options={"inner": "eager", "min_speedup": 0.0, **DENSE_GRADIENT})
    model(x)
    masks = live_masks(model)
    assert len(masks) == 6
    assert not torch.equal(masks["layers.0.fc1.weight"], masks["layers.1.fc1.weight"])
    plain = Residual().to(x.device)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), masked_call(plain, masks, x), rtol=1e-5, atol=1e-5)


def test_keep_two_models_and_a_deepcopy_apart(x: Tensor) -> None:
    first, second = GeluMLP().to(x.device), GeluMLP().to(x.device)
    third = copy.deepcopy(first)
    with torch.no_grad():
        for p in third.parameters():
            p.neg_()
    for model in (first, second, third):
        assert_equals_masked(model, compiled(model, **DENSE_GRADIENT), x, 1e-5)


def test_pack_once_per_optimizer_step_under_accumulation(x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    fast = compiled(model, "eager")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with torch.profiler.profile() as profile:
        for _ in range(3):
            for micro in x.split(2):
                fast(micro).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    packs = [e for e in profile.events() if e.name.startswith("s24::") and "pack" in e.name and "mvue" not in e.name]
    packs = [e for e in packs if "unpack" not in e.name]
    assert len(packs) == 3 * 2  # two kinds of operand: the first layer's needs no W^T


def test_pack_operands_of_a_kind_in_one_call(x: Tensor) -> None:
    model = Residual(SwiGLU).to(x.device)
    fast = compiled(model, "eager")
    optimizer = torch.optim.AdamW(model.parameters())
    ours = x.clone().requires_grad_()
    with torch.profiler.profile() as profile:
        for _ in range(2):
            fast(ours).square().mean().backward()
            optimizer.step()
    # A GPU's timeline repeats the names of the host's.
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CPU]
    operands = [packed for p in model.parameters() for packed in (OPERANDS.get(p) or {}).values()]
    formats = {packed.request.format for packed in operands}
    assert len(formats) == (2 if x.is_cuda else 1), "Hopper has a format of its own for gate and up"
    assert names.count("s24::pack_weights_") == 2 * len(formats)
    assert "s24::pack_weight_" not in names


def test_keep_masks_legal_and_lower_the_loss_over_steps(x: Tensor) -> None:
    model = Residual(SwiGLU).to(x.device)
    fast = compiled(model, "eager", mask_interval=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    target = x.roll(1, dims=-1)
    losses = []
    for _ in range(45):
        loss = (fast(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        for mask in live_masks(model).values():
            blocks = mask.unflatten(0, (-1, 4)).unflatten(2, (-1, 4))
            assert bool((blocks.sum(1) == 2).all())
            assert bool((blocks.sum(3) == 2).all())
    assert losses[-1] < 0.7 * losses[0]
    assert {w.steps for w in s24compile.sparse_weights(model).values()} == {45}
    assert all(w.flip_rate is not None for w in s24compile.sparse_weights(model).values())


def test_run_dense_after_the_given_step(x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    fast = compiled(model, dense_after=2, **DENSE_GRADIENT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    equal = []
    for _ in range(4):
        y = fast(x)
        equal.append(torch.allclose(y, model(x), atol=1e-6))
        y.sum().backward()
        optimizer.step()
    assert equal == [False, False, True, True]


@pytest.mark.parametrize("inner", INNERS)
def test_change_phase_by_hand_and_back(inner: str, x: Tensor) -> None:
    model = Residual(SwiGLU).to(x.device)
    fast = compiled(model, inner, **DENSE_GRADIENT)
    s24compile.set_phase(model, "dense")
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)
    s24compile.set_phase(model, "sparse")
    assert_equals_masked(model, fast, x, 1e-5)
    s24compile.set_phase(model.layers[1], "dense")
    y = fast(x)
    masks = {name: mask for name, mask in live_masks(model).items() if "layers.1" not in name}
    torch.testing.assert_close(y, masked_call(model, masks, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", ["fst", "fst-exact", "fst-down", "sste", "srste", "ste"])
def test_lower_the_loss_with_every_recipe(recipe: str, x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    fast = compiled(model, "eager", recipe=recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = (fast(x) - x.roll(1, -1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_train_through_activation_checkpointing(x: Tensor) -> None:
    class Checkpointed(Residual):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            return x

    model = Checkpointed().to(x.device)
    fast = compiled(model, **DENSE_GRADIENT)
    y = fast(x)
    y.sum().backward()
    got = gradients(model)
    plain = Residual().to(x.device)
    plain.load_state_dict(model.state_dict())
    masked_call(plain, live_masks(model), x).sum().backward()
    expected = gradients(plain)
    assert len(live_masks(model)) == 6
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_train_frozen_weights_without_their_gradient(x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    model.fc1.weight.requires_grad_(False)
    assert_equals_masked(model, compiled(model, **DENSE_GRADIENT), x, 1e-5)
    assert model.fc1.weight.grad is None


def test_refuse_a_backward_through_weights_stepped_meanwhile(x: Tensor) -> None:
    model = Residual().to(x.device)
    fast = compiled(model, mask_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stale = fast(x.requires_grad_())
    fast(x).sum().backward()
    optimizer.step()
    fast(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.sum().backward()


def test_free_state_with_the_model(x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    compiled(model)(x).sum().backward()
    watch = weakref.ref(model.fc1.weight)
    values = weakref.ref(s24compile.sparse_weights(model)["fc1.weight"])
    del model
    torch._dynamo.reset()
    gc.collect()
    assert watch() is None
    assert values() is None


def test_name_the_nearest_option_of_an_unknown_one(x: Tensor) -> None:
    with pytest.raises(errors.UnknownOptionError, match="did you mean 'decay'"):
        torch.compile(GeluMLP(), backend="s24", options={"decai": 0.1})(x.cpu())


def test_raise_errors_through_dynamo_that_worker_processes_can_pass_on(x: Tensor) -> None:
    with pytest.raises(errors.UnknownOptionError) as caught:
        torch.compile(GeluMLP(), backend="s24", options={"decai": 0.1})(x)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is errors.UnknownOptionError
    assert again.given == caught.value.given
    assert str(caught.value).startswith(str(again)), "Dynamo puts its own lines behind ours"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"recipe": "magic"}, "recipe='magic'"),
        ({"decay": -1.0}, "decay=-1.0"),
        ({"mask_interval": 0}, "mask_interval=0"),
        ({"inner": "nvfuser"}, "inner='nvfuser'"),
        ({"include": ("(",)}, "regular expression"),
        ({"include": 3}, "include=3"),
        ({"exclude": None}, "exclude=None"),
        ({"inner_options": 3}, "inner_options=3"),
        ({"inner_options": (1, 2)}, "it must be a mapping of Inductor"),
        ("fst", "options='fst'"),
        ({"inner": "eager", "mode": "max-autotune"}, "inner='eager'"),
        ({"inner": "eager", "memory": "save"}, "memory='save'"),
        ({"mode": "fastest"}, "mode='fastest'"),
        ({"inner_options": {"max_atuotune": True}}, "max_atuotune"),
        ({"target": "tpu"}, "target='tpu'"),
    ],
)
def test_refuse_wrong_options_by_name_and_value(options: Any, word: str, x: Tensor) -> None:
    with pytest.raises(errors.OptionError, match=word.replace("(", r"\(").replace(".", r"\.")):
        torch.compile(GeluMLP(), backend="s24", options=options)(x.cpu())


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_raise_the_same_errors_where_the_graph_must_not_break(fullgraph: bool, dynamic: bool | None, x: Tensor) -> None:
    """Dynamo cannot trace how an error is made, and must not report that instead."""

    def compiled_call(function: Any) -> Any:
        torch._dynamo.reset()
        return torch.compile(function, backend="eager", fullgraph=fullgraph, dynamic=dynamic)(x[..., :31])

    with pytest.raises(errors.ShapeError, match=r"z has shape \(6, 8, 31\)") as caught:
        compiled_call(lambda x: s24compile.ops.glu(x))
    assert caught.value.given["shape"] == (6, 8, 31)
    with pytest.raises(errors.OptionError, match="act='tanh' is not accepted"):
        compiled_call(lambda x: s24compile.ops.glu(x, act="tanh"))
    with pytest.raises(errors.OptionError, match="seed="):
        compiled_call(lambda x: s24compile.ops.mvue(x[..., :28], seed=x))


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_raise_an_error_of_lowering_as_it_is(inner: str, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise errors.LoweringError(node="n", found="no provider", accepted="none")

    monkeypatch.setattr("s24compile.compiler.inner.lowering.run", fail)
    with pytest.raises(errors.LoweringError, match="no provider"):
        compiled(GeluMLP().to(x.device), inner)(x)


def test_raise_the_error_of_a_later_compilation_as_it_is(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GeluMLP().to(x.device)
    run = compiled(model, "eager")
    run(x)

    def fail(*given: Any) -> Any:
        raise errors.LoweringError(node="n", found="no provider", accepted="none")

    monkeypatch.setattr("s24compile.compiler.later.compile_graph", fail)
    s24compile.set_phase(model, "dense")
    with pytest.raises(errors.LoweringError, match="no provider"):
        run(x)


def test_refuse_one_weight_with_two_recipes(x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    compiled(model, "eager")(x)
    with pytest.raises(errors.ConflictError, match=r"fc1\.weight"):
        compiled(model, "eager", recipe="sste")(x)


def test_pass_mode_and_options_on_to_inductor(x: Tensor) -> None:
    model = GeluMLP().to(x.device)
    assert_equals_masked(
        model, compiled(model, "inductor", inner_options={"epilogue_fusion": False}, **DENSE_GRADIENT), x, 1e-5
    )
    other = GeluMLP().to(x.device)
    fast = torch.compile(other.cpu(), backend="s24", mode="max-autotune-no-cudagraphs")
    x = x.cpu()
    torch.testing.assert_close(fast(x), masked_call(other, live_masks(other), x), rtol=1e-5, atol=1e-5)


def test_find_every_layer_of_a_gpt_that_knows_nothing_of_it(device: str) -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16)).to(device)
    tokens = torch.randint(256, (2, 16), device=device)
    fast = compiled(model, "eager")
    fast(tokens)
    names = {f"blocks.{i}.mlp.{n}.weight" for i in range(2) for n in ("c_fc", "c_proj")}
    assert set(s24compile.sparse_weights(model)) == names


def test_warn_once_where_a_sparse_weight_trains_on_a_dense_forward(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = GeluMLP().to(x.device)
    fast = compiled(model, "eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for run in (fast, fast, model, model):
        run(x).sum().backward()
        optimizer.step()
    said = [record.message for record in caplog.records if "without a sparse forward" in record.message]
    assert len(said) == 1
    assert "fc1.weight" in said[0]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_raise_no_alarm_over_a_weight_that_a_step_does_not_use(
    set_to_none: bool, x: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    used, idle = GeluMLP().to(x.device), GeluMLP().to(x.device)
    fast, sometimes = compiled(used, "eager"), compiled(idle, "eager")
    optimizer = torch.optim.SGD([*used.parameters(), *idle.parameters()], lr=0.01)

    def step(*runs: Any) -> None:
        sum(run(x).sum() for run in runs).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)

    for runs in ((fast, sometimes), (fast,), (fast,), (fast, sometimes)):
        step(*runs)
    assert "without a sparse forward" not in caplog.text, "a gradient of zeros is none"
    step(fast, idle)
    assert "without a sparse forward" in caplog.text, "the alarm is still on"


def test_warn_that_the_fused_inference_path_evaluates_dense(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, device=x.device).eval()
    fast = torch.compile(model, backend="s24", options={"inner": "eager", "min_speedup": 0.0})
    with torch.no_grad():
        fast(x)
    assert "set_fastpath_enabled(False)" in caplog.text
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch._dynamo.reset()
        with torch.no_grad():
            fast(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert len(s24compile.sparse_weights(model)) == 2


def test_write_to_the_result_of_a_layer_in_eager(x: Tensor) -> None:
    model = GeluMLP().to(x.device)

    def call(x: Tensor) -> Tensor:
        y = model(x)
        y[..., 0] = 0
        return y.sub_(x)

    fast = torch.compile(call, backend="s24", options={"inner": "eager", "min_speedup": 0.0})
    torch.testing.assert_close(fast(x), call_dense(model, x))


def call_dense(model: nn.Module, x: Tensor) -> Tensor:
    y = masked_call(model, live_masks(model), x).clone()
    y[..., 0] = 0
    return y - x
