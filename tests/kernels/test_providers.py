"""The choice of a kernel: by target, with reasons, recorded; and every provider agrees with the reference."""

import subprocess
import sys

import pytest
import torch

from s24compile import ops as functional
from s24compile.errors import TargetError
from s24compile.kernels import ops, providers
from s24compile.kernels.providers import Provider
from s24compile.kernels.samples import samples
from s24compile.kernels.target import FAMILIES, Target
from tests.closeness import assert_as_close_as_torch

GPU_PROVIDERS = [name for name in FAMILIES if name != "reference"]


def test_a_cpu_runs_the_reference_and_loads_no_other_kernel():
    code = (
        "import sys, torch; from s24compile import ops; ops.glu(torch.ones(2, 4)); "
        "print([m for m in sys.modules if m.startswith('s24compile') and ('triton' in m or 'cutlass' in m)])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_choices_are_recorded():
    before = providers.recorded().get(("glu", "reference"), 0)
    with providers.only("reference"):
        functional.glu(torch.ones(2, 4))
    assert providers.recorded()["glu", "reference"] == before + 1


def test_the_first_provider_that_takes_the_call_is_chosen_and_the_others_reasons_kept(monkeypatch):
    known = {
        "cutlass": Provider("cutlass", torch.relu, supported=lambda target: "needs compute capability 9.0"),
        "triton": Provider("triton", torch.relu, supports=lambda z, act, gate: "z is too small"),
        "cusparselt": None,
        "reference": Provider("reference", torch.relu),
    }
    monkeypatch.setattr(providers, "find", lambda op, name: known[name])
    monkeypatch.setattr(providers, "_on_target", providers._on_target.__wrapped__)  # what is found is cached
    choice = providers.choose("glu", torch.ones(2, 4), "gelu", "first", target=Target("cuda", (8, 0), FAMILIES))
    assert choice.provider.name == "reference"
    assert choice.refused == {
        "cutlass": "needs compute capability 9.0",
        "triton": "z is too small",
        "cusparselt": "has no kernel for glu",
    }


def test_a_provider_asked_for_by_name_refuses_with_a_sentence(monkeypatch):
    monkeypatch.setattr(providers, "find", lambda op, name: None)
    with providers.only("cusparselt"), pytest.raises(TargetError, match="has no kernel for glu"):
        providers.choose("glu", torch.ones(2, 4), "gelu", "first")


def test_fake_tensors_can_be_asked_about():
    with torch._subclasses.FakeTensorMode():
        choice = providers.choose("glu", torch.empty(2, 4), "gelu", "first")
    assert choice.provider.name == "reference"


CASES = [
    pytest.param(op, index, id=f"{op}-{sample.note}")
    for op in sorted(providers.FAMILY_OF)
    for index, sample in enumerate(samples(op, "cpu", torch.bfloat16))
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", GPU_PROVIDERS)
@pytest.mark.parametrize(("op", "index"), CASES)
def test_every_provider_agrees_with_the_reference(op, index, name, dtype):
    """Choices (masks, codes) and packed values are equal; sums are as close to fp64 as the reference is, twice."""
    sample = samples(op, "cuda", dtype)[index]
    provider, target = providers.find(op, name), Target.detect(torch.device("cuda"))
    if provider is None:
        pytest.skip(f"{name} has no kernel for {op}: another one serves it")
    reason = provider.supported(target) or provider.supports(*sample.args)
    if reason is not None:
        assert len(reason) > 10, "a refusal is a sentence"
        pytest.skip(f"{name} refuses: {reason}")
    with torch.no_grad():
        results = []
        for run in (provider.run, providers.find(op, "reference").run):
            args = samples(op, "cuda", dtype)[index].args
            results.append((run(*args), args))
    (ours, our_args), (theirs, their_args) = results
    exact_inputs = torch.utils._pytree.tree_map_only(torch.Tensor, _widened, sample.args)
    leaves = [torch.utils._pytree.tree_leaves((r, a)) for r, a in ((ours, our_args), (theirs, their_args))]
    for a, b in zip(*leaves, strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        if op in ("mm", "glu", "glu_backward") and a.is_floating_point() and a is ours:
            args = (*exact_inputs[:-1], torch.float64) if op == "mm" else exact_inputs
            exact = providers.find(op, "reference").run(*args)
            assert_as_close_as_torch(a, b, exact, op)
        elif a.is_floating_point() and op in ("soft_threshold_scale", "masked_decay_", "masked_decay_patterns_"):
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b), "equal to the bit"


def _widened(t):
    return t.detach().double() if t.is_floating_point() else t


def test_ops_run_under_a_provider_asked_for_on_any_device(device):
    with providers.only("reference"):
        z = torch.randn(4, 8, device=device)
        torch.testing.assert_close(ops.glu(z, "gelu", "first"), torch.nn.functional.gelu(z[:, :4]) * z[:, 4:])
