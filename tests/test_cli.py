"""The command line: help, exit statuses, sentences instead of tracebacks, JSON, and a model from a file."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from s24compile.cli import main
from s24compile.cli.load import make_inputs, parse_options
from s24compile.cli.machine import Fact, examine
from s24compile.cli.progress import training_progress
from s24compile.cli.terminal import console
from s24compile.config import Config
from s24compile.demo.settings import TrainConfig
from s24compile.errors import ModelError, OptionError

COMMANDS = ("doctor", "demo", "explain", "train", "plot", "bench", "build", "tune-decay")

SHORT = ("--n_head=2", "--n_layer=1", "--block_size=16", "--batch_size=2", "--max_iters=2", "--inner=eager")

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.odd_up, self.odd_down = nn.Linear(16, 30), nn.Linear(30, 16)

    def forward(self, x, scale=None):
        x = self.down(torch.nn.functional.gelu(self.up(x)))
        x = self.odd_down(torch.nn.functional.gelu(self.odd_up(x)))
        return x if scale is None else x * scale

def build():
    return Net()

def build_with_inputs():
    return Net(), (torch.randn(4, 16),)

not_a_model = 3
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_net.py"
    path.write_text(MODEL)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_explain_itself_for_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"s24 {name}" in capsys.readouterr().out


def test_list_the_commands_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["doctr"], 2, "doctor"),
        (["demo", "--stepz", "3"], 2, "No such option"),
        (["demo", "--steps", "many"], 2, "--steps"),
        (["explain"], 2, "MODEL"),
        (["explain", "nowhere"], 1, "pkg.module:factory"),
        (["explain", "no_such_package.models:build"], 1, "no module named 'no_such_package'"),
        (["explain", "no_such_file.py:build"], 1, "no such file"),
        (["explain", "s24compile.demo.model:nothing"], 1, "has no 'nothing'"),
        (["explain", "s24compile.demo.model:example", "--input", "three"], 1, "dtype[shape]"),
        (["explain", "s24compile.demo.model:example", "--option", "recipy=fst"], 1, "did you mean 'recipe'"),
        (["explain", "s24compile.demo.model:GPT"], 1, "it wants arguments (missing a required argument: 'config')"),
        (["explain", "s24compile.demo.model:example", "--input", "int64[2,4]<0"], 1, "a bound is for integers"),
        (["explain", "s24compile.demo.model:example", "--input", "float32[2,4]<9"], 1, "a bound is for integers"),
        (["explain", "s24compile.demo.model:example", "--input", "int64[2,64]<50257"], 1, "index out of range"),
        (["explain", "s24compile.demo.model:example", "--input", "float32[2,64]"], 1, "float32"),
        (["train", "--max_iters=1", f"--out_dir={__file__}/run"], 1, "must be a folder that can be made"),
        (["demo", f"--out={__file__}/run"], 1, "must be a folder that can be made"),
        (["tune-decay", "--device=cpu", f"--out={__file__}/run"], 1, "must be a folder that can be made"),
        (["train", "--nope=1"], 2, "No such option: --nope"),
        (["train", "--max_iters=many"], 2, "'--max_iters': "),
        (["train", "--max_iters"], 2, "requires an argument"),
        (["train", "--bias=2"], 2, "'--bias': '2' is neither true nor false"),
        (["train", "--n_layr=3"], 2, "--n_layer"),
        (["train", "one.py", "two.py"], 1, "config='one.py' is not accepted"),
        (["train", "--recipe=best"], 1, "recipe='best' is not accepted: it must be one of 'fst'"),
        (["train", "no_such_settings.py"], 1, "existing Python file"),
        (["train", "--resume", "--out_dir=no/such/run"], 1, "s24: no/such/run/checkpoint.pt: no such file"),
        (["train", "--n_layer=-1"], 1, "n_layer=-1 is not accepted: it must be >= 1"),
        (["train", "--max_iters=0"], 1, "max_iters=0"),
        (["train", "--dropout=1.5"], 1, "dropout=1.5"),
        (["train", "--n_embd=30"], 1, "n_embd=30 is not accepted: it must be a multiple of n_head=4"),
        (["train", "--n_embd=34", *SHORT], 1, "no layer of it can train 2:4"),
        (["train", "--exclude=mlp", *SHORT], 1, "no layer of it can train 2:4"),
        (["train", "--device=foo"], 1, "device='foo' is not accepted"),
        (["train", "--device=cuda:99"], 1, "CUDA devices"),
        (["train", "--dtype=float8"], 1, "'bfloat16'"),
        (["train", "--backend=indutcor"], 1, "'inductor'"),
        (["train", "--backend=inductor", "--decay=1e-4"], 1, "decay=0.0001 is not accepted: it is an option of"),
        (["tune-decay", "--backend=inductor"], 1, "backend='inductor' is not accepted: it must be 's24'"),
        (["tune-decay", "--device=foo"], 1, "device='foo' is not accepted"),
        (["demo", "--seed=99999999999999999999"], 1, "seed=99999999999999999999 is not accepted: torch takes"),
        (["train", "--seed=99999999999999999999"], 1, "seed=99999999999999999999 is not accepted: torch takes"),
        (["demo", "--device", "foo"], 1, "device='foo' is not accepted"),
        (["demo", "--device=cuda:99"], 1, "CUDA devices"),
        (["bench", "no_such_benchmark"], 1, "no such script"),
        (["tune-decay", "--candidates=0,much"], 1, "candidates"),
        (["tune-decay", "--candidates=0,-1"], 1, "candidates"),
        (["tune-decay", "--recipe=sste", "--device=cpu", "--n_layer=1", "--inner=eager"], 1, "no masked decay"),
    ],
)
def test_answer_mistakes_with_one_sentence(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == status
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert len(shown.strip().splitlines()) == 1


def test_print_what_is_in_brackets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fact = Fact("CUTLASS [headers]", "absent", "not in [/usr]", "pip install 's24compile[cuda]'")
    monkeypatch.setattr("s24compile.cli.machine.examine", lambda: [fact])
    main(["doctor"])
    shown = capsys.readouterr().out
    assert all(words in shown for words in (fact.name, fact.found, fact.advice))
    terminal = console()
    with training_progress(terminal) as progress:
        progress.add_task("[2, 128]", total=1, loss="[bold]")
    terminal.print("written to [dim]/out")
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("[2, 128]", "loss [bold]", "written to [dim]/out"))


def test_tell_what_the_machine_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    missing = [fact.name for fact in examine() if fact.status == "missing"]
    assert main(["doctor"]) == int(bool(missing))
    shown = capsys.readouterr().out
    assert "mvue_pack" in shown
    assert main(["doctor", "--json"]) == int(bool(missing))
    told = json.loads(capsys.readouterr().out)
    assert {fact["name"] for fact in told["facts"]} >= {"Python", "torch", 'backend="s24"', "GPU", "nvcc"}
    assert all(fact["advice"] for fact in told["facts"] if fact["status"] != "ok")
    assert told["providers"]["mm"] in ("cutlass", "triton", "cusparselt", "reference")


def test_tell_the_version_of_a_triton_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert {fact.name: fact.found for fact in examine()}["Triton"] == triton.__version__


def test_explain_a_model_of_a_file(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{model_file}:build_with_inputs"]) == 0
    table = capsys.readouterr().out
    assert "my_net.py" in table, "the user's own source line is missing"
    assert main(["explain", f"{model_file}:build", "-i", "float32[4,16]", "-i", "scale=float32[4,1]", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    by_path = {weight: site for site in told["sites"] for weight in site["weights"]}
    assert by_path["up.weight"]["status"] == "rewritten"
    assert by_path["odd_up.weight"]["status"] == "refused"
    assert "30" in by_path["odd_up.weight"]["reason"]


def test_pass_options_on_to_explain(capsys: pytest.CaptureFixture[str]) -> None:
    where = "s24compile.demo.model:example"
    assert main(["explain", where, "--json"]) == 0
    linears = sum(site["linears"] for site in json.loads(capsys.readouterr().out)["sites"])
    assert main(["explain", where, "--json", "--option", "targets=linear"]) == 0
    more = sum(site["linears"] for site in json.loads(capsys.readouterr().out)["sites"])
    assert linears == 8, "two linears in each of four MLPs"
    assert more == 16, "with targets=linear the attention's two as well, but not the tied output layer"


def test_say_which_inputs_a_model_lacks(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--input", "size=float32[4,16]"]):
        assert main(["explain", f"{model_file}:build", *words]) == 1
        said = capsys.readouterr().err
        assert "Net.forward(x, scale=None) says: " in said
        assert "--input" in said
        assert len(said.strip().splitlines()) == 1


def test_refuse_what_is_no_model(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{model_file}:not_a_model"]) == 1
    assert "nn.Module" in capsys.readouterr().err


def test_leave_errors_of_the_users_own_code_to_their_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        main(["explain", f"{tmp_path / 'broken.py'}:build"])

    (tmp_path / "failing.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.Embedding(2, 4), torch.tensor([2])\n"
    )
    with pytest.raises(IndexError, match="out of range"):
        main(["explain", f"{tmp_path / 'failing.py'}:build"])


def test_name_the_place_where_settings_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.py"
    for text, said in (
        ("n_layer = 1\nn_head = = 2\n", f"{file}:2: SyntaxError: invalid syntax"),
        ("n_layer = 1\n\nn_head = 1 // 0\n", f"{file}:3: ZeroDivisionError: integer division or modulo by zero"),
        ("import a_module_that_is_not_there\n", f"{file}:1: ModuleNotFoundError: No module named"),
        ("import json\njson.loads('')\n", f"{file}:2: JSONDecodeError: "),
    ):
        file.write_text(text)
        assert main(["train", str(file)]) == 1
        shown = capsys.readouterr().err
        assert said in shown
        assert len(shown.strip().splitlines()) == 1


def test_make_inputs_of_specs() -> None:
    positional, named = make_inputs(["float32[2, 3]", "int64[4]<7", "mask=bool[2]", "bfloat16[]"])
    assert [tuple(t.shape) for t in positional] == [(2, 3), (4,), ()]
    assert positional[1].max() < 7
    assert str(named["mask"].dtype) == "torch.bool"
    for wrong in ("float[2", "nothing[2]", "float32", "float32[a]"):
        with pytest.raises(OptionError, match="dtype"):
            make_inputs([wrong])


def test_read_options_as_python_literals() -> None:
    given = parse_options(["decay=2e-4", "mask-interval=7", "include=('a','b')", "recipe=fst", "bias=false"])
    assert given == {"decay": 2e-4, "mask_interval": 7, "include": ("a", "b"), "recipe": "fst", "bias": False}


def settings(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `s24 train --settings` lists: names and reprs."""
    assert main(["train", *words, "--settings"]) == 0
    return dict(line.split(" = ", 1) for line in capsys.readouterr().out.splitlines())


