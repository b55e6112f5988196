"""What products of eight-bit floats hand to CUTLASS and to cuBLASLt, on a CPU; test_cutlass_gpu.py runs them."""

import pytest
import torch

from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.gemm.cutlass import scaled as cutlass
from s24compile.kernels.gemm.cutlass import tuned
from s24compile.kernels.gemm.cutlass.instantiations import DEFAULT, EXACT, Kernel
from s24compile.kernels.gemm.cutlass.training_sets import narrow_training_set
from s24compile.kernels.packed import Packed24, ScaledPair
from s24compile.kernels.samples import samples
from s24compile.kernels.target import Target
from tests.kernels.recorder import recording

M, N, K = 80, 48, 256
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HOPPER = Target.parse("sm_90")


@pytest.fixture
def calls():
    """Every launch of the test."""
    with recording() as made:
        yield made


def pair(types=(E4M3, E4M3), m=M, format="sm90", n=N):
    """A packed [m, K] and a column-major B [K, n], nothing in them."""
    packed = FORMATS[format].empty(m, K, types[0], torch.device("cpu"))
    a = Packed24.of(*packed, m, K, format)
    return ScaledPair(a, torch.ones(1), torch.zeros(n, K, dtype=types[1]).t(), torch.ones(1))


def test_hand_over_both_descales_and_metadata_of_eight_bits(calls):
    given = pair((E5M2, E4M3))
    d = cutlass.scaled_mm(given, None, "row", torch.float32, False)
    (call,) = calls
    assert call.kernel.signature.name == "e5m2xe4m3_ak_bk_drow_fp32_plain"
    assert call.kernel.schedule == DEFAULT
    wanted = {"values": given.a.values, "metadata": given.a.metadata, "b": given.b, "d": d}
    wanted |= {"descale_a": given.descale_a, "descale_b": given.descale_b}
    assert {name: call.problem[name] for name in wanted} == {name: t.data_ptr() for name, t in wanted.items()}
    assert call.problem["amax"] == 0
    assert [call.problem[f"{name}_stride"] for name in ("values", "metadata", "b", "d")] == [K // 2, 2 * 1024, K, N]


def test_give_activations_a_place_for_their_amax(calls):
    given, z = pair((E4M3, E5M2)), torch.zeros(N, M, dtype=torch.bfloat16).t()
    kept = [
        cutlass.scaled_mm_act(pair(), torch.zeros(M), "gelu", "col", torch.bfloat16, False),
        cutlass.scaled_mm_dact(given, z, "gelu", "col", False, False),
        cutlass.scaled_mm_dact(given, z, "gelu", "col", True, False),
        cutlass.scaled_mm_glu(pair(format="sm90_gated"), "silu", "first", torch.bfloat16, False),
        cutlass.scaled_mm_dglu(given, torch.zeros(N, 2 * M).bfloat16().t(), "silu", "first", False),
    ]
    assert [call.kernel.signature.epilogue for call in calls] == ["act", "dact", "dact_sum", "glu", "dglu"]
    assert [call.problem["amax"] for call in calls] == [results[-1].data_ptr() for results in kept]
    assert all(results[-1].tolist() == [0.0] for results in kept), "the kernel raises it from 0"
    assert [results[0].dtype for results in kept] == [torch.bfloat16] * 5
    assert kept[1][1].shape == (0,)
    # The recorder writes r as the sum of row r.
    assert torch.equal(kept[2][1], torch.arange(M, dtype=torch.float32))


def test_order_interleaved_halves_by_the_epilogue_of_a_glu(calls):
    d = cutlass.scaled_mm(pair(format="sm90_gated"), None, "col", torch.bfloat16, False)
    assert [call.kernel.signature.epilogue for call in calls] == ["glu"]
    assert d.shape == (M, N)


def test_sum_exactly_in_smaller_tiles(calls):
    cutlass.scaled_mm(pair(), None, "col", torch.bfloat16, True)
    (call,) = calls
    assert call.kernel.name == f"e4m3_ak_bk_dcol_bf16_plain_exact-{EXACT.name}"
    assert "FP8FastAccum" not in call.kernel.source()


def test_spell_every_narrow_kernel_both_ways_with_its_amax_and_scales():
    kernels = narrow_training_set((DEFAULT, EXACT))
    assert len({kernel.source() for kernel in kernels}) == len(kernels)
    for kernel in kernels:
        assert Kernel.parse(kernel.name) == kernel
        source, observed = kernel.source(), kernel.signature.epilogue in ("act", "dact", "dact_sum", "glu", "dglu")
        assert ("Amax" in source or ", true>" in source) == observed
        assert '#include "scaled_mainloop.cuh"' in source
        assert f"_{kernel.schedule.tile[1]}, _128>" in source
        assert "FP8FastAccum" in source


def test_tune_narrow_kernels_apart_from_wide_ones(monkeypatch):
    entries = [
        {"epilogue": "plain", "shape": [M, N, K], "fp32": False, "choice": "128x192_2x1_ping/n/1/0"},
        {"epilogue": "fp8 plain", "shape": [M, N, K], "fp32": False, "choice": "128x160_2x1_coop_deep/m/2/0"},
    ]
    monkeypatch.setattr(tuned, "table", lambda: {"entries": entries})
    tuned._nearest.cache_clear()
    narrow = next(kernel for kernel in narrow_training_set() if kernel.signature.epilogue == "bias")
    try:
        assert tuned.choose(narrow.signature, M, N, K).schedule.tile == (128, 160)
        assert [how.tile[1] for how in tuned.schedules(narrow=True)] == [256, 160]
        assert [how.tile[1] for how in tuned.schedules()] == [256, 192]
    finally:
        tuned._nearest.cache_clear()


def test_choose_cutlass_for_every_sample_of_its_format():
    for op in cutlass.PROVIDERS:
        found = set()
        for sample in samples(op, "cpu", torch.bfloat16):
            choice = providers.choose(op, *sample.args, target=HOPPER)
            found.add(choice.provider.name)
            assert choice.provider.name == "cutlass" or "reads the sm90" in choice.refused["cutlass"], sample.note
        assert "cutlass" in found


REFUSED = {
    "B by rows": ({"b": torch.zeros(K, N, dtype=E4M3)}, "not column-major"),
    "e5m2 by e5m2": ({"b": torch.zeros(N, K, dtype=E5M2).t(), "types": (E5M2, E5M2)}, "float8_e5m2 by float8_e5m2"),
    "bf16": ({"types": (torch.bfloat16, torch.bfloat16)}, "bfloat16 by bfloat16"),
    "sm80": ({"format": "sm80"}, "sm90 format, not sm80"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuse_in_a_sentence(case):
    changes, words = REFUSED[case]
    given = pair(changes.get("types", (E4M3, E4M3)), format=changes.get("format", "sm90"))
    given = given._replace(b=changes.get("b", given.b))
    assert words in cutlass.supports(given, None, "row", torch.bfloat16, False)


def test_refuse_a_bias_or_a_result_in_fp64():
    assert "float64" in cutlass.supports(pair(), torch.zeros(M).double(), "row", torch.bfloat16, False)
    assert "float64" in cutlass.supports(pair(), None, "row", torch.float64, False)
    assert "it fuses" in cutlass.supports_act(pair(), None, "sine", "col", torch.bfloat16, False)


def test_launch_nothing_where_there_is_nothing(calls):
    empty, bias = pair(n=0), torch.ones(M)
    assert cutlass.scaled_mm(empty, bias, "col", torch.bfloat16, False).shape == (M, 0)
    z, h, amax = cutlass.scaled_mm_act(empty, bias, "relu", "col", torch.bfloat16, False)
    assert (z.shape, h.shape, amax.tolist()) == ((M, 0), (M, 0), [0.0])
    dz, sums, amax = cutlass.scaled_mm_dact(empty, torch.zeros(M, 0).bfloat16(), "relu", "col", True, False)
    assert (dz.shape, sums.tolist(), amax.tolist()) == ((M, 0), [0.0] * M, [0.0])
    assert calls == []


def test_dense_products_go_to_cublaslt_where_there_is_one():
    for arch, expected in (("sm_90", "cublas"), ("sm_80", "reference")):
        for sample in samples("scaled_dense", "cpu", torch.bfloat16):
            choice = providers.choose("scaled_dense", *sample.args, target=Target.parse(arch))
            assert choice.provider.name == expected
    x, one = torch.zeros(64, 64, dtype=E4M3), torch.ones(1)
    last = None, torch.bfloat16, False
    assert "not column-major" in providers.refusal("scaled_dense", "cublas", x, one, x, one, *last)
    assert "not row-major" in providers.refusal("scaled_dense", "cublas", x.t(), one, x.t(), one, *last)


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float32], ids=str)
def test_dense_products_are_padded_to_what_cublaslt_takes(out, device):
    reference, kernel = (providers.kernel("scaled_dense", name) for name in ("reference", "cublas"))
    for sample in samples("scaled_dense", device, torch.float32):
        a, descale_a, b, descale_b, bias, _, exact = sample.args
        try:
            found = kernel(a, descale_a, b, descale_b, bias, out, True)
        except RuntimeError as error:
            pytest.skip(f"torch._scaled_mm does not run here: {error}")
        wide = reference(a, descale_a, b, descale_b, bias, torch.float64, exact)
        magnitudes = a.float().abs() @ b.float().abs() * descale_a * descale_b
        # Tensor cores keep 13 bits of the largest of a sum's terms; then the result is rounded.
        allowed = 2.0**-12 * magnitudes + torch.finfo(out).eps * wide.abs()
        assert (found.dtype, found.stride()) == (out, (b.shape[1], 1))
        assert bool(((found.double() - wide).abs() <= allowed).all()), sample.note
