"""cuSPARSELt through torch: its own format, packed by its compressor only, and the products with it.

Where there is no GPU with the library, a stand-in that asserts torch's rules takes its place (cusparselt_library.py).
"""

import itertools

import pytest
import torch
from torch import nn

import s24compile
from s24compile.compiler import sparse_graph
from s24compile.errors import BuildError, DtypeError, TargetError
from s24compile.kernels import ops as raw
from s24compile.kernels import providers
from s24compile.kernels.arch import PROVIDERS
from s24compile.kernels.cusparselt import product as cusparselt
from s24compile.kernels.format import FORMATS
from s24compile.kernels.gemm import availability
from s24compile.kernels.gemm.availability import ALLOW
from s24compile.kernels.gemm.cutlass import objects, tools
from s24compile.kernels.gemm.cutlass.training_sets import training_set
from s24compile.kernels.target import Target, _cuda_target
from tests.closeness import assert_as_close_as_torch
from tests.kernels import cusparselt_library as stand_in
from tests.kernels.oracles import two_largest
from tests.kernels.test_ampere import LAYOUTS, SHAPES
from tests.masked import gradients, live_masks, masked_call

DTYPES = [torch.bfloat16, torch.float16]
FORMAT = FORMATS["cusparselt"]


@pytest.fixture
def library(device, monkeypatch):
    """The machine chosen for, on which cuSPARSELt stands in; its calls are the real ones where there is a GPU."""
    names = ("triton", "cusparselt", "reference")
    if device == "cpu":
        names = names[1:]
        monkeypatch.setattr(torch, "_cslt_compress", stand_in.compress)
        monkeypatch.setattr(torch, "_cslt_sparse_mm", stand_in.sparse_mm)
        monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *args, **keywords: cusparselt.DEFAULT)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    target = Target("cuda", (9, 0), names)
    monkeypatch.setattr(Target, "detect", lambda device: target)
    monkeypatch.setattr(cusparselt, "_fastest", {})
    providers._on_device.cache_clear()
    yield target
    providers._on_device.cache_clear()


def packed(m, k, dtype, device):
    w = torch.randn(m, k).to(device, dtype)
    mask = two_largest(torch.nn.functional.pad(w, (0, -k % 4)))[:, :k]
    return torch.where(mask, w, 0.0), raw.pack(w, mask, dtype, "cusparselt")


# The format


