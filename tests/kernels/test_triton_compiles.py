"""Triton kernels compile for Hopper without a GPU: what the interpreter never sees is the assembly in them.

Look at register and stack use here before a sweep; a kernel that spills at the committed tile does so in the open.
"""

import pytest

triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from s24compile.kernels.decay.triton_kernels import decay_one  # noqa: E402
from s24compile.kernels.glu.triton_kernels import glu_forward, glu_gradient  # noqa: E402
from s24compile.kernels.glu.triton_pack import glu_gradient_pack  # noqa: E402
from s24compile.kernels.pack import triton_tiles as tiles  # noqa: E402
from s24compile.kernels.pack.triton_blocks import pack_blocks  # noqa: E402
from s24compile.kernels.pack.triton_rows import pack_rows  # noqa: E402

POINTERS = {
    "w": "*bf16", "g": "*bf16", "z": "*bf16", "dz": "*bf16", "h": "*bf16", "dh": "*bf16", "grad": "*fp32",
    "patterns": "*u8", "table": "*i32", "along": "*bf16", "across": "*bf16", "values": "*bf16",
    "along_metadata": "*i16", "across_metadata": "*i16", "metadata": "*i16", "seed_at": "*i64", "scale_at": "*fp32",
    "sums": "*fp32", "alpha_at": "*fp32",
}  # fmt: skip
SIZES = ("R", "C", "K", "M", "T", "F", "gated_row", "other_row")

SEARCH = {"FLIPPED": False, "ALONG": True, "ACROSS": True, "EVEN": True, "w_column": 1, "p_column": 1}
ROWS = {"SCALED": False, "SUMS": False, "EVEN": True}
MVUE = {"RULE": "mvue", **ROWS, "ALONG": False, "g_m": 1}
GLU = {"ACT": "gelu", "z_f": 1}
ONE_PASS = tiles.Tile(64, 64, 4)
CASES = {
    "search": (pack_blocks, tiles.BLOCKS_SEARCH, ("BLOCK_R", "BLOCK_C"), {**SEARCH, "MASK": "search"}),
    "given": (pack_blocks, tiles.BLOCKS_GIVEN, ("BLOCK_R", "BLOCK_C"), {**SEARCH, "MASK": "numbers"}),
    "bits": (pack_blocks, tiles.BLOCKS_GIVEN, ("BLOCK_R", "BLOCK_C"), {**SEARCH, "MASK": "bits"}),
    "mvue": (pack_rows, tiles.ROWS, ("BLOCK_K", "BLOCK_M"), MVUE),
    "mvue, sums": (pack_rows, tiles.ROWS_SUMS, ("BLOCK_K", "BLOCK_M"), {**MVUE, "SUMS": True}),
    "mvue, column-major": (
        pack_rows, tiles.ROWS_ALONG, ("BLOCK_M", "BLOCK_K"), {"RULE": "mvue", **ROWS, "ALONG": True, "g_k": 1}
    ),
    "magnitude": (
        pack_rows, tiles.ROWS_ALONG, ("BLOCK_M", "BLOCK_K"), {"RULE": "magnitude", **ROWS, "ALONG": True, "g_k": 1}
    ),
    "glu": (glu_forward, tiles.GLU, ("BLOCK_T", "BLOCK_F"), {**GLU, "h_f": 1}),
    "glu gradient": (glu_gradient, tiles.GLU_GRADIENT, ("BLOCK_T", "BLOCK_F"), {**GLU, "dh_f": 1, "dz_f": 1}),
    "glu gradient and pack": (
        glu_gradient_pack, ONE_PASS, ("BLOCK_T", "BLOCK_F"),
        {"ACT": "gelu", "SUMS": True, "RECOMPUTE": False, "EVEN": True},
    ),
    "decay": (
        decay_one, tiles.DECAY, ("BLOCK_R", "BLOCK_C"),
        {"ROWS": False, "FLIPPED": False, "g_column": 1, "w_column": 1, "p_column": 1},
    ),
}  # fmt: skip


def build(kernel, tile, blocks, constants):
    """The kernel compiled for sm_90 at a tile, all pointers and sizes multiples of 16."""
    constants = {**constants, blocks[0]: tile.rows, blocks[1]: tile.columns}
    names = kernel.arg_names
    kinds = {n: POINTERS.get(n, "i32" if n in SIZES else "i64") for n in names}
    signature = {n: "constexpr" if n in constants else kinds[n] for n in names}
    places = {(names.index(n),): value for n, value in constants.items()}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in names if n not in constants}
    options = {"num_warps": tile.warps} | ({"maxnreg": tile.registers} if tile.registers else {})
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("name", CASES)
def test_kernel_compiles_for_hopper_with_wide_accesses(name):
    compiled = build(*CASES[name])
    ptx = compiled.asm["ptx"]
    assert ".target sm_90" in ptx
    assert any(wide in ptx for wide in ("st.global.v4", "st.global.L1::no_allocate.v4", ".v4.b32")), "no 16-byte access"
    layout_changes = compiled.asm["ttgir"].count("ttg.convert_layout")
    assert layout_changes <= 12, (
        f"{layout_changes} layout changes: a load or store has drawn its neighbours into its layout"
    )
