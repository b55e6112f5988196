"""transformers' Trainer and accelerate: what is evaluated, and what a resumed run goes on with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import s24compile
from s24compile import errors
from s24compile.integrations import trainer_callback
from s24compile.weights.model_state import sparse_weights, state_dict
from tests.freshening import MLP, train

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None or importlib.util.find_spec("accelerate") is None,
        reason='transformers or accelerate is not installed: pip install -e ".[examples]"',
    ),
    pytest.mark.filterwarnings("ignore"),
]
OPTIONS = {"inner": "eager", "dense_after": 6, "gradient": "dense"}


class Tokens(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of random tokens, the same at each time."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        drawn = torch.randint(64, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": drawn, "labels": drawn}


class Model(nn.Module):
    """A language model as Trainer takes it: (input_ids, labels) -> loss and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.head = nn.Embedding(64, 16), MLP(16, 32), nn.Linear(16, 64)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.mlp(self.embed(input_ids)))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def model_of(seed: int = 0) -> Model:
    torch._dynamo.reset()
    torch.manual_seed(seed)
    return Model()


def trainer_of(model: nn.Module, folder: Path, steps: int, *callbacks: Any, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, per_device_eval_batch_size=32,
        learning_rate=1e-2, lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True,
        logging_strategy="no",
        **{"save_strategy": "steps", "save_steps": 4, **options},
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Tokens(), eval_dataset=Tokens(), callbacks=list(callbacks))


def run(folder: Path, steps: int, *callbacks: Any, resume: Any = None) -> Model:
    model = model_of()
    model.compile(backend="s24", options=OPTIONS)
    trainer_of(model, folder, steps, *callbacks).train(resume_from_checkpoint=resume)
    return model


def told(model: nn.Module) -> list[tuple[int, str]]:
    return [(weight.steps, weight.phase) for weight in sparse_weights(model).values()]


def test_resume_a_run_of_the_trainer_where_it_was(tmp_path: Path) -> None:
    straight = run(tmp_path / "whole", 8, s24compile.TrainerCallback())
    assert told(straight) == [(8, "dense"), (8, "dense")]
    run(tmp_path / "part", 4, s24compile.TrainerCallback())
    for folder, given in (("part", True), ("elsewhere", str(tmp_path / "whole/checkpoint-4"))):
        resumed = run(tmp_path / folder, 8, s24compile.TrainerCallback(), resume=given)
        assert told(resumed) == told(straight)
        for name, entry in state_dict(straight).items():
            assert torch.equal(entry["patterns"], state_dict(resumed)[name]["patterns"])
        for name, parameter in straight.named_parameters():
            assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_say_that_a_resumed_run_has_lost_its_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, 4)
    resumed = run(tmp_path, 5, resume=str(tmp_path / "checkpoint-4"))
    assert told(resumed) == [(1, "sparse"), (1, "sparse")]
    (said,) = [r.getMessage() for r in caplog.records if "the optimizer has made" in r.getMessage()]
    assert said.startswith("the optimizer has made 5 steps, and the sparse weights that it holds (mlp.up.weight, ...)")
    caplog.clear()
    run(tmp_path, 5, s24compile.TrainerCallback(), resume=str(tmp_path / "checkpoint-4"))
    assert [r.getMessage()[:27] for r in caplog.records if "holds no s24.pt" in r.getMessage()] == [
        "the model is resumed from /"
    ]