@pytest.mark.parametrize("shape", [(128, 128), (8192, 8192), (768, 3072), (11008, 4096)], ids=str)
def test_whole_blocks_have_torchs_own_shape(shape):
    m, k = shape
    values, metadata = FORMAT.empty(m, k, torch.bfloat16, torch.device("meta"))
    assert values.shape == (m, k * 9 // 16)
    assert metadata.shape == (0,)


@pytest.mark.parametrize("shape", [(8, 16), (16, 16), (20, 22), (1600, 6400), (48, 64), (0, 64), (64, 0)], ids=str)
def test_buffers_hold_values_and_codes_of_any_size(shape):
    m, k = shape
    values, _ = FORMAT.empty(m, k, torch.float16, torch.device("meta"))
    assert values.shape[0] == m
    # What NVIDIA's library says of an 8 x 16 matrix (CUDALibrarySamples issue 95): 128 bytes of values, 256 of codes.
    assert not values.numel() or values.numel() * 2 >= m * k + 256


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_library_needs_no_more_than_is_set_aside(dtype):
    for m, k in itertools.product((16, 48, 64, 128, 768, 1600, 4096), (16, 64, 192, 1600, 3072, 8192)):
        compressed = torch._cslt_compress(torch.zeros(m, k, dtype=dtype, device="cuda"))
        assert compressed.numel() <= FORMAT.empty(m, k, dtype, torch.device("meta"))[0].numel(), (m, k)
        if m % 128 == k % 128 == 0:
            assert compressed.shape == FORMAT.values_shape(m, k)


def test_other_dtypes_and_other_readers_are_refused(device):
    with pytest.raises(DtypeError, match="bf16 and fp16"):
        FORMAT.empty(64, 64, torch.float32, torch.device("meta"))
    w = torch.zeros(64, 64, dtype=torch.bfloat16)
    with providers.only("reference"), pytest.raises(TargetError, match="only the library"):
        raw.pack(w, None, torch.bfloat16, "cusparselt")
    with providers.only("reference"), pytest.raises(TargetError, match="only the library"):
        raw.unpack(w, w, 64, 64, "cusparselt")


# Packing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (72, 136), (4, 4), (20, 22), (160, 4100), (0, 8), (8, 0)], ids=str)
def test_unpack_inverts_pack(library, dtype, shape, device):
    dense, operand = packed(shape[0], shape[1], dtype, device)
    assert torch.equal(raw.unpack(*operand, *shape, "cusparselt"), dense)


def test_a_mask_with_fewer_ones_and_no_mask_at_all(library, device):
    dense, _ = packed(64, 64, torch.bfloat16, device)
    thin = (dense != 0) & (torch.randn(64, 64, device=device) > 0)
    found = raw.unpack(*raw.pack(dense, thin, torch.bfloat16, "cusparselt"), 64, 64, "cusparselt")
    assert torch.equal(found, torch.where(thin, dense, 0.0))
    found = raw.unpack(*raw.pack(dense, None, torch.bfloat16, "cusparselt"), 64, 64, "cusparselt")
    assert torch.equal(found, dense)


def test_pack_both_packs_both(library, device):
    w = torch.randn(48, 80, device=device)
    mask = raw.transposable_mask(w)
    values, metadata, values_t, metadata_t = raw.pack_both(w, mask, torch.bfloat16, "cusparselt")
    dense = torch.where(mask, w, 0.0).bfloat16()
    assert torch.equal(raw.unpack(values, metadata, 48, 80, "cusparselt"), dense)
    assert torch.equal(raw.unpack(values_t, metadata_t, 80, 48, "cusparselt"), dense.t())


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("select", ["transposable", "magnitude", "soft_threshold"])
@pytest.mark.parametrize("search", [True, False])
def test_weights_are_packed_as_in_every_other_format(library, layout, select, search, device):
    find = raw.transposable_patterns if select == "transposable" else raw.magnitude_patterns
    logical = [torch.randn(68, 72, device=device), torch.randn(12, 72, device=device)]
    weights = logical if layout == "out_in" else [w.t().contiguous() for w in logical]
    scale = torch.tensor(1.5, device=device) if select == "soft_threshold" else None
    dense = {}
    for name in ("sm90", "cusparselt"):
        patterns = [torch.zeros_like(find(w)) for w in logical] if search else [find(-w) for w in logical]
        place = torch.bfloat16, torch.device(device)
        buffers = FORMATS[name].empty(80, 72, *place)
        turned = FORMATS[name].empty(72, 80, *place) if select == "transposable" else (None, None)
        raw.pack_weight_(weights, patterns, *buffers, *turned, scale, select, search, name, layout)
        dense[name] = [raw.unpack(*buffers, 80, 72, name), *patterns]
        if turned[0] is not None:
            dense[name].append(raw.unpack(*turned, 72, 80, name))
    assert all(torch.equal(a, b) for a, b in zip(dense["sm90"], dense["cusparselt"], strict=True))


@pytest.mark.parametrize("transposed", [True, False])
def test_many_weights_are_packed_as_one_by_one(library, transposed, device):
    weights = [torch.randn(n, k, device=device) for n, k in ((64, 48), (16, 48), (32, 80))]
    patterns = [torch.zeros_like(raw.transposable_patterns(w)) for w in weights]
    sizes, place = ((80, 48), (32, 80)), (torch.bfloat16, torch.device(device))
    values, metadata = zip(*(FORMAT.empty(n, k, *place) for n, k in sizes), strict=True)
    values_t, metadata_t = zip(*(FORMAT.empty(k, n, *place) for n, k in sizes), strict=True) if transposed else ((), ())
    versions = [v._version for v in values]
    lists = (list(values), list(metadata), list(values_t), list(metadata_t))
    raw.pack_weights_(weights, [2, 1], patterns, *lists, "transposable", True, "cusparselt", "out_in")
    masked = [torch.where(raw.transposable_mask(w), w, 0.0).bfloat16() for w in weights]
    whole = [torch.cat(masked[:2]), masked[2]]
    for i, (n, k) in enumerate(sizes):
        assert torch.equal(raw.unpack(values[i], metadata[i], n, k, "cusparselt"), whole[i])
        if transposed:
            assert torch.equal(raw.unpack(values_t[i], metadata_t[i], k, n, "cusparselt"), whole[i].t())
        assert values[i]._version > versions[i], "a backward through stepped weights must raise"


@pytest.mark.parametrize("shape", [(136, 72), (37, 20), (128, 64), (0, 20)], ids=str)
def test_gradients_are_drawn_as_everywhere(library, shape, device):
    g, seed = torch.randn(shape, device=device).bfloat16(), torch.tensor([5], device=device)
    operand = raw.mvue_pack(g, seed, torch.bfloat16, "cusparselt")
    found = raw.unpack(*operand, shape[1], shape[0], "cusparselt")
    plain = raw.mvue_pack(g, seed, torch.bfloat16, "sm90")
    assert torch.equal(found, raw.unpack(*plain, shape[1], shape[0], "sm90"))


@pytest.mark.parametrize("shape", [(72, 136), (128, 256), (20, 24)], ids=str)
def test_fake_shapes_are_the_real_ones(library, shape, device):
    w = torch.randn(shape, device=device).bfloat16()
    mask, seed = raw.transposable_mask(w), torch.tensor([5], device=device)
    calls = {
        raw.pack: (w, mask, torch.bfloat16, "cusparselt"),
        raw.pack_both: (w, mask, torch.bfloat16, "cusparselt"),
        raw.mvue_pack: (w, seed, torch.bfloat16, "cusparselt"),
    }
    for op, args in calls.items():
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = op(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args))
        for real, fake in zip(op(*args), fakes, strict=True):
            assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_token_counts_may_be_symbols():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with torch._subclasses.FakeTensorMode(shape_env=ShapeEnv()) as mode:
        g = mode.from_tensor(torch.zeros(96, 64, dtype=torch.bfloat16), static_shapes=False)
        seed = mode.from_tensor(torch.zeros(1, dtype=torch.int64))
        values, _ = raw.mvue_pack(g, seed, torch.bfloat16, "cusparselt")
        turned, _ = raw.mvue_pack(g.t(), seed, torch.bfloat16, "cusparselt")
    assert values.shape[0] is g.shape[1] or values.shape[0] == g.shape[1]
    assert turned.shape[0] == g.shape[0]
    assert not mode.shape_env.guards or all("Eq(s" not in str(guard.expr) for guard in mode.shape_env.guards)


