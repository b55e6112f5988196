"""The "sm90_gated" format: rows of gate and up stored in turns of eight, and nothing logical knows of it.

Legend: F rows of one half, k columns.
"""

import pytest
import torch

from s24compile import ops
from s24compile.errors import ShapeError
from s24compile.kernels import ops as raw
from s24compile.kernels.format import FORMATS
from s24compile.kernels.mvue import reference as mvue
from tests.kernels.oracles import sm90_narrow_index, sm90_wide_index

GATED, PLAIN = FORMATS["sm90_gated"], FORMATS["sm90"]
HALVES = [8, 24, 64, 200]


def stored_row(row, half):
    """Where a row of [2 half, k] lies, one formula for each half."""
    return 16 * (row // 8) + row % 8 if row < half else 16 * ((row - half) // 8) + 8 + (row - half) % 8


def stored_order(half):
    """order[s] = the logical row that is stored as row s."""
    place = [stored_row(r, half) for r in range(2 * half)]
    return torch.tensor(place).argsort()


def test_rows_of_a_small_weight_are_stored_as_drawn():
    rows = torch.arange(48)[:, None]
    stored = GATED.store_rows(rows).flatten().tolist()
    assert stored == [*range(8), *range(24, 32), *range(8, 16), *range(32, 40), *range(16, 24), *range(40, 48)]
    assert torch.equal(GATED.load_rows(GATED.store_rows(rows)), rows)
    assert PLAIN.store_rows(rows) is rows


@pytest.mark.parametrize(
    ("dtype", "index", "mask"),
    [(torch.float16, sm90_wide_index, 0xFFFF), (torch.float8_e5m2, sm90_narrow_index, 0xFF)],
    ids=["16-bit", "8-bit"],
)
@pytest.mark.parametrize("half", [8, 40])
def test_each_code_lies_where_cutlass_reads_the_stored_row(half, dtype, index, mask):
    k = 144
    codes = torch.tensor([4, 8, 9, 12, 13, 14], dtype=torch.uint8)[torch.randint(0, 6, (2 * half, k // 4))]
    metadata = GATED.encode(codes, dtype)
    assert metadata.shape == PLAIN.metadata_shape(2 * half, k, dtype)
    cells = metadata.flatten().tolist()
    for row in range(2 * half):
        for group in range(k // 4):
            place, shift = index(stored_row(row, half), 4 * group, 2 * half)
            assert (cells[place] & mask) >> shift & 15 == codes[row, group], f"row {row}, k {4 * group}"
    assert torch.equal(GATED.decode(metadata, 2 * half, k, dtype), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("half", HALVES)
def test_unpack_inverts_pack_and_values_follow_the_stored_row(half, dtype, device):
    w = (torch.randn(2 * half, 72, device=device) * 20).to(dtype)
    mask = ops.transposable_mask(w.float())
    values, metadata, *transposed = raw.pack_both(w, mask, dtype, "sm90_gated")
    dense = torch.where(mask, w, torch.zeros_like(w))
    assert torch.equal(raw.unpack(values, metadata, 2 * half, 72, "sm90_gated"), dense)
    order = stored_order(half).to(device)
    plain = raw.pack_both(w[order], mask[order], dtype, "sm90")
    assert torch.equal(values, plain[0])
    assert torch.equal(metadata, plain[1])
    assert torch.equal(raw.unpack(*transposed, 72, 2 * half, GATED.transposed), dense.t()), "W^T is not interleaved"


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("select", ["transposable", "magnitude", "soft_threshold"])
@pytest.mark.parametrize("parts", [1, 2])
def test_packing_a_weight_interleaves_forward_and_leaves_its_transpose(parts, select, layout, device):
    half, k = 24, 72
    logical = [torch.randn(2 * half // parts, k, device=device) for _ in range(parts)]
    weights = logical if layout == "out_in" else [w.t().contiguous() for w in logical]
    find = raw.transposable_patterns if select == "transposable" else raw.magnitude_patterns
    found = {}
    for name in ("sm90_gated", "sm90"):
        format, patterns = FORMATS[name], [torch.zeros_like(find(w)) for w in logical]
        buffers = [*format.empty(2 * half, k, torch.bfloat16, torch.device(device)), None, None]
        if select == "transposable":
            buffers[2:] = FORMATS[format.transposed].empty(k, 2 * half, torch.bfloat16, torch.device(device))
        raw.pack_weight_(weights, patterns, *buffers, None, select, True, name, layout)
        found[name] = patterns, buffers, raw.unpack(*buffers[:2], 2 * half, k, name)
    (patterns, gated, dense), (expected, plain, same) = found["sm90_gated"], found["sm90"]
    assert torch.equal(dense, same)
    assert all(map(torch.equal, patterns, expected))
    assert torch.equal(gated[0], plain[0][stored_order(half).to(device)])
    if select == "transposable":
        assert all(map(torch.equal, gated[2:], plain[2:]))


def test_products_are_in_logical_order(device):
    w, b = torch.randn(48, 72, device=device), torch.randn(72, 5, device=device)
    mask = ops.magnitude_mask(w)
    gated, plain = (raw.pack(w, mask, torch.float32, name) for name in ("sm90_gated", "sm90"))
    bias = torch.randn(48, device=device)
    found = raw.mm(*gated, 48, 72, "sm90_gated", b, bias, "row", torch.float32)
    assert torch.equal(found, raw.mm(*plain, 48, 72, "sm90", b, bias, "row", torch.float32))


def test_an_estimate_can_be_stored_so_too(device):
    g, seed = torch.randn(37, 48, device=device), torch.tensor([3], device=device)
    packed, dense = mvue.mvue_pack(g, seed, torch.float32, "sm90_gated"), mvue.mvue_pack(g, seed, torch.float32, "sm90")
    assert torch.equal(raw.unpack(*packed, 48, 37, "sm90_gated"), raw.unpack(*dense, 48, 37, "sm90"))


@pytest.mark.parametrize("rows", [8, 20, 72])
def test_halves_that_are_no_multiple_of_eight_are_refused(rows):
    w = torch.randn(rows, 16)
    with pytest.raises(ShapeError, match="multiple of 8 rows"):
        raw.pack(w, ops.magnitude_mask(w), torch.float32, "sm90_gated")
