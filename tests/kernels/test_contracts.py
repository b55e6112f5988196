"""Every op: schema, fake, autograd and tracing agree with the real thing (`torch.library.opcheck`), and none lacks a
sample, a reference or a docstring."""

import importlib.util
import inspect
import typing

import pytest
import torch
from torch.testing._internal.optests.generate_tests import ALL_TEST_UTILS

from s24compile import ops as functional
from s24compile.errors import OptionError, TargetError
from s24compile.kernels import ops, providers
from s24compile.kernels.arch import PROVIDERS
from s24compile.kernels.ops import gemm
from s24compile.kernels.samples import SAMPLES, samples
from s24compile.kernels.signature import flat_signature
from s24compile.kernels.words import WORDS

NAMES = sorted(ops.NAMES)


CASES = [
    pytest.param(name, index, id=f"{name}-{sample.note}")
    for name in NAMES
    for index, sample in enumerate(samples(name, "cpu", torch.float32))
]


SPELLED = {"linear", "scaled_linear", "scaled_dense_linear"}
"""Spelled in the other ops, without kernels of their own."""


@pytest.mark.parametrize("name", NAMES)
def test_each_op_has_samples_reference_and_docstrings(name):
    definition = getattr(ops, name)
    assert samples(name, "cpu", torch.float32), "an op without a sample is an op without tests"
    assert inspect.getdoc(definition._init_fn), "the contract says what the op means"
    if name not in SPELLED:
        reference = providers.find(name, "reference")
        assert reference is not None
        assert inspect.getdoc(reference.run)


def test_no_sample_or_folder_is_left_of_a_removed_op():
    assert set(SAMPLES) == set(NAMES)
    assert set(providers.FOLDER_OF) == set(NAMES) - SPELLED


KERNELS = [
    (op, name)
    for op, folder in providers.FOLDER_OF.items()
    for name in PROVIDERS
    if importlib.util.find_spec(f"s24compile.kernels.{folder}.{name}") is not None
]


def parameters(function):
    """(name, type) of all that a call must give: what is there for other callers has a default."""
    hints, given = typing.get_type_hints(function), inspect.signature(function).parameters.values()
    return [(p.name, hints[p.name]) for p in given if p.default is inspect.Parameter.empty]


@pytest.mark.parametrize(("op", "name"), KERNELS)
def test_give_each_kernel_what_the_schema_of_its_op_says(op, name):
    if name == "triton":
        pytest.importorskip("triton", reason="Triton comes with torch on Linux only")
    provider, schema = providers.find(op, name), getattr(torch.ops.s24, op).default._schema
    if provider is None:
        return  # this module has kernels of other ops
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]

    def prototype():
        pass

    prototype.__signature__ = flat_signature(provider.run)
    assert str(schema) == f"s24::{op}" + torch.library.infer_schema(prototype, mutates_args=written)
    assert parameters(provider.run) == parameters(providers.find(op, "reference").run), "grouped in the same way"
    if name != "reference":
        assert parameters(provider.supports) == parameters(provider.run)


@pytest.mark.parametrize("name", [n for n in functional.__all__ if n != "Packed24"])
def test_functional_api_is_documented_and_annotated(name):
    function = getattr(functional, name)
    assert inspect.getdoc(function)
    assert "return" in function.__annotations__


@pytest.mark.parametrize(("name", "index"), CASES)
def test_opcheck_passes(name, index, device, monkeypatch):
    sample = samples(name, device, torch.float32)[index]
    # opcheck compares eager gradients with traced ones, which must then draw the same seed.
    monkeypatch.setattr(gemm, "_seed", lambda like: torch.full((1,), 7, dtype=torch.int64, device=like.device))
    op = getattr(torch.ops.s24, name).default
    skipped = {"test_schema"} if name in EIGHT_BIT else set()
    if name in SPELLED - {"linear"}:  # opcheck adds up all results, of any dtype; tests of their own compile them
        skipped |= {"test_aot_dispatch_static", "test_aot_dispatch_dynamic"}
    torch.library.opcheck(op, sample.args, test_utils=[check for check in ALL_TEST_UTILS if check not in skipped])


