"""The examples, run as their docstrings say, for a few steps. examples/nanogpt is run by test_demo.py."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from s24compile import errors, register_with_accelerate, sparse_weights
from tests.on_cpu import ON_CPU

ROOT = Path(__file__).parents[1]
# (folder, what it needs besides torch, sparse weights of one layer)
EXAMPLES = [
    ("hf_llama", ("transformers", "accelerate"), 3),
    ("accelerate_gpt", ("accelerate",), 2),
    ("lightning_gpt", ("lightning",), 2),
    ("plain_loop", (), 2),
]


def need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not installed: pip install -e ".[examples]"')


RUNS = [(*example, ()) for example in EXAMPLES] + [("hf_llama", ("transformers", "accelerate"), 3, ("--in-place",))]


@pytest.mark.parametrize(("name", "modules", "weights", "flags"), RUNS, ids=[f"{r[0]}{''.join(r[3])}" for r in RUNS])
def test_train_sparse_and_lower_the_loss(
    name: str, modules: tuple[str, ...], weights: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    need(*modules)
    # tests.torchvision_ops: transformers and lightning import torchvision where it is installed.
    command = [sys.executable, "-m", "tests.torchvision_ops", str(ROOT / f"examples/{name}/train.py")]
    command += ["--steps", "8", "--layers", "1", *flags]
    environment = {**ON_CPU, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    told = re.fullmatch(r"loss ([\d.]+) -> ([\d.]+), (\d+) sparse weights", done.stdout.splitlines()[-1])
    assert told is not None, done.stdout
    first, last, sparse = float(told[1]), float(told[2]), int(told[3])
    assert sparse == weights
    assert first > 5.2, "at first every byte is equally likely: ln 256 = 5.5"
    assert last < first - 0.5


def test_run_every_example_somewhere() -> None:
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/*.py")}
    assert folders == {"nanogpt", *(name for name, *_ in EXAMPLES)}


def test_register_the_name_with_accelerate_once() -> None:
    need("accelerate")
    from accelerate.utils import DynamoBackend, TorchDynamoPlugin

    register_with_accelerate()
    before = list(DynamoBackend)
    register_with_accelerate()
    assert list(DynamoBackend) == before
    assert TorchDynamoPlugin(backend="s24").to_dict()["backend"] == "s24"
    assert DynamoBackend("INDUCTOR") is DynamoBackend.INDUCTOR


def test_say_that_accelerate_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(errors.ModelError, match="pip install accelerate"):
        register_with_accelerate()


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples.{name}", ROOT / f"examples/{name}/train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RATE, CLIP = 0.5, 1e-3


def fit_with_lightning(folder: Path, *, steps: int, decay: float, batches: int = 1, resume: Path | None = None) -> Any:
    """The example's module after SGD on the same batches in every step, with exact gradients that are clipped hard."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    example = load_example("lightning_gpt")

    class Exact(example.LitGPT):  # type: ignore[name-defined]
        def configure_model(self) -> None:
            self.gpt.compile(backend="s24", options={"inner": "aot_eager", "gradient": "dense", "decay": decay})

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)

    torch.manual_seed(0)
    data = torch.randint(256, (batches, 2, 4, 8))  # tokens and targets of one step, which is an epoch
    model = Exact(layers=1)
    trainer = lightning.Trainer(
        max_steps=steps, accumulate_grad_batches=batches, gradient_clip_val=CLIP, accelerator="cpu", logger=False,
        callbacks=ModelCheckpoint(folder, save_last=True), enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=None), ckpt_path=resume)
    return model


def test_apply_masked_decay_in_the_closures_of_lightning(tmp_path: Path) -> None:
    """Once per step, after its batches are accumulated and clipped: lr * decay * w where the mask is 0."""
    need("lightning")
    decay = 0.01
    before, plain, decayed = (
        fit_with_lightning(tmp_path / f"{steps}-{d}", steps=steps, decay=d, batches=2).gpt
        for steps, d in ((0, 0.0), (1, 0.0), (1, decay))
    )
    weights = sparse_weights(decayed)
    assert len(weights) == 2
    for name, parameter in decayed.named_parameters():
        moved = (plain.get_parameter(name) - parameter).detach()
        pruned = ~weights[name].mask if name in weights else torch.zeros_like(parameter, dtype=torch.bool)
        # Weights are below 1/2: rounded once in each run, by at most 2**-26, and gradients by far less.
        torch.testing.assert_close(
            moved, RATE * decay * before.get_parameter(name).detach() * pruned, rtol=0, atol=2**-24
        )


def test_resume_with_the_checkpoints_of_lightning(tmp_path: Path) -> None:
    """Masks, counters and momentum go on where they were: bit for bit the run that was not stopped."""
    need("lightning")
    whole = fit_with_lightning(tmp_path / "whole", steps=6, decay=0.01).gpt
    fit_with_lightning(tmp_path / "part", steps=3, decay=0.01)
    resumed = fit_with_lightning(tmp_path / "rest", steps=6, decay=0.01, resume=tmp_path / "part/last.ckpt").gpt
    for name, weight in sparse_weights(whole).items():
        other = sparse_weights(resumed)[name]
        assert (weight.steps, weight.age) == (other.steps, other.age) == (6, 6), "masks were searched anew"
        assert torch.equal(weight.mask, other.mask)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
