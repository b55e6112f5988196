"""Packing keeps every bit, refuses what is not 2:4, and writes static buffers in place."""

import pytest
import torch

from s24compile import ops
from s24compile.errors import MaskError
from s24compile.kernels import ops as raw
from s24compile.kernels.format import FORMATS
from tests.kernels.oracles import ANY_ROWS, pairs, two_largest

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BYTES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
NAN, INF = float("nan"), float("inf")


def bits(x):
    """The same memory as integers: NaN and -0.0 compare by bits."""
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize])


def roundtrip(w, mask, dtype, format):
    values, metadata = raw.pack(w, mask, dtype, format)
    return raw.unpack(values, metadata, *w.shape, format)


@pytest.mark.parametrize("format", ANY_ROWS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (72, 136), (64, 64), (200, 20), (0, 8), (8, 0)], ids=str)
def test_unpack_inverts_pack_to_the_bit(format, dtype, shape, device):
    w = torch.randn(shape).to(device, dtype)
    mask = two_largest(w)
    assert torch.equal(bits(roundtrip(w, mask, dtype, format)), bits(torch.where(mask, w, 0.0)))


@pytest.mark.parametrize("format", ANY_ROWS)
def test_kept_nan_inf_and_signed_zero_survive_and_pruned_ones_do_not_leak(format, device):
    w = torch.tensor([[NAN, INF, NAN, 1.0], [-INF, NAN, -0.0, -0.0], [NAN, NAN, 5.0, 6.0]], device=device)
    mask = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1]], dtype=torch.bool, device=device)
    found = roundtrip(w, mask, torch.float32, format)
    assert torch.equal(bits(found), bits(torch.where(mask, w, 0.0)))


def test_literal_groups_give_literal_codes_and_values(device):
    mask = torch.tensor([[c in pair for c in range(4)] for pair in pairs()], device=device)
    w = torch.tensor([[1.0, 2.0, 3.0, 4.0]], device=device).expand(6, 4)
    values, metadata = raw.pack(w, mask, torch.float32, "sm90")
    assert values.cpu().tolist() == [[i + 1.0, j + 1.0] for i, j in pairs()]
    codes = FORMATS["sm90"].decode(metadata, 6, 4, torch.float32).flatten().tolist()
    assert codes == [0x4, 0x8, 0xC, 0x9, 0xD, 0xE]


@pytest.mark.parametrize("format", ANY_ROWS)
def test_groups_with_fewer_than_two_ones_keep_zeros_at_legal_places(format, device):
    masks = torch.tensor([[n >> c & 1 for c in range(4)] for n in (0, 1, 2, 4, 8)], dtype=torch.bool, device=device)
    w = torch.full((5, 4), NAN, device=device).masked_fill(masks, 3.0)
    assert torch.equal(roundtrip(w, masks, torch.float32, format), torch.where(masks, 3.0, 0.0))
    codes = FORMATS[format].decode(raw.pack(w, masks, torch.float32, format)[1], 5, 4, torch.float32)
    assert ((codes & 3) < (codes >> 2)).all(), "the hardware needs first < second"


@pytest.mark.parametrize("dtype", BYTES, ids=str)
@pytest.mark.parametrize("format", ANY_ROWS)
def test_eight_bit_values_are_saturating_casts(dtype, format, device):
    w = torch.randn(72, 136) * 100
    w[0, :4] = torch.tensor([1e6, -1e6, 0.0, 0.0])
    w, mask = w.to(device), two_largest(w).to(device)
    limit = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    low = -128 if dtype == torch.int8 else -limit
    kept = torch.where(mask, w, 0.0).clamp(low, limit)
    expected = kept.round().to(dtype) if dtype == torch.int8 else kept.to(dtype)
    found = roundtrip(w, mask, dtype, format)
    assert found.dtype == dtype
    assert torch.equal(bits(found), bits(expected))