# Products


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("out_layout", ["row", "col"])
def test_multiply_at_every_size(library, dtype, shape, out_layout, device):
    m, k, n = shape
    dense, operand = packed(m, k, dtype, device)
    b, bias = torch.randn(n, k).to(device, dtype).t(), torch.randn(m).to(device)
    for added, out in itertools.product((None, bias.to(dtype), bias), (dtype, torch.float32)):
        found = raw.mm(*operand, m, k, "cusparselt", b, added, out_layout, out)
        rounded = 0 if added is None else added.to(dtype)[:, None]
        exact = dense.double() @ b.double() + (0 if added is None else added.double()[:, None])
        assert_as_close_as_torch(found, (dense @ b + rounded).to(out), exact)
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(t) for t in (*operand, b)]
            fake = raw.mm(*fakes[:2], m, k, "cusparselt", fakes[2], None, out_layout, out)
        assert found.stride() == fake.stride() or not found.numel()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_layout", ["row", "col"])
def test_take_any_strides(library, layout, out_layout, device):
    dense, operand = packed(64, 128, torch.bfloat16, device)
    b = LAYOUTS[layout](128, 24).to(torch.bfloat16).to(device)
    found = raw.mm(*operand, 64, 128, "cusparselt", b, None, out_layout, torch.bfloat16)
    assert_as_close_as_torch(found, dense @ b, dense.double() @ b.double())


