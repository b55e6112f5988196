"""The CUTLASS kernels without a GPU: table, build cache (with a stand-in for nvcc), choice, layouts, provider."""

import os
import stat
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from s24compile.errors import BuildError
from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.gemm.cutlass import build, layouts, loader, objects, raster, tools, tuned
from s24compile.kernels.gemm.cutlass.instantiations import (
    DEFAULT,
    FUNCTIONS,
    Kernel,
    Schedule,
    Signature,
)
from s24compile.kernels.gemm.cutlass.training_sets import training_set
from s24compile.kernels.packed import Packed24
from s24compile.kernels.target import Target

FORWARD = Kernel(Signature("bf16", "k", "k", "col", "bf16"), DEFAULT)


@pytest.fixture
def toolchain(tmp_path, monkeypatch):
    """A stand-in nvcc that copies the source to the output, counts its runs, and obeys $FAKE_NVCC."""
    include = tmp_path / "cutlass" / "include" / "cutlass"
    include.mkdir(parents=True)
    (include / "version.h").write_text("#define CUTLASS_MAJOR 4\n")
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        [ "$1" = --version ] && echo "release 13.0" && exit 0
        echo run >> {tmp_path}/runs
        while [ "$1" != -o ]; do source=$prior; prior=$1; shift; done
        cat "$prior" > "$2"
        case "$FAKE_NVCC" in
          fail) echo "error: no"; exit 1;;
          serialised) echo "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async serialized";;
          slow) sleep 0.5;;
          die) kill -9 $PPID; sleep 5;;
        esac
        """)
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CUTLASS_HOME", str(tmp_path / "cutlass"))
    monkeypatch.setenv("S24_KERNEL_DIR", str(tmp_path / "kernels"))
    tools.toolchain_hash.cache_clear()
    yield tmp_path
    tools.toolchain_hash.cache_clear()


def runs(folder):
    return len((folder / "runs").read_text().split()) if (folder / "runs").exists() else 0


def test_build_once_and_find_it_again(toolchain):
    first = build.build(FORWARD)
    assert "using Gemm" in first.read_text()
    assert build.build(FORWARD) == objects.object_path(FORWARD) == first
    assert runs(toolchain) == 1


def test_build_once_for_two_threads_at_once(toolchain, monkeypatch):
    monkeypatch.setenv("FAKE_NVCC", "slow")
    threads = [threading.Thread(target=build.build, args=(FORWARD,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs(toolchain) == 1


def test_build_again_after_a_process_died_midway(toolchain):
    code = (
        "from s24compile.kernels.gemm.cutlass import build, instantiations as i;"
        "build.build(i.Kernel(i.Signature('bf16', 'k', 'k', 'col', 'bf16'), i.DEFAULT))"
    )
    died = subprocess.run([sys.executable, "-c", code], env=os.environ | {"FAKE_NVCC": "die"}, capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    assert objects.object_path(FORWARD) is None, "half an object was taken for a whole one"
    assert build.build(FORWARD).is_file()
    assert not list((toolchain / "kernels").glob("*.partial")), "the dead process's temporary file is still there"


@pytest.mark.parametrize(("mode", "words"), [("fail", "error: no"), ("serialised", "C7510")])
def test_refuse_what_nvcc_fails_or_serialises(toolchain, monkeypatch, mode, words):
    monkeypatch.setenv("FAKE_NVCC", mode)
    with pytest.raises(BuildError, match=words):
        build.build(FORWARD)
    assert objects.object_path(FORWARD) is None
    assert not list((toolchain / "kernels").glob("*.partial"))


def test_name_the_packages_when_nvcc_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("S24_KERNEL_DIR", str(tmp_path))
    monkeypatch.setattr(tools, "find_nvcc", lambda: None)
    tools.toolchain_hash.cache_clear()
    try:
        with pytest.raises(BuildError, match=r"nvcc was not found.*nvidia-cutlass.*cuda-nvcc"):
            build.build(FORWARD)
    finally:
        tools.toolchain_hash.cache_clear()


def test_look_for_objects_without_making_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("S24_KERNEL_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert objects.object_path(FORWARD) is None
    assert not objects.any_prebuilt()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "name",
    ["garbage.so", f"{FORWARD.name}.so", f"{FORWARD.name}.0123456789ab.0123456789ab.so", "no.0123456789ab.kernel.so"],
)
def test_count_no_object_that_nobody_would_load(toolchain, name):
    (toolchain / "kernels").mkdir()
    (toolchain / "kernels" / name).touch()
    assert not objects.any_prebuilt()
    build.build(FORWARD)
    assert objects.any_prebuilt()


def test_name_the_folder_that_cannot_be_made(toolchain, monkeypatch):
    (toolchain / "file").touch()
    monkeypatch.setenv("S24_KERNEL_DIR", str(toolchain / "file" / "kernels"))
    assert objects.object_path(FORWARD) is None
    with pytest.raises(BuildError, match=r"file/kernels cannot be made.*S24_KERNEL_DIR"):
        build.build(FORWARD)


def test_serve_a_prebuilt_object_without_nvcc(toolchain, monkeypatch):
    ready = build.build(FORWARD)
    monkeypatch.setattr(tools, "find_nvcc", lambda: None)
    tools.toolchain_hash.cache_clear()
    assert objects.object_path(FORWARD) == ready


def test_build_anew_what_includes_a_changed_template(toolchain, monkeypatch, tmp_path):
    fused = Kernel(Signature("bf16", "k", "k", "col", "bf16", "act", "gelu"), DEFAULT)
    before = objects.source_hash(FORWARD), objects.source_hash(fused)
    changed = tmp_path / "templates"
    changed.mkdir()
    for name in [path.name for path in objects.HERE.glob("*.cuh")]:
        (changed / name).write_text((objects.HERE / name).read_text() + "// changed\n" * (name == "activations.cuh"))
    monkeypatch.setattr(objects, "HERE", changed)
    objects._included.cache_clear()
    try:
        assert objects.source_hash(fused) != before[1], "a file included by an included file does not count"
        assert objects.source_hash(FORWARD) == before[0], "it includes no activation"
    finally:
        objects._included.cache_clear()


def test_report_progress_of_build_all(toolchain):
    seen = []
    paths = build.build_all(training_set()[:3], lambda *step: seen.append(step[:2]), jobs=2)
    assert len(paths) == 3
    assert seen[0] == (0, 3)
    assert seen[-1] == (3, 3)


def test_build_the_rest_when_one_kernel_fails(toolchain, monkeypatch):
    real, kernels = build._compile, training_set()[:3]

    def fail_first(kernel, target):
        if kernel == kernels[0]:
            raise BuildError(what=kernel.name, found="no", accepted="no")
        real(kernel, target)

    monkeypatch.setattr(build, "_compile", fail_first)
    with pytest.raises(BuildError):
        build.build_all(kernels, jobs=1)
    assert [objects.object_path(kernel) is not None for kernel in kernels] == [False, True, True]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_spell_a_kernel_both_ways(dtype):
    for kernel in training_set(dtype, tuned.schedules()):
        assert Kernel.parse(kernel.name) == kernel
        assert Kernel.parse(f"{kernel.name}_") is None


@pytest.mark.parametrize(
    "name",
    ["128x256_2x1_coop", "64x256_1x2_ping", "128x192_2x1_coop_sk", "128x256_2x1_coop_sk_deep", "128x192_2x1_ping_deep"],
)
def test_spell_a_schedule_both_ways(name):
    assert Schedule.parse(name).name == name
    assert tuned.Choice.parse(f"{name}/m/4/-1").name == f"{name}/m/4/-1"


def test_give_every_kernel_its_own_name():
    kernels = training_set("bf16") + training_set("fp16")
    assert len({kernel.name for kernel in kernels}) == len({kernel.source() for kernel in kernels}) == len(kernels)


@pytest.mark.parametrize("act", FUNCTIONS)
def test_find_every_activation_in_the_template(act):
    text = (objects.HERE / "activations.cuh").read_text()
    for epilogue, function in (("act", act), ("dact", f"d{act}")):
        kernel = Kernel(Signature("bf16", "k", "k", "col", "bf16", epilogue, act), DEFAULT)
        assert f"s24::{function}," in kernel.source()
        assert f"using {function} =" in text


def test_choose_the_nearest_tuned_shape(monkeypatch):
    entries = [
        {"epilogue": "plain", "shape": [768, 4096, 3072], "fp32": False, "choice": "128x192_2x1_coop/n/1/0"},
        {"epilogue": "plain", "shape": [8192, 8192, 8192], "fp32": False, "choice": "128x256_2x1_coop/m/4/0"},
    ]
    monkeypatch.setattr(tuned, "table", lambda: {"entries": entries})
    tuned._nearest.cache_clear()
    try:
        assert tuned.choose(FORWARD.signature, 1024, 4000, 2048).schedule.tile == (128, 192)
        assert tuned.choose(FORWARD.signature, 30000, 4096, 8192).swizzle == 4
    finally:
        tuned._nearest.cache_clear()


FFN_7B = [(22016, 16384, 4096), (4096, 16384, 11008), (11008, 16384, 4096), (4096, 16384, 22016)]


def test_model_the_measured_time_of_large_gemms():
    """Measured inside a compiled Llama-7B FFN step on an H100, raster n, swizzle 1: 12171 us and 4198 us."""
    forward = sum(raster.estimate_us(*shape, DEFAULT, "n", 1)[0] for shape in FFN_7B)
    gradients = [(22016, 4096, 16384), (4096, 11008, 16384)]
    backward = sum(raster.estimate_us(*shape, DEFAULT, "n", 1)[0] for shape in gradients)
    assert forward == pytest.approx(12171, rel=0.05)
    assert backward == pytest.approx(4198, rel=0.05)


@pytest.mark.parametrize("shape", [*FFN_7B, (768, 16384, 3072), (16384, 16384, 4096), (8192, 8192, 8192)])
def test_choose_a_raster_that_is_not_bound_by_memory(shape):
    m, n, k = shape
    way, swizzle = raster.choose_raster(m, n, k, DEFAULT)
    total, memory = raster.estimate_us(m, n, k, DEFAULT, way, swizzle)
    assert memory < total


def test_pad_no_tiles_for_the_sake_of_a_swizzle():
    # 6 x 64 tiles: a band of 8 clusters would be computed as 16 x 64.
    assert (
        raster.estimate_us(768, 16384, 3072, DEFAULT, "m", 8)[0]
        > 2 * raster.estimate_us(768, 16384, 3072, DEFAULT, "m", 1)[0]
    )
    assert raster.choose_raster(768, 16384, 3072, DEFAULT) == ("m", 1)


def test_fall_back_on_the_model_where_nothing_is_tuned(monkeypatch):
    monkeypatch.setattr(tuned, "table", lambda: {"entries": []})
    tuned._nearest.cache_clear()
    try:
        assert tuned.choose(FORWARD.signature, 16384, 16384, 4096).swizzle > 1
    finally:
        tuned._nearest.cache_clear()


def test_parse_the_committed_table():
    for entry in tuned.table()["entries"]:
        assert tuned.Choice.parse(entry["choice"]).swizzle in (1, 2, 4, 8)


X = torch.arange(24 * 40, dtype=torch.bfloat16).reshape(24, 40)


@pytest.mark.parametrize(
    ("operand", "major", "copied"),
    [
        (X, "row", False),
        (X.t(), "col", False),
        (X[:, 8:32], "row", False),
        (X[:, 1:33], "row", True),
        (X[:, :31], "row", False),
        (X[:, :31].contiguous(), "row", True),
        (X[:, :31].contiguous().t(), "col", True),
        (X[:1].expand(24, 40), "row", True),
        (X[::2, ::2], "row", True),
        (X[:, :1], "row", False),
        (X[:1], "row", False),
    ],
    ids=[
        "whole",
        "transposed",
        "range",
        "odd-offset",
        "pitch",
        "odd-n",
        "odd-k",
        "expanded",
        "strided",
        "one-column",
        "one-row",
    ],
)
def test_copy_only_operands_that_tma_cannot_read(operand, major, copied):
    found, result, pitch = layouts.operand(operand, "row", "col")
    assert torch.equal(result, operand)
    assert found == major
    assert (result.data_ptr() != operand.data_ptr()) == copied
    assert pitch % 8 == 0
    assert result.data_ptr() % 16 == 0
    assert pitch >= operand.shape[1 if major == "row" else 0], "rows overlap"


@pytest.mark.parametrize(("m", "n"), [(64, 64), (4, 8), (64, 7), (12, 1)])
@pytest.mark.parametrize("layout", ["row", "col"])
def test_give_the_caller_unpadded_outputs(m, n, layout):
    target, d = layouts.output(m, n, layout, torch.bfloat16, torch.device("cpu"))
    assert d.stride() == ((n, 1) if layout == "row" else (1, m))
    assert target.stride(0 if layout == "row" else 1) % 8 == 0
    assert (target is d) == ((n if layout == "row" else m) % 8 == 0)


def test_agree_with_the_template_on_the_problem_struct():
    text = (objects.HERE / "sparse_gemm.cuh").read_text()
    assert f'"{loader.PROBLEM.format}"' in text
    assert loader.PROBLEM.size == 192


def arguments(**changes):
    a = Packed24.of(*FORMATS["sm90"].empty(64, 64, torch.bfloat16, torch.device("cpu")), 64, 64, "sm90")
    given = {
        "a": a, "b": torch.zeros(64, 7, dtype=torch.bfloat16), "bias": None, "out_layout": "col",
        "out_dtype": torch.bfloat16,
    }  # fmt: skip
    if "format" in changes:
        given["a"] = a._replace(format=changes.pop("format"))
    return tuple((given | changes).values())


def flat(a, *rest):
    """As the op's schema has them."""
    return *a.flat(), *rest


