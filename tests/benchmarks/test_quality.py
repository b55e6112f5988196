"""The harness that measures what recipes cost in loss: its text, its runs, its tables, at toy sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.quality import corpus as corpora
from benchmarks.quality import report, results
from benchmarks.quality import run as runner
from benchmarks.quality.narrow import keep, step_ms, width_of_time
from benchmarks.quality.plan import Plan
from benchmarks.quality.sizes import SIZES
from benchmarks.quality.training import Run
from benchmarks.quality.variants import BASIC, VARIANTS, variant
from s24compile.config import Config
from s24compile.errors import CheckpointError, ModelError, OptionError

PACKAGE = Path(corpora.__file__).parents[2] / "s24compile"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    corpora.build(out, roots=[PACKAGE], least=100_000, one_in=10)
    return out


@pytest.fixture(scope="module")
def corpus(folder):
    return corpora.load(folder)


def plan_of(name, steps=24, **more):
    more = {"window": 4, "validate_every": 8, "inner": "aot_eager"} | more
    return Plan("toy", SIZES["toy"], variant(name), steps, **more)


def test_read_each_text_once_and_hold_out_whole_files(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for i in range(300):
        (root / f"{i:03}.py").write_text("".join(f"line_{i} = {j}\n" for j in range(40)))
        (root / f"copy_{i:03}.py").write_text((root / f"{i:03}.py").read_text())
    (root / "binary.py").write_bytes(b"\0\xff" * 500)
    (root / "minified.txt").write_text("x" * 5000)
    found = corpora.build(tmp_path / "out", roots=[root], least=1000, one_in=20)
    assert found.description["files"] == 300
    texts = [bytes(part.tolist()).decode() for part in (found.train, found.validation)]
    names = [{line.split()[0] for line in text.replace("\0", "").splitlines()} for text in texts]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 300
    again = corpora.build(tmp_path / "again", roots=[root], least=1000, one_in=20)
    assert torch.equal(again.validation, found.validation)
    assert again.description == found.description


def test_encode_by_bpe_and_read_back(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="BPE corpora need the tokenizers package")
    made = corpora.build(tmp_path, roots=[PACKAGE], least=100_000, one_in=10, vocabulary=600)
    read = corpora.load(tmp_path)
    assert torch.equal(made.train, read.train)
    assert read.vocabulary == 640, "padded to a multiple of 64"
    assert read.train.dtype == torch.int16
    assert 0 <= int(read.train.min()) <= int(read.train.max()) < 600
    text = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).decode(read.train[:200].tolist())
    assert '"""' in text or "import" in text


def test_refuse_too_little_text_and_a_missing_corpus(tmp_path):
    with pytest.raises(ModelError, match="100000000 bytes are needed"):
        corpora.build(tmp_path / "x", roots=[PACKAGE / "training"])
    with pytest.raises(ModelError, match="out of range"):
        corpora.build(tmp_path / "x", roots=[PACKAGE], vocabulary=40_000)
    with pytest.raises(ModelError, match="no corpus"):
        corpora.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", list(VARIANTS))
def test_ask_for_legal_options_in_every_variant(name):
    found = variant(name)
    options = found.config_options(600)
    if options is None:
        return
    config = Config.from_options(options)
    assert config.dense_from == (None if found.tail == 0 else 600 - round(600 * found.tail))
    assert found.hidden == 1.0, "a recipe is compared at full width"


def test_name_the_variants_that_exist():
    assert set(BASIC) <= set(VARIANTS)
    assert variant("narrow=1536").hidden_width(2048) == 1536
    assert variant("half").hidden_width(2048) == 1024
    for wrong in ("fsst", "narrow=", "narrow=0"):
        with pytest.raises(OptionError, match=wrong.rstrip("=0")):
            variant(wrong)


@pytest.mark.parametrize("name", ["dense", "half", "fst", "ste-mvue-dx", "sste", "srste", "step", "fst-l10-head1/6"])
def test_train_each_kind_of_variant(name, corpus, tmp_path, device):
    run = Run(plan_of(name), corpus, tmp_path, device)
    run.start()
    lines = list(run.windows())
    assert [line["step"] for line in lines] == list(range(4, 25, 4))
    assert all(set(line) >= {"train_loss", "step_ms", "warm", "sparse"} for line in lines)
    rates = [line["step_flip_rate"] for line in lines]  # in dense runs too; the last steps are too small to flip much
    assert all(0 <= rate < 0.5 for rate in rates), rates
    assert rates[0] > 0
    assert [line["step"] for line in lines if "validation_loss" in line] == [8, 16, 24]
    assert lines[-1]["validation_loss"] < 5.6, "uniform bytes cost 5.55"
    expected = {
        "dense": [False] * 6,
        "half": [False] * 6,
        "fst": [True] * 5 + [False],
        "step": [False] * 3 + [True] * 3,
        "fst-l10-head1/6": [False] + [True] * 4 + [False],
    }.get(name, [True] * 6)
    assert [line["sparse"] for line in lines] == expected
    changed = [i for i in range(1, 6) if expected[i] != expected[i - 1]]
    assert [i for i, line in enumerate(lines) if not line["warm"]] == [0, *changed], "windows with a compilation"
    hidden = {parameter.shape[0] for n, parameter in run.model.named_parameters() if n.endswith("c_fc.weight")}
    assert hidden == {64 if name == "half" else 128}
    assert ("flip_rate" in lines[-1]) == (name in ("sste", "ste-mvue-dx", "srste", "step", "fst-l10-head1/6"))