# Algorithms


def test_search_once_for_all_token_counts_up_to_a_power_of_two(library, device, monkeypatch):
    searched = []
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda a, b, **keywords: searched.append(keywords) or 0)
    _, operand = packed(64, 64, torch.bfloat16, device)

    def multiply(tokens, layout):
        b = torch.ones(64, tokens).to(device, torch.bfloat16)
        raw.mm(*operand, 64, 64, "cusparselt", b, None, layout, torch.bfloat16)

    for tokens in (130, 200, 255, 250):
        multiply(tokens, "row")
    assert len(searched) == 1
    multiply(300, "row")
    multiply(300, "col")
    assert len(searched) == 3


def test_run_the_default_where_the_search_would_crash(library, device, monkeypatch):
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *args, **keywords: pytest.fail("illegal instruction"))
    dense, operand = packed(64, 64, torch.float16, device)
    b = torch.ones(64, 8).to(device, torch.float16)
    found = raw.mm(*operand, 64, 64, "cusparselt", b, None, "col", torch.float16)
    assert_as_close_as_torch(found, dense @ b, dense.double() @ b.double())


def test_search_nothing_while_a_graph_is_captured_or_runs_must_repeat(monkeypatch):
    monkeypatch.setattr(cusparselt, "_fastest", {})

    def search():
        pytest.fail("it waits for the GPU")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    ran = []
    cusparselt._run_fastest(ran.append, search, ("shape",))
    torch.use_deterministic_algorithms(True)
    try:
        cusparselt._fastest["shape",] = 3
        cusparselt._run_fastest(ran.append, search, ("shape",))
    finally:
        torch.use_deterministic_algorithms(False)
    assert ran == [cusparselt.DEFAULT] * 2


def test_fall_back_on_the_default_where_an_algorithm_does_not_take_this_many_tokens(monkeypatch):
    monkeypatch.setattr(cusparselt, "_fastest", {("shape",): 2})

    def run(algorithm):
        if algorithm:
            raise RuntimeError("not for this n")
        return "result"

    assert cusparselt._run_fastest(run, lambda: 2, ("shape",)) == "result"
    assert cusparselt._fastest["shape",] == cusparselt.DEFAULT


@pytest.mark.gpu
def test_the_real_search_gives_an_algorithm_that_multiplies(library, device):
    dense, operand = packed(768, 1024, torch.bfloat16, device)
    x = torch.randn(4096, 1024, device=device, dtype=torch.bfloat16)
    found = raw.mm(*operand, 768, 1024, "cusparselt", x.t(), None, "col", torch.bfloat16)
    assert_as_close_as_torch(found, dense @ x.t(), dense.double() @ x.t().double())
    assert len(cusparselt._fastest) == 1


@pytest.mark.gpu
def test_packing_and_products_replay_in_a_cuda_graph(library, device):
    g = torch.randn(256, 128, device=device, dtype=torch.bfloat16)
    x, seed = torch.randn(256, 64, device=device, dtype=torch.bfloat16), torch.tensor([7], device=device)

    def step():
        operand = raw.mvue_pack(g, seed, torch.bfloat16, "cusparselt")
        return raw.mm(*operand, 128, 256, "cusparselt", x, None, "row", torch.bfloat16)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    g.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, step())


# Standing in for CUTLASS


@pytest.mark.parametrize(
    ("capability", "names", "format"),
    [
        ((9, 0), PROVIDERS, "sm90"),
        ((9, 0), tuple(name for name in PROVIDERS if name != "cutlass"), "cusparselt"),
        ((9, 0), ("triton", "reference"), "sm90"),
        ((8, 0), tuple(name for name in PROVIDERS if name != "cutlass"), "sm80"),
        (None, ("reference",), "sm90"),
        ((10, 0), PROVIDERS, "plain"),
    ],
)
def test_a_target_packs_what_its_gemm_reads(capability, names, format):
    assert Target("cuda" if capability else "cpu", capability, names).format == format