def test_a_float8_tensor_can_be_packed_as_it_is(device):
    w = torch.randn(8, 16).to(device, torch.float8_e4m3fn)
    mask = ops.magnitude_mask(w)
    found = ops.unpack(ops.pack(w, mask))
    assert torch.equal(found.float(), torch.where(mask, w.float(), 0.0))


def test_more_than_two_of_four_is_refused():
    w, mask = torch.randn(4, 8), torch.zeros(4, 8, dtype=torch.bool)
    mask[2, 5:8] = True
    with pytest.raises(MaskError, match="3 non-zeros"):
        ops.pack(w, mask)
    with pytest.raises(MaskError, match="magnitude_mask"):
        ops.pack(w)
    ops.pack_both(w, mask & False)
    rows = torch.zeros(4, 8, dtype=torch.bool)
    rows[:, 0] = True  # 2:4 along rows, four ones down a column
    with pytest.raises(MaskError, match=r"4 non-zeros; .* down the columns .* ops.transposable_mask"):
        ops.pack_both(w, rows)
    with pytest.raises(MaskError, match=r"3 non-zeros; .* along the last dim"):
        ops.pack_both(w, mask)


@pytest.mark.gpu
def test_cuda_packs_a_legal_subset_of_a_bad_mask():
    w = torch.randn(64, 64, device="cuda")
    found = ops.unpack(ops.pack(w, torch.ones(64, 64, dtype=torch.bool, device="cuda")))
    assert ((found != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all()
    assert ((found == 0) | (found == w)).all()


def test_pack_without_mask_takes_a_sparse_tensor_as_it_is(device):
    w = torch.randn(12, 16, device=device)
    w = torch.where(ops.magnitude_mask(w), w, 0.0)
    w[0] = 0.0
    assert torch.equal(ops.unpack(ops.pack(w)), w)


def test_pack_both_packs_the_matrix_and_its_transpose(device):
    w = torch.randn(72, 136, device=device)
    mask = ops.transposable_mask(w)
    plain, transposed = ops.pack_both(w, mask, dtype=torch.bfloat16)
    expected = torch.where(mask, w, 0.0).bfloat16()
    assert (plain.shape, transposed.shape, plain.dtype) == ((72, 136), (136, 72), torch.bfloat16)
    assert torch.equal(ops.unpack(plain), expected)
    assert torch.equal(ops.unpack(transposed), expected.t())


@pytest.mark.parametrize("make", [lambda w: w.t(), lambda w: w[1:65, 4:132], lambda w: w[:64, :1].expand(64, 8)])
def test_packing_does_not_depend_on_strides(make, device):
    w = make(torch.randn(140, 140, device=device))
    mask = ops.magnitude_mask(w)
    one, other = ops.pack(w, mask), ops.pack(w.contiguous(), mask.contiguous())
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.metadata, other.metadata)


def test_packs_made_under_inference_mode_serve_a_later_training_step(device):
    w = torch.randn(8, 8, device=device)
    with torch.inference_mode():
        p, _ = ops.pack_both(w, ops.transposable_mask(w))
    x = torch.randn(3, 8, device=device, requires_grad=True)
    ops.linear(x, p).sum().backward()
    assert x.grad is not None


# pack_weight_: static buffers of one operand, from one or two stacked parameters.


def buffers(n, k, dtype, format, device, *, transposed):
    layout = FORMATS[format]
    sizes = [(n, k), (k, n)] if transposed else [(n, k)]
    return [t for size in sizes for t in layout.empty(*size, dtype, torch.device(device))] + [None, None][
        2 * transposed :
    ]


def pack_weight(weights, patterns, filled, *, select="transposable", search=True, layout="out_in", scale=None):
    raw.pack_weight_(weights, patterns, *filled, scale, select, search, "sm90", layout)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("select", ["transposable", "magnitude"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stacked_weights_pack_as_one_matrix(layout, select, dtype, device):
    parts = [torch.randn(68, 72, device=device), torch.randn(12, 72, device=device)]
    whole = torch.cat(parts)
    find = {"transposable": raw.transposable_patterns, "magnitude": raw.magnitude_patterns}[select]
    mask = {"transposable": ops.transposable_mask, "magnitude": ops.magnitude_mask}[select](whole)
    patterns = [torch.zeros_like(find(part)) for part in parts]
    filled = buffers(80, 72, dtype, "sm90", device, transposed=select == "transposable")
    stored = parts if layout == "out_in" else [part.t().contiguous() for part in parts]
    pack_weight(stored, patterns, filled, select=select, layout=layout)
    for pattern, part in zip(patterns, parts, strict=True):
        assert torch.equal(pattern, find(part))
    expected = torch.where(mask, whole, 0.0).to(dtype)
    assert torch.equal(raw.unpack(filled[0], filled[1], 80, 72, "sm90"), expected)
    for ours, theirs in zip(filled[:2], raw.pack(whole, mask, dtype, "sm90"), strict=True):
        assert torch.equal(ours, theirs)
    if select == "transposable":
        assert torch.equal(raw.unpack(filled[2], filled[3], 72, 80, "sm90"), expected.t())


def test_without_search_new_values_are_packed_at_the_old_places(device):
    w = torch.randn(64, 64, device=device)
    patterns, filled = [raw.transposable_patterns(w)], buffers(64, 64, torch.float32, "sm90", device, transposed=True)
    mask, old = ops.transposable_mask(w), patterns[0].clone()
    changed = torch.randn(64, 64, device=device)
    pack_weight([changed], patterns, filled, search=False)
    assert torch.equal(patterns[0], old)
    expected = torch.where(mask, changed, 0.0)
    assert torch.equal(raw.unpack(filled[0], filled[1], 64, 64, "sm90"), expected)
    assert torch.equal(raw.unpack(filled[2], filled[3], 64, 64, "sm90"), expected.t())


def test_soft_threshold_packs_scaled_values(device):
    w, scale = torch.randn(64, 64, device=device), torch.tensor(1.5, device=device)
    patterns, filled = [raw.magnitude_patterns(w)], buffers(64, 64, torch.float32, "sm90", device, transposed=False)
    patterns[0].zero_()
    pack_weight([w], patterns, filled, select="soft_threshold", search=False, scale=scale)
    assert torch.equal(raw.unpack(filled[0], filled[1], 64, 64, "sm90"), scale * ops.soft_threshold(w))
    assert torch.equal(patterns[0], raw.magnitude_patterns(w)), "it always searches"


def test_version_counters_of_all_buffers_move(device):
    w = torch.nn.Parameter(torch.randn(64, 64, device=device))
    patterns, filled = [raw.transposable_patterns(w)], buffers(64, 64, torch.float32, "sm90", device, transposed=True)
    before = [t._version for t in (*patterns, *filled)]
    pack_weight([w], patterns, filled)
    assert all(t._version > old for t, old in zip((*patterns, *filled), before, strict=True))
    assert w._version == 0


@pytest.mark.parametrize("select", ["transposable", "magnitude", "soft_threshold"])
def test_nan_and_inf_weights_never_give_an_illegal_code(select, device):
    w = torch.randn(64, 64, device=device)
    w[::3, ::5], w[1::7, ::2], w[5:9] = NAN, INF, NAN
    find = raw.transposable_patterns if select == "transposable" else raw.magnitude_patterns
    patterns, filled = [find(w)], buffers(64, 64, torch.float32, "sm90", device, transposed=select == "transposable")
    pack_weight([w], patterns, filled, select=select)
    for metadata in filled[1::2]:
        if metadata is not None:
            codes = FORMATS["sm90"].decode(metadata, 64, 64, torch.float32)
            assert ((codes & 3) < (codes >> 2)).all()