@pytest.mark.parametrize("name", ["relu2-dense", "activation"])
def test_train_with_2_4_hidden_states(name, corpus, tmp_path, device):
    plan = plan_of(name)
    if name == "activation":
        options = {**plan.variant.options, "dense_until": 8}  # instead of 300, of 24 steps
        plan = dataclasses.replace(plan, variant=dataclasses.replace(plan.variant, options=options))
    run = Run(plan, corpus, tmp_path, device)
    run.start()
    lines = list(run.windows())
    sparse = name == "activation"
    assert [line["sparse"] for line in lines] == [False, False, *[sparse] * 4]
    assert [("dropped" in line) for line in lines] == [line["sparse"] for line in lines]
    assert all(0 < line["nonzero"] < 1 for line in lines if line["sparse"])
    assert lines[-1]["validation_loss"] < 5.6, "uniform bytes cost 5.55"


def test_see_the_same_batches_whatever_the_variant_draws(corpus, tmp_path, device):
    losses = []
    for name in ("dense", "ste-mvue-dx"):
        run = Run(plan_of(name), corpus, tmp_path, device)
        with torch.no_grad():
            run.model.lm_head.weight.zero_()  # uniform logits: the loss is the same for all, the batch is not
        seen = []
        run._loss = lambda part, places, seen=seen, plain=run._loss: seen.append(places) or plain(part, places)
        for _ in range(3):
            run.train_step()
        losses.append(torch.stack(seen))
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", ["fst", "ste-mvue-dx", "step", "fst-l1-no-mvue"])
def test_go_on_bitwise_where_the_budget_ended(name, corpus, tmp_path):
    device = "cpu"  # on a GPU the embedding's gradient adds up in any order
    whole = Run(plan_of(name), corpus, tmp_path / "whole", device)
    whole.start()
    lines = list(whole.windows())
    cut = Run(plan_of(name), corpus, tmp_path / "cut", device)
    cut.start()
    for line in cut.windows():
        if line["step"] == 12:
            cut.save()
        if line["step"] == 16:
            break  # killed: what came after the checkpoint was written, and is written again
    resumed = Run(plan_of(name), corpus, tmp_path / "cut", device)
    resumed.start()
    assert resumed.step == 12
    list(resumed.windows())
    read = [json.loads(line) for line in resumed.file.read_text().splitlines()[1:]]
    for field in ("step", "train_loss", "sparse", "validation_loss", "flip_rate", "step_flip_rate"):
        assert [line.get(field) for line in read] == [line.get(field) for line in lines], field
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_refuse_the_checkpoint_of_another_plan(corpus, tmp_path, device):
    run = Run(plan_of("fst"), corpus, tmp_path, device)
    run.start()
    next(run.windows())
    run.save()
    other = Run(dataclasses.replace(plan_of("fst"), window=3), corpus, tmp_path, device)
    with pytest.raises(CheckpointError, match="another plan"):
        other.start()


