"""What is said and to whom: nothing by default, sentences and graphs to TORCH_LOGS, artifacts to TORCH_TRACE."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
TRAIN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.odd_up, self.odd_down = nn.Linear(16, 30), nn.Linear(30, 16)

    def forward(self, x):
        x = self.down(nn.functional.gelu(self.up(x)))
        return self.odd_down(nn.functional.gelu(self.odd_up(x)))

net = Net()
compiled = torch.compile(net, backend="s24", options={"inner": INNER})
compiled(torch.randn(8, 16)).sum().backward()
"""


def run(tmp_path: Path, inner: str = "aot_eager", **environment: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(TRAIN.replace("INNER", repr(inner)))
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, str(script)]
    return subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)


def test_print_nothing_unless_asked(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


def test_log_each_layer_and_its_reason_with_torch_logs(tmp_path: Path) -> None:
    said = run(tmp_path, TORCH_LOGS="s24compile").stderr
    assert "gelu 16 -> 64 -> 16 rewritten (script.py:" in said
    assert "30" in said
    assert "multiple of 4" in said
    assert "captured:" not in said, "graphs are for +s24compile"


def test_log_every_graph_on_its_way_with_plus_s24compile(tmp_path: Path) -> None:
    said = run(tmp_path, TORCH_LOGS="+s24compile").stderr
    for stage in ("captured:", "after canonicalize", "after rewrite", "lowered for cpu"):
        assert stage in said
    assert "= s24.linear(" in said


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_trace_the_graph_of_each_stage(inner: str, tmp_path: Path) -> None:
    run(tmp_path, inner, TORCH_TRACE=str(tmp_path / "trace"), TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    (log,) = (tmp_path / "trace").glob("*.log")
    artifacts = dict(read_artifacts(log))
    assert [name for name in artifacts if name.startswith("s24_")] == [
        "s24_captured", "s24_rewritten", "s24_forward_lowered", "s24_backward_lowered",
    ]  # fmt: skip
    assert "s24." not in artifacts["s24_captured"]
    assert "= s24.linear(" in artifacts["s24_rewritten"]
    assert "= s24.mm" in artifacts["s24_forward_lowered"]
    assert "s24.mvue_pack" in artifacts["s24_backward_lowered"]
    assert "# reference" in artifacts["s24_backward_lowered"], "no provider is shown"


def read_artifacts(log: Path) -> list[tuple[str, str]]:
    """(name, text) of the artifacts in a structured trace: a line of JSON, then the text behind tabs."""
    found: list[tuple[str, str]] = []
    wanted = False
    for line in log.read_text().splitlines():
        if line.startswith("\t"):
            if wanted:
                name, text = found[-1]
                found[-1] = (name, text + line.removeprefix("\t") + "\n")
            continue
        told: dict[str, Any] = json.loads(line[line.index("{") :])
        wanted = "artifact" in told
        if wanted:
            found.append((told["artifact"]["name"], ""))
    return found


def test_leave_the_root_logger_and_its_handlers_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = list(logging.getLogger().handlers)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    with caplog.at_level(logging.INFO, logger="s24compile"):
        torch.compile(net, backend="s24", options={"inner": "eager"})(torch.randn(2, 8))
    assert logging.getLogger().handlers == before
    assert any("gelu 8 -> 16 -> 8 rewritten" in record.getMessage() for record in caplog.records)
    assert not logging.getLogger("s24compile").handlers
