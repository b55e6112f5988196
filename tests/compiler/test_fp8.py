"""precision="fp8": what a compiled model computes with it, what it refuses, and that it trains."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import s24compile
from s24compile.demo.model import GPT, GPTConfig
from tests.compiler.test_backend import GeluMLP, SwiGLU
from tests.masked import gradients, live_masks, masked_call

E4M3, E5M2 = 2.0**-4, 2.0**-3
"""Half a step of either format, relative to a number: what rounding to it changes at most, subnormals apart."""
MODELS = {"gelu": GeluMLP, "swiglu": SwiGLU}


def compiled(model: nn.Module, inner: str = "aot_eager", **options: Any) -> Any:
    given = {"inner": inner, "min_speedup": 0.0, "precision": "fp8", **options}
    return torch.compile(model, backend="s24", options=given, fullgraph=True)


def step(fast: Any, model: nn.Module, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Output, input gradient and the parameters' gradients of one forward and backward under bf16 autocast."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        y = fast(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y))
    assert x.grad is not None
    return {"y": y.detach().float(), "x": x.grad, **gradients(model)}


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == expected.keys()
    return {name: float((found[name] - e).norm() / e.norm()) for name, e in expected.items()}


@pytest.mark.parametrize(
    ("inner", "name", "recipe"),
    [
        ("aot_eager", "gelu", "fst"),
        ("aot_eager", "gelu", "srste"),
        ("aot_eager", "swiglu", "ste"),
        ("aot_eager", "swiglu", "fst-down"),
        ("inductor", "gelu", "fst"),
        ("inductor", "swiglu", "ste"),
        ("eager", "swiglu", "fst"),
    ],
)
def test_multiply_eight_bits_of_what_the_masks_keep(inner: str, name: str, recipe: str, device: str) -> None:
    model = MODELS[name](64, 128).to(device)
    fast = compiled(model, inner, recipe=recipe, gradient="dense", decay=0.0)
    x = torch.randn(4, 32, 64, device=device)
    found = step(fast, model, x)
    masks = live_masks(model)
    expected = step(lambda x: masked_call(model, masks, x), model, x)
    for key, difference in differences(found, expected).items():
        # Two layers of products of two rounded factors each; roundings of either sign do not add up.
        assert difference < E4M3 + E5M2, key
        assert difference > 2.0**-8 or "bias" in key, f"{key} was computed in 16 bits"


@pytest.mark.parametrize("recipe", ["fst", "sste"])
def test_prune_gradients_without_bias(recipe: str, device: str) -> None:
    model = GeluMLP(32, 64).to(device)
    pruned = compiled(model, recipe=recipe, gradient="mvue", decay=0.0)
    exact = compiled(copy.deepcopy(model), recipe=recipe, gradient="dense", decay=0.0)
    x = torch.randn(2, 16, 32, device=device)
    expected = step(exact, exact._orig_mod, x)
    draws = [step(pruned, model, x) for _ in range(64)]
    mean = {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in expected}
    for name, difference in differences(mean, expected).items():
        spread = torch.stack([draw[name] for draw in draws]).sub(mean[name]).square().mean(0).sum().sqrt()
        # Four standard errors of the mean, beside the other rounding of what was pruned.
        assert difference < 4 * float(spread / expected[name].norm()) / math.sqrt(64) + E5M2, name


@pytest.mark.parametrize("inner", ["aot_eager", "inductor", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_multiply_eight_bits_in_dense_phases(name: str, inner: str, device: str) -> None:
    model = MODELS[name](64, 128).to(device)
    fast, x = compiled(model, inner, dense_after=0), torch.randn(4, 32, 64, device=device)
    for key, difference in differences(step(fast, model, x), step(model, model, x)).items():
        assert difference < E4M3 + E5M2, key
        assert difference > 2.0**-8 or "bias" in key, f"{key} was computed in 16 bits"


def test_multiply_up_projections_in_eight_bits_beside_sparse_down_projections(device: str) -> None:
    model, x = GeluMLP(64, 128).to(device), torch.randn(4, 32, 64, device=device)
    fast = compiled(model, recipe="fst-down")
    (site,) = s24compile.explain(fast, x).sites
    assert site.linears == 1
    assert "fc1 multiplies eight-bit floats, too, though it is dense" in site.reason
    found = step(fast, model, x)
    masks = live_masks(model)
    expected = step(lambda x: masked_call(model, masks, x), model, x)
    assert set(masks) == {"fc2.weight"}
    assert 2.0**-8 < differences(found, expected)["fc1.weight"] < E4M3 + E5M2


def test_leave_what_is_excluded_in_16_bits(device: str) -> None:
    """With both linears excluded from it, a layer is the user's own, bit by bit."""
    model, x = GeluMLP(64, 128).to(device), torch.randn(4, 32, 64, device=device)
    found = step(compiled(model, dense_after=0, exclude="fc"), model, x)
    for name, value in step(model, model, x).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_save_less_memory_with_the_same_numbers(inner: str, device: str) -> None:
    model, x = SwiGLU(64, 128).to(device), torch.randn(2, 16, 64, device=device)
    saving = copy.deepcopy(model)
    found = step(compiled(saving, inner, memory="save", gradient="dense"), saving, x)
    expected = step(compiled(model, inner, gradient="dense"), model, x)
    assert max(differences(found, expected).values()) < 2.0**-8  # one pass of Inductor's less rounding to bf16


