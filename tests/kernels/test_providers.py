"""The choice of a kernel: by target, with reasons, recorded; and every provider agrees with the reference."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from s24compile import ops as functional
from s24compile.errors import TargetError
from s24compile.kernels import ops, providers
from s24compile.kernels import target as targets
from s24compile.kernels.arch import PROVIDERS, where
from s24compile.kernels.checks import device_format
from s24compile.kernels.providers import Provider
from s24compile.kernels.samples import samples
from s24compile.kernels.target import Target
from tests.closeness import assert_as_close_as_torch
from tests.kernels import scaled_closeness


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
    own = providers.find("glu", "reference")
    known = {
        "cutlass": Provider("cutlass", own.run, supported=lambda target: "nothing is built"),
        "triton": Provider("triton", own.run, supports=lambda z, act, gate: "z is too small"),
        "cublas": None,
        "cusparselt": None,
        "reference": own,
    }
    monkeypatch.setattr(providers, "find", lambda op, name: known[name])
    monkeypatch.setattr(providers, "_on_target", providers._on_target.__wrapped__)  # what is found is cached
    choice = providers.choose("glu", torch.ones(2, 4), "gelu", "first", target=Target.parse("sm_90"))
    assert choice.provider.name == "reference"
    assert choice.refused == {
        "cutlass": "nothing is built",
        "triton": "z is too small",
        "cublas": "has no kernel for glu",
        "torch": "its kernels are for Ada (sm_89) and Ampere (sm_8x), this is sm_90",
        "cusparselt": "has no kernel for glu",
    }


def test_a_provider_asked_for_by_name_refuses_with_a_sentence():
    with providers.only("cusparselt"), pytest.raises(TargetError, match="has no kernel for glu"):
        providers.choose("glu", torch.ones(2, 4), "gelu", "first")


def test_fake_tensors_can_be_asked_about():
    with torch._subclasses.FakeTensorMode():
        choice = providers.choose("glu", torch.empty(2, 4), "gelu", "first")
    assert choice.provider.name == "reference"


# With TRITON_INTERPRET=1 Triton's kernels run on CPU tensors too (slowly), as if for Hopper.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
DEVICE, TARGET = ("cpu", Target.parse("sm_90")) if INTERPRETED else ("cuda", None)

APART = {"scaled_dense", "glu_backward_amax", "glu_backward_quantise_pack", "quantise_pack"}
"""Compared in test_scaled_cutlass.py and triton_fp8_checks.py: what they give follows from sums of their own."""

CASES = [
    pytest.param(
        op,
        index,
        name,
        id=f"{name}-{op}-{sample.note}",
        marks=[] if INTERPRETED and name == "triton" else pytest.mark.gpu,
    )
    for op, folder in sorted(providers.FOLDER_OF.items())
    for name in PROVIDERS
    if name != "reference" and importlib.util.find_spec(f"s24compile.kernels.{folder}.{name}") is not None
    for index, sample in enumerate(samples(op, "cpu", torch.bfloat16))
    if op not in APART
]

ROUNDED = {
    "mm",
    "mm_act",
    "mm_dact",
    "mm_dact_sum",
    "mm_add",
    "mm_glu",
    "mm_dglu",
    "act",
    "act_backward",
    "glu",
    "glu_backward",
}
ROUNDED |= {"masked_decay_", "masked_decay_patterns_", "masked_decay_many_", "soft_threshold_scale"}
"""Ops whose results are sums or transcendental: as close to fp64 as the reference is, twice. All others: to the bit."""
SCALED = {name for name in providers.FOLDER_OF if name.startswith("scaled_")}
"""Products of 8-bit floats, which tensor cores sum with fewer bits than fp32: scaled_closeness.py bounds them."""


NARROW = {"torch", "cusparselt"}
"""Libraries whose products are 16 bits wide: an fp32 result is widened, as a weight gradient under autocast is."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("op", "index", "name"), CASES)
def test_every_provider_agrees_with_the_reference(op, index, name, dtype):
    provider, args = providers.find(op, name), samples(op, DEVICE, dtype)[index].args
    if provider is None:
        pytest.skip(f"{name} has no kernel for {op}: another one serves it")
    grouped = providers.gatherer_of(op)(args)
    target = TARGET or Target.detect(torch.device(DEVICE))
    if name not in target.arch.providers:
        pytest.skip(f"{name} has kernels for {where(name)}, this is {target}")
    reason = provider.supported(target) or provider.supports(*grouped)
    if reason is not None:
        assert len(reason) > 10, "a refusal is a sentence"
        pytest.skip(f"{name} refuses: {reason}")
    reference = providers.kernel(op, "reference")
    ours = leaves_after(providers.kernel(op, name), args)
    theirs = leaves_after(reference, samples(op, DEVICE, dtype)[index].args)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    if op in SCALED:
        scaled_closeness.check(op, ours, args)
        return
    if op == "mvue_pack_sum":
        compare_sums(ours[2], args[0])
        ours, theirs = ours[:2], theirs[:2]
    elif op == "mm_dact_sum":
        compare_unrounded_sums(ours[1], args)
        ours, theirs = ours[:1], theirs[:1]
    wide = [_wide(arg) for arg in samples(op, DEVICE, dtype)[index].args]
    exact = leaves_after(reference, wide) if op in ROUNDED else theirs
    for a, b, c in zip(ours, theirs, exact[: len(ours)], strict=True):
        if name in NARROW and op == "mm":
            b = b.to(args[0].dtype).to(b.dtype)
        if op in ROUNDED and a.is_floating_point():
            assert_as_close_as_torch(a, b, c, op)
        else:
            assert torch.equal(a, b), "equal to the bit"


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the test above runs the compiled kernels themselves")
def test_triton_agrees_with_the_reference_in_its_interpreter():
    pytest.importorskip("triton", reason="the interpreter comes with triton")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-k", "triton- and bfloat16"]
    ran = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert " passed" in ran.stdout


