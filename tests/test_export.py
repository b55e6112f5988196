"""After training: baked weights, torch's own sparse tensors, compressed safetensors, inference with packed weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

import s24compile
from s24compile import Sparse24, export, ops, to_sparse_semi_structured
from s24compile.errors import DtypeError, MaskError, ModelError, ShapeError, TargetError
from s24compile.kernels import providers
from s24compile.weights.operand_map import operands_of
from tests.kernels.oracles import two_largest

COMPILE = {"inner": "aot_eager", "min_speedup": 0}
WEIGHTS = ["mlp.up.weight", "mlp.down.weight"]


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x):
        return self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Tokens to logits, with a tied head, as language models have it."""

    def __init__(self):
        super().__init__()
        self.embed, self.mlp, self.head = nn.Embedding(32, 64), MLP(), nn.Linear(64, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.mlp(self.embed(tokens)))


def trained(recipe="fst", device="cpu"):
    """A model after two steps of sparse training, its compiled self and some tokens."""
    net = Net().to(device)
    compiled = torch.compile(net, backend="s24", options={**COMPILE, "recipe": recipe})
    tokens = torch.randint(32, (4, 16), device=device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(2):
        compiled(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, compiled, tokens


def assert_2_of_4(t):
    assert int((t != 0).unflatten(-1, (-1, 4)).sum(-1).max()) <= 2


@pytest.mark.parametrize("recipe", ["fst", "sste", "ste"])
def test_read_what_the_forward_computes_with(recipe, device):
    net, compiled, tokens = trained(recipe, device)
    with torch.no_grad():
        expected = compiled(tokens)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    baked = export.baked_weights(compiled)
    assert list(baked) == WEIGHTS
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]), "the model is left as it is"
    for weight in baked.values():
        assert_2_of_4(weight)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(net, baked, (tokens,)), expected)
    s24compile.bake_(net)
    for name, weight in baked.items():
        assert torch.equal(net.get_parameter(name), weight), "bake_ writes the same"


@pytest.mark.parametrize("recipe", ["fst", "fst-exact", "ste", "sste", "srste"])
def test_read_after_a_step_what_the_next_forward_computes_with(recipe, device):
    net, compiled, tokens = trained(recipe, device)
    weights = s24compile.sparse_weights(net)
    state = s24compile.state_dict(net)
    seen = {name: (weight.revision, weight.flip_rate, weight.age) for name, weight in weights.items()}
    baked = export.baked_weights(net)
    after = s24compile.state_dict(net)
    for name, weight in weights.items():
        assert (weight.revision, weight.flip_rate, weight.age) == seen[name], "the state is left as it is"
        for field, value in state[name].items():
            found = after[name][field]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, field
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(net, baked, (tokens,)), compiled(tokens))
    s24compile.bake_(net)
    for name, weight in baked.items():
        assert torch.equal(net.get_parameter(name), weight), "bake_ writes the same"


def test_refuse_to_export_what_is_not_sparse():
    with pytest.raises(ModelError, match="no sparse weights"):
        export.baked_weights(Net())
    net, _, _ = trained()
    s24compile.set_phase(net, "dense")
    with pytest.raises(ModelError, match=r"mlp\.up\.weight.*dense phase"):
        export.baked_weights(net)


@pytest.mark.parametrize("recipe", ["fst", "sste"])
def test_round_trip_a_model_through_compressed_safetensors(recipe, device, tmp_path):
    _, compiled, tokens = trained(recipe, device)
    with torch.no_grad():
        expected = compiled(tokens)
    baked = export.baked_weights(compiled)
    assert export.save_compressed(compiled, tmp_path) == WEIGHTS
    state = export.load_compressed(tmp_path, device=device)
    for name, weight in baked.items():
        assert torch.equal(state[name], weight)
    dense = Net().to(device)
    dense.load_state_dict(state)
    sparse = Net().to(device)
    sparse.load_state_dict(export.load_compressed(tmp_path, sparse=True, device=device), assign=True)
    assert isinstance(sparse.mlp.up.weight, Sparse24)
    again = torch.compile(dense.eval(), backend="s24", options={**COMPILE, "recipe": "fst"})
    with torch.no_grad():
        torch.testing.assert_close(dense(tokens), expected)
        torch.testing.assert_close(sparse(tokens), expected)
        if recipe == "fst":
            torch.testing.assert_close(again(tokens), expected)  # the search finds the mask that is there


