"""How tables of results grow: row by row, over calls and days."""

from __future__ import annotations

import json

from benchmarks import record


def rows_of(path):
    return [(row["layer"], row["gradient"], row["ms"]) for row in json.loads(path.read_text())["rows"]]


def test_put_a_row_in_place_of_the_one_that_it_renews(tmp_path):
    first = [{"layer": "a", "gradient": "mvue", "ms": 1}, {"layer": "b", "gradient": "mvue", "ms": 2}]
    path = record.add_rows("table", first, ("layer", "gradient"), tmp_path)
    assert rows_of(path) == [("a", "mvue", 1), ("b", "mvue", 2)]
    more = [{"layer": "b", "gradient": "dense", "ms": 3}, {"layer": "a", "gradient": "mvue", "ms": 4}]
    assert record.add_rows("table", more, ("layer", "gradient"), tmp_path) == path
    assert rows_of(path) == [("a", "mvue", 4), ("b", "mvue", 2), ("b", "dense", 3)]


def test_say_of_each_row_when_and_on_what_it_was_measured(tmp_path, monkeypatch):
    record.add_rows("table", [{"layer": "a"}], ("layer",), tmp_path)
    monkeypatch.setattr(record, "circumstances", lambda: {"date": "2099-01-01", "device": "H999", "torch": "3.0"})
    path = record.add_rows("table", [{"layer": "b"}], ("layer",), tmp_path)
    told = json.loads(path.read_text())
    assert [row["layer"] for row in told["rows"]] == ["a", "b"]
    assert [row["device"] == "H999" for row in told["rows"]] == [False, True]
    assert told["date"] == "2099-01-01"


def test_date_rows_that_were_written_without(tmp_path):
    record.write("table", {"date": "2020-02-02", "rows": [{"layer": "a"}]}, tmp_path)
    path = record.add_rows("table", [{"layer": "b"}], ("layer",), tmp_path)
    dates = [row["date"] for row in json.loads(path.read_text())["rows"]]
    assert dates == ["2020-02-02", record.circumstances()["date"]]