def test_choose_cutlass_on_hopper():
    assert providers.choose("mm", *flat(*arguments()), target=Target.parse("sm_90")).provider.name == "cutlass"
    chosen = providers.choose("mm", *flat(*arguments()), target=Target.parse("sm_80"))
    assert "sm_90" in chosen.refused["cutlass"]


@pytest.mark.parametrize(("op", "extra"), [("mm_act", None), ("mm_dact", torch.zeros(64, 7, dtype=torch.bfloat16))])
def test_fuse_only_the_activations_that_the_epilogue_knows(op, extra):
    given = arguments()[:2]
    chosen = providers.choose(op, *flat(*given), extra, "gelu", "col", target=Target.parse("sm_90"))
    assert chosen.provider.name == "cutlass"
    provider = providers.find(op, "cutlass")
    assert provider is not None
    assert "it fuses gelu" in provider.supports(*given, extra, "sine", "col")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "sm80"}, "sm90 format"),
        ({"b": torch.zeros(64, 7)}, "two dtypes"),
        ({"out_dtype": torch.float64}, "fp32, not float64"),
        ({"bias": torch.zeros(64, dtype=torch.float16)}, "bias"),
    ],
)
def test_refuse_with_a_sentence(changes, words):
    provider = providers.find("mm", "cutlass")
    assert provider is not None
    assert words in provider.supports(*arguments(**changes))