def test_write_the_documented_bytes(tmp_path):
    import safetensors.torch

    w = torch.tensor([[1.0, 2, 0, 0, 0, 3, 0, 4], [0, 0, 5, 6, 7, 0, 0, 8]])
    tensors = export.to_bitmask(to_sparse_semi_structured(w))
    assert tensors["shape"].tolist() == [[2], [8]]
    assert tensors["compressed"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert tensors["bitmask"].tolist() == [[0b10100011], [0b10011100]]
    assert (tensors["shape"].dtype, tensors["bitmask"].dtype) == (torch.int64, torch.uint8)
    net, _, _ = trained()
    export.save_compressed(net, tmp_path, dtype=torch.bfloat16)
    on_disk = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {name: (list(t.shape), t.dtype) for name, t in on_disk.items() if name.startswith("mlp.up")} == {
        "mlp.up.shape": ([2, 1], torch.int64),
        "mlp.up.compressed": ([128, 32], torch.bfloat16),
        "mlp.up.bitmask": ([128, 8], torch.uint8),
        "mlp.up.bias": ([128], torch.bfloat16),
    }
    assert "head.weight" not in on_disk, "a tied weight is written once"
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["sparsity_config"] | {"global_sparsity": None} == {
        "format": "sparse-24-bitmask",
        "sparsity_structure": "2:4",
        "targets": ["mlp.up", "mlp.down"],
        "ignore": [],
        "global_sparsity": None,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(16, 32), (5, 12), (70, 100), (0, 8)], ids=str)
def test_invert_the_bitmask_layout(dtype, shape, device):
    s = to_sparse_semi_structured((torch.randn(shape) * 20).to(dtype).to(device))
    back = export.from_bitmask(export.to_bitmask(s))
    assert torch.equal(back.kept.float(), s.kept.float())
    assert torch.equal(back.metadata, s.metadata)
    assert back.kept.stride() == s.kept.stride()


def test_refuse_tensors_that_the_layout_cannot_hold():
    s = to_sparse_semi_structured(torch.randn(16, 32))
    with pytest.raises(ShapeError, match="transposed"):
        export.to_bitmask(s.t())
    with pytest.raises(DtypeError, match="scale"):
        export.to_bitmask(s.to(torch.int8))
    tensors = export.to_bitmask(s)
    with pytest.raises(ShapeError, match="compressed"):
        export.from_bitmask({**tensors, "compressed": tensors["compressed"][:, :8]})
    with pytest.raises(MaskError, match="exactly two"):
        export.from_bitmask({**tensors, "bitmask": tensors["bitmask"] | 7})


def test_choose_what_is_compressed(tmp_path):
    net, _, _ = trained()
    assert export.save_compressed(net, tmp_path, names=["mlp.up.weight"]) == ["mlp.up.weight"]
    state = export.load_compressed(tmp_path, sparse=True)
    assert isinstance(state["mlp.up.weight"], Sparse24)
    assert not isinstance(state["mlp.down.weight"], Sparse24)
    assert_2_of_4(state["mlp.down.weight"])
    with pytest.raises(ModelError, match=r"'head\.weight' is no sparse weight"):
        export.save_compressed(net, tmp_path, names=["head.weight"])


