"""Triton's kernels of eight-bit floats compile for Hopper without a GPU, with wide accesses and without spilling."""

import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

from s24compile.kernels.fp8 import triton_tiles as tiles  # noqa: E402
from s24compile.kernels.fp8.triton_blocks import pack_blocks  # noqa: E402
from s24compile.kernels.fp8.triton_glu import glu_gradient_amax, glu_gradient_pack  # noqa: E402
from s24compile.kernels.fp8.triton_passes import amax_tiles, quantise_tiles  # noqa: E402
from s24compile.kernels.fp8.triton_rows import pack_rows  # noqa: E402
from tests.kernels.test_triton_compiles import build  # noqa: E402

POINTERS = {
    "x": "*bf16", "g": "*bf16", "w": "*fp32", "dh": "*bf16", "z": "*bf16",
    "amax": "*fp32", "descale": "*fp32", "packed_descale": "*fp32", "sums": "*fp32", "factor_at": "*fp32",
    "q": "*u8", "along": "*u8", "across": "*u8", "values": "*u8", "patterns": "*u8",
    "metadata": "*i16", "along_metadata": "*i16", "across_metadata": "*i16", "table": "*i32", "seed_at": "*i64",
}  # fmt: skip
QUANTISE = {"EVEN": True, "WORDS": True, "KIND": "e4m3", "x_column": 1}
ROWS = {"FACTOR": False, "SUMS": False, "EVEN": True, "FORMAT": "sm90", "KIND": "e5m2"}
MVUE = {"RULE": "mvue", **ROWS, "ALONG": False, "g_m": 1}
BLOCKS = {
    "FLIPPED": False, "ALONG": True, "ACROSS": True, "EVEN": True, "FORMAT": "sm90", "KIND": "e4m3",
    "w_column": 1, "p_column": 1,
}  # fmt: skip
TILE, TALL, PLANE = ("BLOCK_R", "BLOCK_C"), ("BLOCK_K", "BLOCK_M"), ("BLOCK_T", "BLOCK_F")
CASES = {
    "amax": (amax_tiles, tiles.AMAX, TILE, {"TILES": tiles.AMAX_TILES, "x_column": 1}),
    "quantise": (quantise_tiles, tiles.QUANTISE, TILE, {**QUANTISE, "ALONG": True, "ACROSS": True}),
    "quantise rows": (quantise_tiles, tiles.QUANTISE, TILE, {**QUANTISE, "ALONG": True, "ACROSS": False}),
    "quantise columns": (quantise_tiles, tiles.QUANTISE, TILE, {**QUANTISE, "ALONG": False, "ACROSS": True}),
    "mvue": (pack_rows, tiles.ROWS, TALL, {**MVUE, "ROWS": False}),
    "mvue and rows": (pack_rows, tiles.ROWS_BOTH, TALL, {**MVUE, "ROWS": True}),
    "mvue, rows and sums": (pack_rows, tiles.ROWS_BOTH, TALL, {**MVUE, "ROWS": True, "SUMS": True}),
    "mvue, column-major": (
        pack_rows, tiles.ROWS_ALONG, TALL[::-1], {**ROWS, "RULE": "mvue", "ROWS": False, "ALONG": True, "g_k": 1}
    ),
    "magnitude": (
        pack_rows, tiles.ROWS_ALONG, TALL[::-1], {**ROWS, "RULE": "magnitude", "ROWS": False, "ALONG": True, "g_k": 1}
    ),
    "soft threshold, gated": (
        pack_rows, tiles.ROWS_ALONG, TALL[::-1],
        {
            **ROWS, "RULE": "soft_threshold", "FACTOR": True, "FORMAT": "sm90_gated", "ROWS": False,
            "ALONG": True, "g_k": 1,
        },
    ),
    "search": (pack_blocks, tiles.BLOCKS, TILE, {**BLOCKS, "SEARCH": True}),
    "search, gated": (pack_blocks, tiles.BLOCKS, TILE, {**BLOCKS, "SEARCH": True, "FORMAT": "sm90_gated"}),
    "given": (pack_blocks, tiles.BLOCKS, TILE, {**BLOCKS, "SEARCH": False}),
    "glu amax": (glu_gradient_amax, tiles.GLU_AMAX, PLANE, {"ACT": "silu", "dh_f": 1, "z_f": 1}),
    "glu gradient and pack": (
        glu_gradient_pack, tiles.GLU_PACK, PLANE,
        {"ACT": "silu", "SUMS": False, "EVEN": True, "FORMAT": "sm90", "KIND": "e5m2"},
    ),
}  # fmt: skip


def resources(compiled, folder):
    """{"REG": registers a thread, "STACK": bytes of stack, ...} of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip(f"this Triton brings no cuobjdump: {tool} is missing")
    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [tool, "--dump-resource-usage", folder / "kernel.cubin"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    words = (word.split(":") for word in listed.split() if word.count(":") == 1)
    return {name: int(value) for name, value in words if value.isdigit()}


@pytest.mark.parametrize("name", CASES)
def test_kernel_compiles_for_hopper_without_spilling(name, tmp_path):
    compiled = build(*CASES[name], POINTERS)
    used = resources(compiled, tmp_path)
    assert used["STACK"] == 0, "registers are spilled"
    # A multiprocessor has 65536 registers, given out by eight to a thread, and four schedulers. Triton 3.6 takes up to
    # 40 registers more than 3.9 does.
    warps = compiled.metadata.num_warps
    resident = 65536 // (32 * warps * -(-used["REG"] // 8) * 8) * warps
    assert resident >= 8, f"{resident} warps at a time: fewer than two for each scheduler"
    layout_changes = compiled.asm["ttgir"].count("ttg.convert_layout")
    assert layout_changes <= 12, (
        f"{layout_changes} layout changes: a load or store has drawn its neighbours into its own"
    )