def test_train_in_slices_and_report(folder, tmp_path, capsys, monkeypatch):
    words = ["--size", "toy", "--steps", "40", "--corpus", str(folder), "--out", str(tmp_path / "runs")]
    words += ["--inner", "aot_eager", "--variants", "dense,half,ste"]
    assert runner.main([*words, "--budget-s", "0"]) == 3
    clock = iter(range(10_000))
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(next(clock)))
    slices = 1
    while runner.main([*words, "--budget-s", "4"]) == 3:
        slices += 1
        assert slices < 20, "a slice has no effect"
    assert slices > 2
    assert not list((tmp_path / "runs").glob("*.pt")), "finished runs need no checkpoint"
    monkeypatch.undo()
    finished = results.read(tmp_path / "runs")
    assert len(finished) == 3
    monkeypatch.setattr(
        "sys.argv", ["report", "--folder", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    )
    capsys.readouterr()
    report.main()
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in ("dense", "half", "ste"))
    document = json.loads((tmp_path / "results" / "quality.json").read_text())
    rows = {row["variant"]: row for row in document["tables"][0]["rows"]}
    assert rows["dense"]["gap"] == 0.0
    assert rows["dense"]["time_of_dense"] == 1.0
    assert (rows["ste"]["ends_sparse"], rows["half"]["hidden"]) == (True, 64)
    picture = tmp_path / "results" / document["tables"][0]["picture"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_deal_runs_out_to_processes(folder, tmp_path):
    words = ["--size", "toy", "--steps", "20", "--corpus", str(folder), "--out", str(tmp_path), "--inner", "eager"]
    assert runner.main([*words, "--variants", "dense", "--seeds", "2", "--share", "2", "--budget-s", "300"]) == 0
    names = [result.name for members in results.tables(results.read(tmp_path)).values() for result in members]
    assert sorted(names) == ["dense", "dense (seed 2)"]


def line_of(step, step_ms, *, sparse, warm=True, **more):
    return {"step": step, "train_loss": 1.0, "step_ms": step_ms, "sparse": sparse, "warm": warm, **more}


def test_name_devices_as_the_caller_restricted_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [runner.visible_device(gpu) for gpu in (0, 1)] == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert runner.visible_device(1) == "1"


HEADER = {
    "share": 1,
    "plan": {"size_name": "toy", "seed": 1, "variant": {"name": "fst"}},
    "hidden": 128,
    "parameters": 1000,
    "options": {"recipe": "fst", "decay": 0.1, "dense_after": 30},
    "device": "GPU",
}


def test_take_step_times_from_elsewhere_where_the_gpu_was_shared():
    lines = [line_of(10, 99.0, sparse=True), line_of(20, 77.0, sparse=False, validation_loss=1.0)]
    shared = {**HEADER, "share": 3}
    blind = results.Result(shared, lines)
    assert blind.step_ms(sparse=True) is None
    assert blind.clock() is None
    assert blind.row(blind)["time_of_dense"] is None
    times = {
        ("toy", 128, '{"recipe": "fst"}', "GPU"): 20.0,
        ("toy", 128, "", "GPU"): 30.0,
        ("toy", 64, "", "GPU"): 1.0,
    }
    assert results.Result(shared, lines, times).clock() == pytest.approx([0.2, 0.5])


def test_compare_runs_of_several_gpus_on_the_clock_of_one():
    here = {**HEADER, "device": "GPU", "cuda": "13.0", "corpus": {"sha256": "0" * 64}}
    there = {**here, "device": "bigger GPU", "plan": {**here["plan"], "steps": 20}}
    here["plan"] = {**there["plan"], "variant": {"name": "dense"}}
    here["options"] = None
    lines = [line_of(10, 99.0, sparse=False), line_of(20, 77.0, sparse=False, validation_loss=1.0)]
    times = {("toy", 128, "", "GPU"): 30.0, ("toy", 128, "", "bigger GPU"): 1.0}
    both = [results.Result(there, lines, times), results.Result(here, lines, times)]
    (members,) = results.tables(both).values()
    assert [result.clock() for result in members] == [pytest.approx([0.3, 0.6])] * 2
    assert results.Result(there, lines, {}, "GPU").step_ms(sparse=False) is None
    on_cpu = results.Result({**here, "cuda": None}, lines)
    assert len(results.tables([*both, on_cpu])) == 2


def test_count_no_compilation_as_time_of_training():
    lines = [
        line_of(10, 900.0, sparse=True, warm=False),
        line_of(20, 10.0, sparse=True),
        line_of(30, 20.0, sparse=True),  # mask searches
        line_of(40, 700.0, sparse=False, warm=False),
        line_of(50, 30.0, sparse=False, validation_loss=1.0),
    ]
    result = results.Result(HEADER, lines)
    assert (result.step_ms(sparse=True), result.step_ms(sparse=False)) == (15.0, 30.0)
    assert result.clock() == pytest.approx([0.15, 0.30, 0.45, 0.75, 1.05])


@pytest.mark.parametrize(("wanted", "width"), [(9.9, 960), (10.0, 1024), (5.0, 384), (0.1, 64), (99.0, 2048)])
def test_find_the_width_of_a_step_time(wanted, width):
    asked = []
    assert width_of_time(wanted, lambda hidden: asked.append(hidden) or 2.0 + hidden / 128, 2048) == width
    assert len(asked) <= 7


def test_measure_a_step_and_keep_its_time(corpus, device, tmp_path):
    speed, milliseconds = step_ms(plan_of("ste", steps=12), corpus, device)
    assert milliseconds > 0
    assert speed[:2] == ("toy", 128)
    keep({speed: 5.0, ("toy", 64, "", "GPU"): 7.0}, tmp_path / "times.json")
    keep({speed: milliseconds}, tmp_path / "times.json")
    assert results.read_times(tmp_path / "times.json") == {speed: milliseconds, ("toy", 64, "", "GPU"): 7.0}