def test_agree_with_compressed_tensors(tmp_path):
    """Its last versions that hold the compressor are below 0.15; the bytes themselves are tested above, without it."""
    theirs = pytest.importorskip(
        "compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask",
        reason="compressed-tensors<0.15, which alone has this compressor, is not installed",
    )
    from compressed_tensors.compressors import ModelCompressor

    net, compiled, _ = trained()
    baked = export.baked_weights(net)
    export.save_compressed(compiled, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    compressor = ModelCompressor.from_compression_config(config).sparsity_compressor
    read = dict(compressor.decompress(str(tmp_path)))
    for name, weight in baked.items():
        assert torch.equal(read[name], weight)
    assert torch.equal(read["embed.weight"], net.embed.weight)
    written = theirs.Sparse24BitMaskTensor.from_dense(baked["mlp.up.weight"]).dict("up")
    written = {field: written[f"up.{field}"] for field in ("shape", "compressed", "bitmask")}
    for field, tensor in export.to_bitmask(to_sparse_semi_structured(baked["mlp.up.weight"])).items():
        assert torch.equal(tensor, written[field])
    assert torch.equal(export.from_bitmask(written).to_dense(), baked["mlp.up.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_make_torchs_cutlass_tensor_bit_for_bit(dtype):
    w = torch.randint(1, 100, (128, 256)).to(dtype)  # no zeros: which places then hold them is a convention
    mask = two_largest(w.float())
    expected = torch.where(mask, w, 0)
    values, metadata = sparse_semi_structured_from_dense_cutlass(expected)
    for made in (
        export.to_torch_sparse(w, mask),
        export.to_torch_sparse(expected),
        export.to_torch_sparse(to_sparse_semi_structured(w, mask)),
    ):
        assert isinstance(made, torch.sparse.SparseSemiStructuredTensorCUTLASS)
        assert torch.equal(made.packed, values)
        assert torch.equal(made.meta, metadata)
        assert torch.equal(made.to_dense(), expected)


def test_refuse_what_torchs_kernels_do_not_take():
    half = torch.randn(128, 256).half()
    with pytest.raises(MaskError):
        export.to_torch_sparse(half)
    with pytest.raises(DtypeError, match="cast it"):
        export.to_torch_sparse(half.float(), two_largest(half.float()))
    with pytest.raises(ShapeError, match="32 x 64"):
        export.to_torch_sparse(half[:, :32], two_largest(half.float())[:, :32])
    with pytest.raises(TargetError, match="GPU"):
        export.to_torch_sparse(half, two_largest(half.float()), backend="cusparselt")


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_convert_a_model_to_torchs_tensors():
    net, _, _ = trained()
    baked = export.baked_weights(net)
    assert export.to_torch_sparse_(net, dtype=torch.float16) == WEIGHTS
    for name, weight in baked.items():
        assert torch.equal(net.get_parameter(name).to_dense(), weight.half())
    assert not isinstance(net.head.weight, torch.sparse.SparseSemiStructuredTensor)


def test_convert_all_of_a_model_or_nothing():
    net, _, _ = trained()
    before = net.mlp.up.weight
    with pytest.raises(ModelError, match=r"mlp\.up\.weight.*float32"):
        export.to_torch_sparse_(net)
    assert net.mlp.up.weight is before


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_multiply_with_torchs_tensors_on_the_gpu():
    backend = "cutlass" if torch.cuda.get_device_capability()[0] == 8 else "cusparselt"
    w = torch.randn(128, 256, device="cuda", dtype=torch.float16)
    mask = ops.transposable_mask(w)
    dense = torch.where(mask, w, 0.0)
    x = torch.randn(64, 256, device="cuda", dtype=torch.float16)
    made = export.to_torch_sparse(w, mask, backend=backend)
    torch.testing.assert_close(F.linear(x, made), F.linear(x, dense))
    net, compiled, tokens = trained(device="cuda")
    with torch.no_grad():
        expected = compiled(tokens)
        net.half()
        export.to_torch_sparse_(net, backend=backend)
        torch.testing.assert_close(net(tokens).float(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("recipe", ["fst", "sste"])
def test_serve_inference_with_weights_that_are_packed_once(recipe, device):
    net = Net().to(device).eval()
    compiled = torch.compile(net, backend="s24", options={**COMPILE, "recipe": recipe})
    tokens = torch.randint(32, (4, 16), device=device)

    def packs():
        calls = providers.recorded().items()
        return sum(count for (op, _), count in calls if op.startswith("pack_weight"))

    with torch.no_grad():
        first = compiled(tokens)
        packed = packs()
        for _ in range(3):
            assert torch.equal(compiled(tokens), first)
    assert packs() == packed, "the first call packs, later ones only read"
    operands = [operand for p in net.parameters() for operand in operands_of(p)]
    assert len(operands) == 2
    for operand in operands:
        assert len(operand.forward) == 2
        assert not operand.transposed, "no W^T is packed where no backward will come"
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(net, export.baked_weights(net), (tokens,)), first)


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_run_the_page_about_export(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "docs/export.md", "exec"), names)
    assert sorted(path.name for path in Path("checkpoint").iterdir()) == [
        "config.json",
        "dense.pt",
        "model.safetensors",
    ]
    assert isinstance(names["fresh"][0].weight, Sparse24)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DataParallel of a compiled one": lambda model: nn.DataParallel(torch.compile(model)),
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_export_what_is_in_any_wrapper(wrap, tmp_path):
    net, _, _ = trained()
    wrapped, fresh = WRAPPERS[wrap](net), Net()
    assert list(export.baked_weights(wrapped)) == WEIGHTS
    assert export.save_compressed(wrapped, tmp_path) == WEIGHTS
    fresh.load_state_dict(export.load_compressed(tmp_path))
    for name, weight in export.baked_weights(net).items():
        assert torch.equal(fresh.get_parameter(name), weight)
    assert export.to_torch_sparse_(wrapped, dtype=torch.bfloat16) == WEIGHTS
    assert isinstance(net.mlp.up.weight, torch.sparse.SparseSemiStructuredTensor)


def test_export_a_model_whose_layers_are_compiled_one_by_one(tmp_path):
    net, _, _ = trained()
    net.mlp = torch.compile(net.mlp)
    assert export.save_compressed(net, tmp_path) == WEIGHTS
    fresh = Net()
    fresh.load_state_dict(export.load_compressed(tmp_path))
    assert export.to_torch_sparse_(net, dtype=torch.bfloat16) == WEIGHTS


def test_record_baked_weights_with_torch_export():
    net, compiled, tokens = trained()
    with torch.no_grad():
        expected = compiled(tokens)
        s24compile.bake_(net)
        program = torch.export.export(net, (tokens,))
        torch.testing.assert_close(program.module()(tokens), expected)


class GPT2MLP(nn.Module):
    """Hugging Face's Conv1D spelling: weights [in, out]."""

    def __init__(self):
        super().__init__()
        self.up, self.down = Conv1D(64, 128), Conv1D(128, 64)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Conv1D(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


def test_compress_weights_stored_in_out_only_where_they_are_2_of_4_that_way(tmp_path):
    for recipe in ("fst", "ste"):
        net = GPT2MLP()
        x = torch.randn(16, 64)
        with torch.no_grad():
            expected = torch.compile(net, backend="s24", options={**COMPILE, "recipe": recipe})(x)
        if recipe == "fst":
            assert export.save_compressed(net, tmp_path) == ["up.weight", "down.weight"]
        else:
            with pytest.raises(ModelError, match=r"up\.weight.*\[in, out\]"):
                export.save_compressed(net, tmp_path)
            assert export.save_compressed(net, tmp_path, names=[]) == []
        with torch.no_grad():
            torch.testing.assert_close(
                torch.func.functional_call(net, export.load_compressed(tmp_path), (x,)), expected
            )
        with pytest.raises(ModelError, match=r"no nn\.Linear"):
            export.to_torch_sparse_(net, dtype=torch.float16)


def test_refuse_weights_that_belong_to_no_module_of_their_own(tmp_path):
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(64, 32)), nn.Parameter(torch.randn(32, 64))

        def forward(self, x):
            return nn.functional.linear(nn.functional.gelu(nn.functional.linear(x, self.w1)), self.w2)

    model = Raw()
    torch.compile(model, backend="s24", options={"inner": "eager", "min_speedup": 0.0})(torch.randn(8, 32))
    with pytest.raises(ModelError, match="'w1'"):
        export.save_compressed(model, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written"