def test_scale_a_weight_that_jumps_a_hundredfold_anew(device: str) -> None:
    model, x = GeluMLP(32, 64).to(device), torch.randn(4, 32, device=device)
    fast = compiled(model, gradient="dense", mask_interval=1000)
    before = step(fast, model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model.fc2.weight.mul_(100.0)
        model.fc2.bias.mul_(100.0)
    optimizer.step()
    assert differences(step(fast, model, x), {**before, "y": before["y"] * 100.0})["y"] < 2.0**-7


@pytest.mark.parametrize("what", ["zeros", "inf", "nan"])
def test_never_wrap_a_number(what: str, device: str) -> None:
    model, x = GeluMLP(32, 64).to(device), torch.randn(4, 32, device=device)
    if what == "zeros":
        x.zero_()
    else:
        x[1, 3] = math.inf if what == "inf" else math.nan
    found = step(compiled(model, gradient="dense"), model, x)
    healthy = [row for row in range(4) if what == "zeros" or row != 1]
    assert bool(found["y"][healthy].isfinite().all())
    assert what == "zeros" or bool(found["y"][1].isnan().all()), "a step that overflowed is to be seen"
    assert what != "zeros" or bool((found["fc1.weight"] == 0).all())


@pytest.mark.parametrize(
    ("options", "model", "x", "sentence"),
    [
        ({"target": "sm_80"}, GeluMLP(32, 64), torch.randn(4, 32),
         "the 2:4 kernels for eight-bit floats are for Hopper (sm_90), and this is sm_80; precision='auto' trains it"),
        ({"target": "sm_120"}, GeluMLP(32, 64), torch.randn(4, 32), "and this is sm_120"),
        ({"target": "sm_90"}, GeluMLP(32, 80), torch.randn(4, 32),
         "its 80 output features are no multiple of 32, which 2:4 operands of eight-bit floats need"),
        ({}, GeluMLP(32, 64).double(), torch.randn(4, 32, dtype=torch.float64),
         "it computes in float64, and products of eight-bit floats are summed in float32; use that or 16 bits"),
    ],
    ids=["ampere", "unknown", "shape", "float64"],
)  # fmt: skip
def test_say_what_is_not_possible(options: dict[str, Any], model: nn.Module, x: Tensor, sentence: str) -> None:
    (site,) = s24compile.explain(compiled(model, **options), x).sites
    assert site.status == "refused"
    assert sentence in site.reason


def test_warn_where_the_machine_has_no_such_kernels(caplog: pytest.LogCaptureFixture) -> None:
    compiled(GeluMLP(32, 64), target="sm_80")(torch.randn(4, 32))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "precision='fp8' is not possible here" in record.getMessage()


def test_name_the_option_that_is_no_precision() -> None:
    with pytest.raises(s24compile.errors.OptionError, match=r"precision='fp4'.*'auto', 'fp8'"):
        s24compile.Config(precision="fp4")  # type: ignore[arg-type]


def test_name_the_recipe_that_has_no_kernels_for_it() -> None:
    with pytest.raises(s24compile.errors.OptionError, match=r"recipe='activation' has no kernels .* leave it 'auto'"):
        s24compile.Config(recipe="activation", precision="fp8")


@pytest.mark.parametrize("recipe", ["fst-exact", "sste"])
def test_train_a_language_model_as_in_16_bits(recipe: str, device: str) -> None:
    """A GPT that learns its data: what the last steps lose differs by less than a tenth of what it has learnt."""
    losses: dict[str, list[float]] = {}
    for precision in ("auto", "fp8"):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = GPT(GPTConfig(vocab_size=32, block_size=32, n_layer=1, n_head=2, n_embd=64)).to(device)
        fast = compiled(model, recipe=recipe, precision=precision)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        text = torch.arange(65, device=device).mul(7).remainder(32)
        for index in range(30):
            tokens = torch.stack([text[(start + index) % 32 :][:33] for start in range(0, 32, 4)])
            with torch.autocast(device, torch.bfloat16):
                _, loss = fast(tokens[:, :-1], tokens[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.setdefault(precision, []).append(loss.item())
    learnt = losses["auto"][0] - losses["auto"][-1]
    assert learnt > 1.0
    assert abs(losses["auto"][-1] - losses["fp8"][-1]) < learnt / 10


@pytest.mark.parametrize("inner", ["aot_eager", "inductor", "eager"])
def test_show_the_largest_numbers_of_the_last_step(inner: str, device: str) -> None:
    model, x = SwiGLU(32, 64).to(device), torch.randn(2, 16, 32, device=device)
    fast = compiled(model, inner)
    assert s24compile.fp8_stats(model) == {}
    with torch.no_grad():
        fast(x)
    before = s24compile.fp8_stats(fast)
    assert before["gate.input"].amax is None
    for factor in (1.0, 3.0):
        step(fast, model, factor * x)
        stats = s24compile.fp8_stats(fast)
        assert set(stats) == {
            f"{linear}.{what}" for linear in ("gate", "up", "down") for what in ("weight", "input", "output_gradient")
        }
        assert stats["gate.input"].amax == float((factor * x).to(torch.bfloat16).abs().max())
        assert stats["gate.input"] == stats["up.input"]
        assert stats["down.weight"].amax == pytest.approx(model.down.weight.abs().max().item(), rel=1e-6)
        assert stats["down.output_gradient"].scale == pytest.approx(57344.0 / (stats["down.output_gradient"].amax or 0))
        assert {one.saturated for one in stats.values()} == {0.0}


def test_step_twice_before_the_backwards_and_under_checkpointing(device: str) -> None:
    """What is noted of a step stands in the way of none: two forwards before the backwards, and recomputed ones."""
    model, x = GeluMLP(32, 64).to(device), torch.randn(2, 16, 32, device=device)
    fast = compiled(model, gradient="dense")
    first, second = fast(x), fast(2.0 * x)
    (first.sum() + second.sum()).backward()
    expected = gradients(model)
    fast(x).sum().backward()
    fast(2.0 * x).sum().backward()
    assert max(differences(gradients(model), expected).values()) < 1e-6
    ours = torch.compile(
        lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False),
        backend="s24", options={"inner": "aot_eager", "precision": "fp8", "gradient": "dense", "min_speedup": 0.0},
    )  # fmt: skip
    (ours(x).sum() + ours(2.0 * x).sum()).backward()
    assert max(differences(gradients(model), expected).values()) < 1e-6
    assert {name: p.grad for name, p in model.named_parameters() if p.grad is not None} == {}


def test_refuse_stats_of_what_is_no_module() -> None:
    with pytest.raises(s24compile.errors.ModelError, match="fp8_stats: a int was given"):
        s24compile.fp8_stats(3)  # type: ignore[arg-type]


def test_show_zeros_as_zeros(device: str) -> None:
    model, x = GeluMLP(32, 64).to(device), torch.zeros(4, 32, device=device)
    nn.init.zeros_(model.fc2.weight)
    step(compiled(model), model, x)
    stats = s24compile.fp8_stats(model)
    assert [(stats[name].amax, stats[name].scale) for name in ("fc2.weight", "fc1.input")] == [(0.0, 1.0)] * 2


def test_give_a_frozen_model_no_gradients(device: str) -> None:
    model, x = GeluMLP(32, 64).to(device).requires_grad_(False), torch.randn(4, 32, device=device)
    fast = compiled(model)
    assert not fast(x).requires_grad
    x.requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None
    with torch.inference_mode():
        assert bool(fast(x).isfinite().all())


def test_compile_once_for_many_numbers_of_tokens(device: str) -> None:
    """One graph for whole rows of 16 bytes, one for numbers of tokens that are none, whatever they are."""
    model = GeluMLP(32, 64).to(device)
    options = {"inner": "aot_eager", "precision": "fp8", "gradient": "dense", "min_speedup": 0.0}
    fast = torch.compile(model, backend="s24", options=options, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for tokens in (16, 48, 64, 33, 50, 70):
        fast(torch.randn(2, tokens, 32, device=device, requires_grad=True)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_use_one_weight_with_and_without_an_input_gradient(device: str) -> None:
    """The second use reads the packed transpose, the first one has nothing to read it for."""
    model, x = GeluMLP(32, 64).to(device), torch.randn(4, 32, device=device)

    def twice(x: Tensor) -> Tensor:
        return model(model(x.detach()))

    options = {"inner": "aot_eager", "precision": "fp8", "gradient": "dense", "min_speedup": 0.0}
    torch.compile(twice, backend="s24", options=options)(x).sum().backward()
    found = gradients(model)
    masks = live_masks(model)
    masked_call(model, masks, masked_call(model, masks, x)).sum().backward()
    for name, difference in differences(found, gradients(model)).items():
        assert difference < 2 * (E4M3 + E5M2), name