def test_bring_the_best_checkpoint_s_masks_back_with_its_weights(tmp_path: Path) -> None:
    model = model_of()
    model.compile(backend="s24", options={**OPTIONS, "mask_interval": 1})
    trainer = trainer_of(
        model, tmp_path, 6, s24compile.TrainerCallback(), load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=2, save_steps=2, metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    saved = torch.load(best / trainer_callback.FILE, weights_only=True)
    assert best.name != "checkpoint-6", "the loss falls, and the greatest is the best here"
    for name, weight in sparse_weights(model).items():
        assert torch.equal(weight.patterns, saved[name]["patterns"])
        assert weight.steps == saved[name]["steps"]


def loss_of(model: Model, masked: bool) -> float:
    """Of a plain copy, with M.W or with all of W."""
    plain = Model()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, weight in sparse_weights(model).items():
            plain.get_parameter(name).mul_(weight.mask if masked else 1)
        rows = torch.stack([Tokens()[i]["input_ids"] for i in range(32)])
        return float(plain(rows, rows)["loss"])


@pytest.fixture
def cheap_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer and accelerate pass no options; Inductor takes seconds a graph."""
    compile_in_place = nn.Module.compile

    def compile_cheaply(self: nn.Module, *args: Any, backend: str, **kwargs: Any) -> None:
        assert backend == "s24"
        compile_in_place(self, *args, backend=backend, options={"inner": "eager", "gradient": "dense"})

    monkeypatch.setattr(nn.Module, "compile", compile_cheaply)


@pytest.mark.usefixtures("cheap_backend")
@pytest.mark.parametrize("evaluate_first", [False, True])
def test_evaluate_what_was_trained_with_the_trainer_s_own_argument(tmp_path: Path, evaluate_first: bool) -> None:
    s24compile.register_with_accelerate()
    model = model_of()
    trainer = trainer_of(model, tmp_path, 2, save_strategy="no", torch_compile=True, torch_compile_backend="s24")
    if evaluate_first:
        trainer.evaluate()
    trainer.train()
    found = trainer.evaluate()["eval_loss"]
    assert len(sparse_weights(model)) == 2
    assert abs(loss_of(model, True) - loss_of(model, False)) > 1e-3, "they can be told apart"
    assert found == pytest.approx(loss_of(model, True), abs=1e-6)


@pytest.mark.usefixtures("cheap_backend")
def test_leave_other_backends_of_accelerate_as_they_are() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    s24compile.register_with_accelerate()
    for backend, wrapped in (("eager", True), ("s24", False), ("no", False)):
        AcceleratorState._reset_state(True)
        model = MLP()
        prepared = Accelerator(cpu=True, dynamo_backend=backend).prepare(model)
        assert isinstance(prepared, torch._dynamo.OptimizedModule) == wrapped
        assert (model._compiled_call_impl is not None) == (backend == "s24")
    AcceleratorState._reset_state(True)


def accelerate_state(model: MLP, *given: Any) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model)
    accelerator.register_for_checkpointing(s24compile.TrainerCallback(*given))
    return accelerator


@pytest.mark.parametrize("given", [False, True])
def test_save_and_load_among_the_states_of_accelerate(tmp_path: Path, given: bool) -> None:
    from s24compile.config import Config

    donor, fresh = MLP(), MLP()
    train(donor, torch.optim.SGD(donor.parameters(), lr=0.1), Config(mask_interval=3), range(5))
    accelerate_state(donor, *([donor] if given else [])).save_state(str(tmp_path))
    accelerate_state(fresh, *([fresh] if given else [])).load_state(str(tmp_path))
    train(fresh, torch.optim.SGD(fresh.parameters(), lr=0.1), Config(mask_interval=3), range(5, 6))
    assert [w.steps for w in sparse_weights(fresh).values()] == [6, 6]


def test_refuse_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelError, match=r"nn\.Module"):
        s24compile.TrainerCallback(3)  # type: ignore[arg-type]
    callback = s24compile.TrainerCallback()
    with pytest.raises(errors.ModelError, match="it knows no model"):
        callback.state_dict()
    with pytest.raises(AttributeError, match="no attribute 'of_step'"):
        callback.of_step  # noqa: B018
    assert callback.on_step_begin(None, None, None) is None
    model = MLP()
    with pytest.raises(errors.CheckpointError, match=r"of the models \['0', '1'\], and there are \['0'\] now"):
        s24compile.TrainerCallback(model).load_state_dict({"0": {}, "1": {}})


def test_leave_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / trainer_callback.FILE
    trainer_callback._write({"a": {}}, path)

    def fail(*args: Any) -> None:
        args[1].write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        trainer_callback._write({"b": {}}, path)
    assert [p.name for p in tmp_path.iterdir()] == [trainer_callback.FILE]
    assert torch.load(path, weights_only=True) == {"a": {}}
