"""The demo, the example script and the plain GPT between them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import s24compile
from s24compile.demo import comparison
from s24compile.demo import model as model_file
from s24compile.demo.model import GPT, GPTConfig
from s24compile.demo.plot import draw, smooth
from s24compile.demo.settings import TrainConfig
from s24compile.demo.text import ByteText, read_sources
from s24compile.demo.training import History, Run
from s24compile.errors import ModelError
from tests.on_cpu import ON_CPU

ROOT = Path(__file__).parents[1]
# On the CPU: on a GPU kernels would be built for its sizes first, each in a minute.
TINY = TrainConfig(
    n_layer=1,
    n_head=2,
    n_embd=32,
    block_size=16,
    batch_size=8,
    max_iters=12,
    warmup_iters=2,
    eval_iters=2,
    device="cpu",
)


@pytest.fixture(scope="module")
def text() -> ByteText:
    return read_sources(limit=1 << 20)


def test_keep_the_model_file_free_of_s24() -> None:
    tree = ast.parse(inspect.getsource(model_file))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"__future__", "dataclasses", "math", "torch"}


def test_predict_each_byte_from_what_came_before() -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16)).eval()
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (tokens[0, 9] + 1) % 256
    logits, changed_logits = gpt(tokens)[0], gpt(changed)[0]
    assert torch.equal(logits[:, :9], changed_logits[:, :9]), "position 9 is seen before it"
    assert not torch.equal(logits[:, 9:], changed_logits[:, 9:])
    loss = gpt(tokens, torch.randint(256, (1, 16)))[1]
    assert abs(loss.item() - torch.log(torch.tensor(256.0)).item()) < 0.3, "at first every byte is equally likely"


def test_read_real_text_and_hold_out_whole_files(tmp_path: Path, text: ByteText) -> None:
    assert b"import" in bytes(text.train.tolist())
    assert 0.02 < len(text.validation) / len(text.train) < 0.3
    for index in range(20):
        (tmp_path / f"{index:02}.py").write_bytes(bytes([97 + index]) * 5000)
    own = read_sources(tmp_path)
    assert bytes(own.validation.unique().tolist()) == b"jt", "files 9 and 19, and nothing of them in the other part"
    assert not set(own.validation.unique().tolist()) & set(own.train.unique().tolist())
    with pytest.raises(ModelError, match="64 KiB"):
        read_sources(tmp_path / "nowhere")


def test_draw_a_batch_from_its_step_alone(text: ByteText) -> None:
    tokens, targets = text.batch("train", 3, seed=1, size=4, length=8)
    torch.rand(7)
    again = text.batch("train", 3, seed=1, size=4, length=8)
    assert torch.equal(tokens, again[0])
    assert torch.equal(tokens[:, 1:], targets[:, :-1]), "the target is the next byte"
    for other in ({"seed": 2}, {"part": "validation"}, {"step": 4}):
        words = {"part": "train", "step": 3, "seed": 1} | other
        assert not torch.equal(tokens, text.batch(**words, size=4, length=8)[0])


def test_warm_up_then_anneal() -> None:
    config = dataclasses.replace(TINY, warmup_iters=4, learning_rate=1.0, min_lr=0.1)
    rates = [config.learning_rate_at(step) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[12] == pytest.approx(0.1)


def test_smooth_over_what_has_been_seen() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], window=2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("flag", ["--steps=-1", "--steps=0", "--checkpoint-every=0"])
def test_refuse_to_train_the_example_for_no_steps(flag: str) -> None:
    command = [sys.executable, str(ROOT / "examples/nanogpt/train.py"), flag]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**ON_CPU, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert f"{flag.partition('=')[0]} must be >= 1" in done.stderr


def test_fail_when_a_layer_stays_dense(text: ByteText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "BACKENDS", ("s24",))
    config = dataclasses.replace(TINY, max_iters=2, options=(("exclude", ("c_proj",)), ("inner", "eager")))
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.c_proj\.weight"):
        comparison.compare(config, text)


def test_keep_legal_masks_over_more_than_forty_steps(text: ByteText) -> None:
    run = Run(dataclasses.replace(TINY, max_iters=45, eval_interval=100, options=(("inner", "eager"),)), text)
    for _ in run.steps():
        pass
    for state in s24compile.sparse_weights(run.model).values():
        blocks = state.mask.unflatten(0, (-1, 4)).unflatten(2, (-1, 4))
        assert bool((blocks.sum(dim=1) == 2).all()), "two of four along columns"
        assert bool((blocks.sum(dim=3) == 2).all()), "two of four along rows"
        assert state.flip_rate is not None, "the second search came after step 40"
    assert run.history.train_loss[-1] < run.history.train_loss[0] - 1.0


@pytest.mark.parametrize("grad_clip", [0.0, 1e9])
def test_train_without_clipping_where_its_norm_is_zero(grad_clip: float, text: ByteText) -> None:
    run = Run(dataclasses.replace(TINY, backend="eager", grad_clip=grad_clip), text)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.train_step(30)
    moved = [not torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True)]
    assert all(moved)


def test_draw_both_curves(tmp_path: Path) -> None:
    curves = History(train_loss=[3.0, 2.0, 1.0], validation_loss=[(3, 1.5)], step_ms=[1.0] * 3)
    draw(curves, curves, tmp_path / "new" / "demo.png", "title")
    assert (tmp_path / "new" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_run_the_demo_through_make(tmp_path: Path) -> None:
    arguments = f"--steps 30 --out {tmp_path}"
    command = ["make", "demo", f"PYTHON={sys.executable}", f"DEMO_ARGS={arguments}"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "8 of 8" in shown
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    told = json.loads((tmp_path / "demo.json").read_text())
    dense, sparse = told["outcomes"]["inductor"], told["outcomes"]["s24"]
    assert (dense["sparse_linears"], sparse["sparse_linears"], sparse["density"]) == (0, 8, 0.5)
    # Uniform bytes cost 5.5 nats; byte frequencies alone, which 30 steps learn, about 3.2.
    for outcome in (dense, sparse):
        assert outcome["first_loss"] > 5.2
        assert outcome["validation_loss"] < 3.4
    assert abs(dense["validation_loss"] - sparse["validation_loss"]) < 0.2
