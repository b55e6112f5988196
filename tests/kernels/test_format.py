"""The bits of both formats, against independent statements of them."""

import pytest
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from s24compile.kernels.format import FORMATS
from s24compile.kernels.patterns import PAIR_CODES
from tests.kernels.oracles import ANY_ROWS, sm90_narrow_index, sm90_wide_index

WIDTHS = [torch.bfloat16, torch.float8_e4m3fn]
SHAPES = [(64, 64), (128, 256), (72, 136), (4, 4), (200, 20), (0, 64), (64, 0)]


def random_codes(m, groups):
    return torch.tensor(PAIR_CODES, dtype=torch.uint8)[torch.randint(0, 6, (m, groups))]


def dense_of(codes):
    """A matrix that keeps ones at the first and twos at the second place of each code."""
    dense = torch.zeros(*codes.shape, 4)
    dense.scatter_(2, (codes & 3).long()[..., None], 1.0).scatter_(2, (codes >> 2).long()[..., None], 2.0)
    return dense.flatten(1)


@pytest.mark.parametrize("name", ANY_ROWS)
@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_inverts_encode(name, dtype, shape):
    (m, k), format = shape, FORMATS[name]
    codes = random_codes(m, k // 4)
    metadata = format.encode(codes, dtype)
    assert metadata.shape == format.metadata_shape(m, k, dtype)
    assert metadata.dtype == format.metadata_dtype(dtype)
    assert metadata.is_contiguous()
    assert torch.equal(format.decode(metadata, m, k, dtype), codes)


def test_one_group_of_sm90_is_drawn_as_said():
    codes = torch.full((1, 4), 0b0100, dtype=torch.uint8)
    codes[0, 1] = 0b1101  # positions 1 and 3 of the second group: bits 4..7 of the first cell
    metadata = FORMATS["sm90"].encode(codes, torch.bfloat16)
    assert metadata.flatten()[0].item() & 0xFFFF == 0x44D4


@pytest.mark.parametrize(
    ("dtype", "index", "mask"),
    [(torch.float16, sm90_wide_index, 0xFFFF), (torch.float8_e5m2, sm90_narrow_index, 0xFF)],
    ids=["16-bit", "8-bit"],
)
@pytest.mark.parametrize("shape", [(64, 128), (136, 272), (12, 4)], ids=str)
def test_sm90_puts_each_code_where_cutlass_reads_it(dtype, index, mask, shape):
    m, k = shape
    codes = random_codes(m, k // 4)
    cells = FORMATS["sm90"].encode(codes, dtype).flatten().tolist()
    for row in range(m):
        for group in range(k // 4):
            place, shift = index(row, 4 * group, m)
            assert (cells[place] & mask) >> shift & 15 == codes[row, group], f"row {row}, k {4 * group}"


@pytest.mark.parametrize(("dtype", "shape"), [(torch.float16, (96, 256)), (torch.int8, (80, 384))], ids=str)
def test_sm80_equals_torchs_own_conversion(dtype, shape):
    codes = random_codes(shape[0], shape[1] // 4)
    values, metadata = sparse_semi_structured_from_dense_cutlass(dense_of(codes).to(dtype))
    assert torch.equal(FORMATS["sm80"].encode(codes, dtype), metadata)
    assert values.double().unique().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ANY_ROWS)
@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_padding_holds_legal_codes_and_no_values(name, dtype):
    format = FORMATS[name]
    metadata = format.encode(random_codes(3, 5), dtype)
    padded = format.layout(dtype).padded(3, 5)
    rows, groups = padded[0], padded[1] * format.layout(dtype).codes_per_cell
    everything = format.decode(metadata, rows, 4 * groups, dtype)
    assert (everything[3:] == 0b0100).all(), "rows of padding keep (0, 1)"
    assert (everything[:, 5:] == 0b0100).all(), "columns of padding keep (0, 1)"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32], ids=str)
@pytest.mark.parametrize("k", [64, 72, 20, 4])
def test_rows_of_values_start_on_sixteen_bytes_and_their_padding_is_zero(dtype, k, device):
    values, _ = FORMATS["sm90"].empty(6, k, dtype, torch.device(device))
    assert values.shape == (6, k // 2)
    assert values.stride(0) * values.element_size() % 16 == 0
    assert values.stride(1) == 1
    whole = values.as_strided((6, values.stride(0)), (values.stride(0), 1))
    assert (whole[:, k // 2 :].float() == 0).all()


@pytest.mark.parametrize("name", ANY_ROWS)
@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
@pytest.mark.parametrize(("m", "k"), [(6, 20), (64, 4), (192, 128), (130, 30)])
def test_whole_operands_hold_their_logical_parts_and_zeros(name, dtype, m, k):
    format = FORMATS[name]
    values, metadata = format.empty_whole(m, k, dtype, torch.device("cpu"))
    assert values.is_contiguous()
    assert metadata.is_contiguous()
    assert min(metadata.shape) > 1, "a size of 1 is another graph"
    assert (values.view(torch.uint8)[:, (k + 3) // 4 * 2 * dtype.itemsize :] == 0).all()
    inside, codes = format.parts(values, metadata, m, k)
    assert (inside.shape, codes.shape) == (format.values_shape(m, k), format.metadata_shape(m, k, dtype))
    assert inside.data_ptr() == values.data_ptr()
    expected = random_codes(m, (k + 3) // 4)
    codes.copy_(format.encode(expected, dtype))
    assert torch.equal(format.decode(codes, m, k, dtype), expected)
    assert torch.equal(format.decode(metadata, m, k, dtype), expected), "readers take either"


@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_a_range_of_rows_is_a_view_of_sm90_metadata(dtype):
    format, codes = FORMATS["sm90"], random_codes(192, 64)
    whole = format.encode(codes, dtype)
    assert torch.equal(whole[:, 1:3], format.encode(codes[64:], dtype))