def leaves_after(run, args):
    """The tensors of the result and of the arguments (some ops write into those)."""
    with torch.no_grad():
        result = run(*args)
    written = () if result is not None else args
    leaves = torch.utils._pytree.tree_leaves((result, written))
    return [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def compare_sums(sums, g):
    """Column sums in fp32, against torch's own fp32 sums."""
    assert_as_close_as_torch(sums, g.sum(0, dtype=sums.dtype), g.double().sum(0), "column sums")


SLOPE_ERROR = 1e-4
"""Of an epilogue's act': what test_activation_fits.py holds activations.cuh to."""


def compare_unrounded_sums(sums, args):
    """Sums of dH act'(Z) before dZ is rounded: what the slope of the epilogue and fp32 sums may be off by."""
    values, metadata, rows, cols, format, b, z, act, _ = args
    gemm = {op: providers.kernel(op, "reference") for op in ("mm", "mm_dact_sum")}
    operands = values.double(), metadata, rows, cols, format, b.double()
    exact = gemm["mm_dact_sum"](*operands, z.double(), act, "row")[1]
    dh = gemm["mm"](*operands, None, "row", torch.float64).abs().sum(1)
    magnitudes = operands[0].abs(), metadata, rows, cols, format, operands[-1].abs()
    terms = gemm["mm"](*magnitudes, None, "row", torch.float64).sum(1)
    # Each of the K + N additions of a row rounds by half an epsilon of at most all that is added; slopes are below 1.2.
    rounding = 0.6 * (cols + b.shape[1]) * torch.finfo(torch.float32).eps * terms
    assert sums.dtype == torch.float32
    assert bool(((sums.double() - exact).abs() <= SLOPE_ERROR * dh + rounding).all())


def _wide(arg):
    if arg is torch.float32 or arg is torch.bfloat16 or arg is torch.float16:
        return torch.float64
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.detach().double() if t.is_floating_point() else t, arg
    )


def test_ops_run_under_a_provider_asked_for_on_any_device(device):
    with providers.only("reference"):
        z = torch.randn(4, 8, device=device)
        torch.testing.assert_close(ops.glu(z, "gelu", "first"), torch.nn.functional.gelu(z[:, :4]) * z[:, 4:])


def test_read_the_format_of_the_present_gpu_where_a_device_has_no_number(monkeypatch):
    gpus = [Target.parse("sm_80"), Target.parse("sm_90")]
    monkeypatch.setattr(targets, "_cuda_target", lambda index: gpus[index])
    for present, format in enumerate(("sm80", "sm90")):
        monkeypatch.setattr(torch.cuda, "current_device", lambda present=present: present)
        assert device_format(torch.device("cuda")) == format
        assert device_format(torch.device("cuda:0")) == "sm80"