def test_have_a_setting_for_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in (*dataclasses.fields(TrainConfig), *dataclasses.fields(Config)):
        assert (f"--{field.name} " in shown) == (field.name != "options"), field.name
    assert "Sequence length in bytes." in shown
    told = settings(capsys=capsys)
    assert told == {name: repr(value) for name, value in dataclasses.asdict(TrainConfig()).items()}


def test_read_settings_from_a_file_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.py"
    file.write_text(
        "import math\nbatch_size = 4 * 8\nlearning_rate = 1e-3\nbias = False\nrecipe = 'sste'\ndense_after = None\n"
        "include = (r'b\\.0',)\n_private = 1\n"
    )
    words = [str(file), "--learning_rate=5e-4", "--decay=1e-5", "--grad-clip", "1", "--max-iters=7"]
    told = settings(*words, capsys=capsys)
    wanted = {"batch_size": "32", "learning_rate": "0.0005", "grad_clip": "1.0", "bias": "False", "max_iters": "7"}
    assert {name: told[name] for name in wanted} == wanted
    options = {"recipe": "sste", "decay": 1e-5, "include": ("b\\.0",), "dense_after": None}
    assert dict(ast.literal_eval(told["options"])) == options


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("batchsize = 3", 1, "did you mean 'batch_size'"),
        ("nothing = 3", 1, "inner_options, target; and the settings of s24 train: backend"),
        ("batch_size = 2.5", 2, "'--batch_size': "),
        ("batch_size = None", 2, "'--batch_size': "),
        ("bias = 3", 2, "'3' is neither true nor false"),
        ("decay = 'much'", 1, "decay='much' is not accepted"),
    ],
)
def test_check_the_settings_of_a_file_as_those_of_flags(
    line: str, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.py"
    file.write_text(line)
    assert main(["train", str(file), "--settings"]) == status
    assert said in capsys.readouterr().err


def test_train_and_resume_to_the_same_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--device=cpu",
        "--n_layer=1",
        "--n_embd=32",
        "--block_size=16",
        "--batch_size=4",
        "--inner=aot_eager",
        "--json",
    ]
    small += ["--mask_interval=3", "--eval_interval=100", "--eval_iters=1", "--warmup_iters=2", "--min_lr=2e-3"]

    def train(out: str, steps: int, *more: str) -> dict[str, float]:
        assert main(["train", *small, f"--out_dir={tmp_path / out}", f"--max_iters={steps}", *more]) == 0
        result: dict[str, float] = json.loads(capsys.readouterr().out)
        return result

    whole = train("whole", 8)
    train("halved", 5)
    resumed = train("halved", 8, "--resume")
    assert (resumed["step"], resumed["train_loss"]) == (8, whole["train_loss"]), "a resumed run is the run it was"
    assert resumed["validation_loss"] == whole["validation_loss"]
    read = {
        out: [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("whole", "halved")
    }
    curves = {out: [(line["step"], line["train_loss"]) for line in lines] for out, lines in read.items()}
    assert curves["halved"] == curves["whole"]
    assert [step for step, _ in curves["whole"]] == list(range(1, 9))
    changed = [*small, f"--out_dir={tmp_path / 'halved'}", "--resume", "--decay=1e-3"]
    assert main(["train", *changed]) == 1
    assert "decay" in capsys.readouterr().err


def test_see_fewer_flips_under_more_decay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--device=cpu",
        "--n_layer=1",
        "--n_embd=32",
        "--block_size=16",
        "--batch_size=4",
        "--inner=eager",
        "--steps=24",
    ]
    small += ["--out", str(tmp_path)]
    assert main(["tune-decay", *small, "--candidates=0,0.05", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    none, strong = told["trials"]
    assert [none["decay"], strong["decay"]] == [0.0, 0.05]
    assert strong["mu"] < 0.9 * none["mu"], "decay pulls pruned weights to zero, where they stay pruned"
    assert json.loads((tmp_path / "tune_decay.json").read_text()) == told
    assert (tmp_path / "tune_decay.png").read_bytes().startswith(b"\x89PNG")
    assert main(["tune-decay", *small, "--candidates=0"]) == 0
    assert "dense" in capsys.readouterr().out


def test_run_and_list_benchmarks_of_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guard = 'if __name__ == "__main__":\n    print("ran", __file__)\n'
    (tmp_path / "one.py").write_text(f'"""First."""\n{guard}')
    (tmp_path / "two.py").write_text(f'"""Second."""\nNEEDS_GPU = True\n{guard}')
    (tmp_path / "three.py").write_text(f'"""Third."""\nimport sys\n{guard}    sys.exit(1)\n')
    (tmp_path / "shared.py").write_text('"""No script."""\n')
    assert main(["bench", "--list", "--folder", str(tmp_path)]) == 0
    shown = capfd.readouterr().out
    assert "First." in shown
    assert "shared" not in shown
    assert main(["bench", "one", "--folder", str(tmp_path)]) == 0
    assert "one.py" in capfd.readouterr().out
    assert main(["bench", "three", "--folder", str(tmp_path)]) == 1
    assert "failed: three" in capfd.readouterr().err
    assert main(["bench", "--list", "--json", "--folder", str(tmp_path)]) == 0
    listed = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert listed["one"] == {"name": "one", "about": "First.", "runs_here": True}
    assert main(["bench", "one", "three", "--json", "--folder", str(tmp_path)]) == 1
    assert json.loads(capfd.readouterr().out) == {"one": 0, "three": 1}


def test_give_a_benchmark_its_own_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guard = 'if __name__ == "__main__":\n    import sys\n    print(sys.argv[1:])\n'
    (tmp_path / "one.py").write_text(f'"""First."""\n{guard}')
    (tmp_path / "two.py").write_text(f'"""Second."""\n{guard}')
    assert main(["bench", "--folder", str(tmp_path), "one", "--tune", "--seconds", "60"]) == 0
    assert "['--tune', '--seconds', '60']" in capfd.readouterr().out
    assert main(["bench", "--folder", str(tmp_path), "one", "two", "--tune"]) == 1
    assert "one benchmark before them" in capfd.readouterr().err


def test_list_kernels_and_pictures_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--list", "--json"]) == 0
    assert any("act_gelu" in name for name in json.loads(capsys.readouterr().out))
    (tmp_path / "run.jsonl").write_text('{"step": 1, "train_loss": 2.0}\n{"step": 2, "train_loss": 1.0}\n')
    out = tmp_path / "plot.png"
    assert main(["plot", str(tmp_path / "run.jsonl"), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == str(out)


def test_say_where_benchmarks_are_when_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--folder", str(tmp_path)]) == 1
    assert "checkout" in capsys.readouterr().err


def test_keep_the_search_path_as_it_was(model_file: Path) -> None:
    before = list(sys.path)
    assert main(["explain", f"{model_file}:build", "--input", "float32[4,16]", "--json"]) == 0
    assert sys.path == before


def test_raise_no_alarm_over_a_missing_model_package() -> None:
    from s24compile.cli.load import load_model

    with pytest.raises(ModelError, match="installed"):
        load_model("s24_no_such_package:build")
