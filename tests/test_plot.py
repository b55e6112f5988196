"""`s24 plot` and what it reads: curves of runs from JSONL, whoever wrote it, also where a kill has cut it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from s24compile.cli import main
from s24compile.cli.curves import read_curves
from s24compile.demo.settings import TrainConfig
from s24compile.demo.text import read_sources
from s24compile.demo.training import History, Run

# On the CPU: on a GPU kernels would be built for its sizes first, each in a minute.
TINY = TrainConfig(
    n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=4, max_iters=12, warmup_iters=2, eval_iters=1,
    eval_interval=6, device="cpu"
)  # fmt: skip


def history() -> History:
    return History(
        train_loss=[3.0, 2.0, 1.0], validation_loss=[(3, 1.5)], step_ms=[100.0, 10.0, 20.0], flip_rate=[(2, 0.1)]
    )


def test_write_a_line_per_step(tmp_path: Path) -> None:
    history().write_jsonl(tmp_path / "new" / "metrics.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "train_loss": 3.0, "step_ms": 100.0},
        {"step": 2, "train_loss": 2.0, "step_ms": 10.0, "flip_rate": 0.1},
        {"step": 3, "train_loss": 1.0, "step_ms": 20.0, "validation_loss": 1.5},
    ]


def test_read_curves_by_step_and_by_time(tmp_path: Path) -> None:
    history().write_jsonl(tmp_path / "run" / "metrics.jsonl")
    (curve,) = read_curves(tmp_path / "run")
    assert curve.name == "run"
    assert curve.of("train_loss", "step") == ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert curve.of("validation_loss", "seconds") == ([pytest.approx(0.13)], [1.5])
    assert curve.of("flip_rate", "step") == ([2.0], [0.1])


def test_read_windows_and_headers_and_a_cut_line(tmp_path: Path) -> None:
    text = '{"plan": {"steps": 3}}\n{"step": 20, "train_loss": 2.0, "step_ms": 5}\n{"step": 40, "train_loss": 1.0, "ste'
    (tmp_path / "fst.jsonl").write_text(text)
    (curve,) = read_curves(tmp_path / "fst.jsonl")
    assert curve.name == "fst"
    assert curve.of("train_loss", "seconds") == ([pytest.approx(0.1)], [2.0]), "a window of 20 steps of 5 ms"


@pytest.mark.parametrize("axis", ["step", "seconds"])
def test_draw_several_runs(axis: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fst", "sste"):
        history().write_jsonl(tmp_path / name / "metrics.jsonl")
    dataclasses.replace(history(), flip_rate=[]).write_jsonl(tmp_path / "dense.jsonl")
    out = tmp_path / "pictures" / "plot.png"
    words = [str(tmp_path / "fst"), str(tmp_path / "sste"), str(tmp_path / "dense.jsonl")]
    assert main(["plot", *words, "--out", str(out), f"--axis={axis}"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "fst, sste, dense" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no .jsonl file"),
        (["EMPTY"], "no line with a step"),
        (["EMPTY", "--axis=tokens"], "'step' or 'seconds'"),
        (["NULL"], "null.jsonl:2: train_loss is None; it must be a number"),
        (["BINARY"], "binary.jsonl: it is no text"),
        (["RUN", "--out=FILE/plot.png"], "run.jsonl/plot.png' is not accepted: it must be a file that can be written"),
        (["RUN", "--out=/proc/plot.png"], "/proc/plot.png' is not accepted: it must be a file that can be written"),
        (["RUN", "--out=FOLDER"], "it must be a file that can be written (Is a directory)"),
        (["RUN", "--out=plot.xyz"], "out='plot.xyz' is not accepted: its suffix must be one of ."),
    ],
)
def test_refuse_what_cannot_be_drawn(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("[]\nnot json\n")
    (tmp_path / "null.jsonl").write_text('{"step": 1, "train_loss": 2.0}\n{"step": 2, "train_loss": null}\n')
    (tmp_path / "binary.jsonl").write_bytes(b"\x89PNG\xff")
    history().write_jsonl(tmp_path / "run.jsonl")
    (tmp_path / "folder").mkdir()
    names = {"EMPTY": "empty.jsonl", "NULL": "null.jsonl", "BINARY": "binary.jsonl", "RUN": "run.jsonl"}
    words = [str(tmp_path / names[word]) if word in names else word for word in words]
    words = [w.replace("FILE", str(tmp_path / "run.jsonl")).replace("FOLDER", str(tmp_path / "folder")) for w in words]
    before = sorted(tmp_path.iterdir())
    assert main(["plot", "--out", str(tmp_path / "plot.png"), *words]) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_tell_the_path_of_a_picture_named_without_a_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history().write_jsonl(tmp_path / "run.jsonl")
    assert main(["plot", str(tmp_path / "run.jsonl"), "--out", str(tmp_path / "both"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["picture"]
    assert told == str(tmp_path / "both.png")
    assert Path(told).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("recipe", ["fst", "step"])
def test_note_flip_rates_of_a_run_and_keep_them_over_a_resume(recipe: str, tmp_path: Path) -> None:
    options = (("inner", "eager"), ("mask_interval", 2), ("recipe", recipe))
    config = dataclasses.replace(TINY, options=options, max_iters=20)
    text = read_sources(limit=1 << 20)
    whole = Run(config, text)
    list(whole.steps())
    assert [step for step, _ in whole.history.flip_rate] == ([10, 20] if recipe == "fst" else [20])
    assert all(0 <= rate <= 1 for _, rate in whole.history.flip_rate)
    half = Run(config, text)
    for step in half.steps():
        if step == 13:
            half.save(tmp_path / "checkpoint.pt")
            break
    torch._dynamo.reset()
    resumed = Run(config, text)
    resumed.load(tmp_path / "checkpoint.pt")
    list(resumed.steps())
    assert resumed.history.flip_rate == whole.history.flip_rate
    assert resumed.history.train_loss == whole.history.train_loss


def test_train_half_as_wide() -> None:
    run = Run(dataclasses.replace(TINY, backend="eager", n_hidden=64), read_sources(limit=1 << 20))
    assert {p.shape[0] for n, p in run.model.named_parameters() if n.endswith("c_fc.weight")} == {64}


def test_draw_what_hidden_states_hold(tmp_path: Path) -> None:
    run = dataclasses.replace(history(), flip_rate=[], nonzero=[(2, 0.1)], over=[(2, 0.02)], dropped=[(2, 0.01)])
    run.write_jsonl(tmp_path / "activation" / "metrics.jsonl")
    (curve,) = read_curves(tmp_path / "activation")
    assert curve.of("dropped", "step") == ([2.0], [0.01])
    out = tmp_path / "plot.png"
    assert main(["plot", str(tmp_path / "activation"), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_train_and_keep_what_hidden_states_hold() -> None:
    options = (("dense_until", 2), ("inner", "aot_eager"), ("recipe", "activation"))
    run = Run(dataclasses.replace(TINY, activation="relu2", options=options), read_sources(None))
    list(run.steps())
    assert run.history.nonzero, "written every few steps"
    assert all(0 < share < 1 for _, share in run.history.nonzero)
    assert [step for step, _ in run.history.dropped] == [step for step, _ in run.history.over]
    assert not run.history.flip_rate