EIGHT_BIT = {name for name in NAMES if name.startswith("scaled_") or providers.FOLDER_OF.get(name) == "fp8"}
"""Ops on 8-bit floats, which torch cannot compare, so that opcheck's "test_schema" fails on any of them."""


@pytest.mark.parametrize(("name", "index"), [case for case in CASES if case.values[0] in EIGHT_BIT])
def test_eight_bit_ops_write_what_their_schema_says_and_return_new_memory(name, index, device):
    op, args = getattr(torch.ops.s24, name).default, samples(name, device, torch.float32)[index].args
    before = [[x.clone() for x in tensors_of(arg)] for arg in args]
    memory = {x.untyped_storage().data_ptr() for arg in args for x in tensors_of(arg)}
    results = tensors_of(op(*args))
    for declared, old, arg in zip(op._schema.arguments, before, args, strict=True):
        if declared.alias_info is None or not declared.alias_info.is_write:
            assert all(torch.equal(as_bytes(x), as_bytes(y)) for x, y in zip(old, tensors_of(arg), strict=True)), (
                declared
            )
    assert not memory & {x.untyped_storage().data_ptr() for x in results if x.numel()}


def tensors_of(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def as_bytes(x):
    return x.contiguous().flatten().view(torch.uint8)


GIVEN = [
    pytest.param(name, place, argument.name, id=f"{name}-{argument.name}")
    for name in NAMES
    for place, argument in enumerate(getattr(torch.ops.s24, name).default._schema.arguments)
    if argument.name in WORDS
]


@pytest.mark.parametrize(("name", "place", "word"), GIVEN)
def test_refuse_words_that_no_kernel_knows(name, place, word):
    args = list(samples(name, "cpu", torch.float32)[0].args)
    args[place] = "nonsense"
    with torch.no_grad(), pytest.raises(OptionError, match=f"option {word}='nonsense' is not accepted"):
        getattr(torch.ops.s24, name).default(*args)
    with torch._subclasses.FakeTensorMode() as mode, pytest.raises(OptionError, match=word):
        getattr(ops, name)(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args))


SHORTENED = (
    "pack_weight_",
    "pack_weights_",
    "pack_weights_fp8_",
    "masked_decay_many_",
    "copy_samples_",
    "compare_samples_",
)
"""Called by this package alone, on weights that are known not to be meta tensors, and past torch's dispatcher."""


@pytest.mark.parametrize(("name", "index"), [case for case in CASES if case.values[0] not in SHORTENED])
def test_refuse_meta_tensors_among_others(name, index, device):
    op = getattr(torch.ops.s24, name).default
    leaves, spec = torch.utils._pytree.tree_flatten(samples(name, device, torch.float32)[index].args)
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    for place in tensors:
        mixed = [leaf.to("meta") if at == place else leaf for at, leaf in enumerate(leaves)]
        if len(tensors) > 1:
            with torch.no_grad(), pytest.raises(TargetError, match="meta"):
                op(*torch.utils._pytree.tree_unflatten(mixed, spec))
    on_meta = [leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    result = op(*torch.utils._pytree.tree_unflatten(on_meta, spec))
    assert all(leaf.is_meta for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize(("name", "index"), CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_fake_kernel_agrees_with_the_real_one(name, index, dtype, device):
    sample = samples(name, device, dtype)[index]
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, sample.args)
        expected = getattr(ops, name)(*fakes)
    with torch.no_grad():
        actual = getattr(ops, name)(*sample.args)
    flat, spec = torch.utils._pytree.tree_flatten(actual)
    flat_fake, spec_fake = torch.utils._pytree.tree_flatten(expected)
    assert spec == spec_fake
    for real, fake in zip(flat, flat_fake, strict=True):
        if real is not None:
            assert (real.shape, real.dtype, real.device) == (fake.shape, fake.dtype, fake.device)
            assert real.stride() == fake.stride(), "the compiler plans with the fake strides"