@pytest.fixture
def bare_hopper(monkeypatch, tmp_path):
    """A Hopper machine with torch's library and nothing to build kernels with."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    monkeypatch.setattr(tools, "find_nvcc", lambda: None)
    monkeypatch.setattr(objects, "search_folders", lambda: [tmp_path])
    monkeypatch.delenv(ALLOW, raising=False)
    _cuda_target.cache_clear()
    yield tmp_path
    _cuda_target.cache_clear()


def test_without_leave_the_error_names_packages_and_the_variable(bare_hopper):
    target = Target.detect(torch.device("cuda:0"))
    assert target.format == "sm90"
    with pytest.raises(BuildError, match=rf"nvcc was not found.*nvidia-cutlass.*cuda-nvcc.*{ALLOW}"):
        availability.require_gemm(target.arch, target.format)


def test_with_leave_cusparselt_stands_in(bare_hopper, monkeypatch):
    monkeypatch.setenv(ALLOW, "1")
    target = Target.detect(torch.device("cuda:0"))
    assert target.format == "cusparselt"
    assert target.arch.format == "sm90", "what the functional API packs"
    availability.require_gemm(target.arch, target.format)


def test_prebuilt_kernels_come_before_it(bare_hopper, monkeypatch):
    monkeypatch.setenv(ALLOW, "1")
    kernel = training_set()[0]
    (bare_hopper / f"{kernel.name}.{objects.source_hash(kernel)}.toolchain.so").touch()
    target = Target.detect(torch.device("cuda:0"))
    assert target.format == "sm90"
    availability.require_gemm(target.arch, target.format)


def test_leave_does_not_help_where_torch_lacks_the_library(bare_hopper, monkeypatch):
    monkeypatch.setenv(ALLOW, "1")
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    with pytest.raises(BuildError, match=r"no cuSPARSELt.*pip install"):
        Target.detect(torch.device("cuda:0"))


def test_the_error_reaches_whoever_compiles(monkeypatch):
    def refuse(arch, format):
        raise BuildError(what="a kernel", found="nvcc was not found", accepted="install it")

    monkeypatch.setattr(sparse_graph, "require_gemm", refuse)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    with pytest.raises(BuildError, match="nvcc was not found"):
        torch.compile(model, backend="s24", options={"inner": "eager"})(torch.randn(8, 16))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


MODELS = {"gelu": lambda: nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), "swiglu": SwiGLU}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_a_model_trains_on_it(library, model, inner, device):
    net, before = MODELS[model]().to(device), providers.recorded()
    options = {"inner": inner, "target": library, "min_speedup": 0, "gradient": "dense"}
    compiled = torch.compile(net, backend="s24", options=options, fullgraph=True)
    x = torch.randn(24, 32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = compiled(x)
    y.float().square().sum().backward()
    found = gradients(net)
    assert len(live_masks(net)) == len(list(net.parameters())) // 2
    with torch.autocast(device, dtype=torch.bfloat16):
        expected = masked_call(net, live_masks(net), x)
    expected.float().square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    for name, grad in gradients(net).items():
        torch.testing.assert_close(found[name], grad, rtol=0.05, atol=0.05 * float(grad.abs().max()))
    after = providers.recorded()
    assert after["mm", "cusparselt"] > before.get(("mm", "cusparselt"), 0)
    assert after.get(("mm", "reference"), 0) == before.get(("mm", "reference"), 0)


def test_pruned_gradients_and_a_step_run_on_it(library, device):
    net = MODELS["gelu"]().to(device)
    options = {"inner": "aot_eager", "target": library, "min_speedup": 0}
    compiled, optimizer = torch.compile(net, backend="s24", options=options), torch.optim.AdamW(net.parameters())
    for tokens in (24, 37):
        with torch.autocast(device, dtype=torch.bfloat16):
            compiled(torch.randn(tokens, 32, device=device)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert set(s24compile.sparse_weights(net)) == {"0.weight", "2.weight"}
