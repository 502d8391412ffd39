"""`usbpo usage`: what runs have taken, from the logs of their stages alone."""

import csv
from pathlib import Path

import pytest
from helpers.workflow import CYCLES, MBPO, USBPO, finished_workspace

from usbpo.commands import cli

LINE = "{}: took {} s{}, {} s of CPU, at most {} MiB of memory\n"


def put(root: Path, place: str, text: str) -> None:
    path = root / f"data/runs/Hopper/mbpo/seed-7/logs/{place}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_job_of_real_runs_is_counted(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = finished_workspace(tmp_path_factory)
    assert cli.main(["usage", "--folder", str(finished), "--output", str(tmp_path / "usage.csv")]) == 0
    told = rows(tmp_path / "usage.csv")
    assert {f"{row['task']}/{row['method']}/seed-{row['seed']}" for row in told} == {USBPO, MBPO}
    for run in (USBPO, MBPO):
        of_run = [row for row in told if f"/{row['method']}/" in run]
        assert sum(int(row["jobs"]) for row in of_run) == len([*(finished / "data/runs" / run).glob("logs/*/*.log")])
        assert next(int(row["jobs"]) for row in of_run if row["stage"] == "policy") == CYCLES
        assert ("phase2" in {row["stage"] for row in of_run}) == (run == USBPO)
        seconds = [float(row["cpu_seconds"]) for row in of_run]
        assert sum(seconds) > 0
        assert seconds == sorted(seconds, reverse=True)
        assert all(50 < int(row["memory_mib"]) < 5000 for row in of_run)
    said = capsys.readouterr().out
    assert USBPO in said
    assert MBPO in said


def test_jobs_are_added_up_by_stage_and_only_those_that_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "00001/policy", "2500 updates\n" + LINE.format("policy", "60.25", " on 2 threads", "100.50", 300))
    put(tmp_path, "00002/policy", LINE.format("policy", "30.50", "", "30.25", 412))
    put(tmp_path, "00003/policy", "Traceback (most recent call last):\nRuntimeError: no\n")
    put(tmp_path, "00001/phase1", LINE.format("phase1", "3540.00", "", "3500.00", 100))
    put(tmp_path, "blocks/00000", LINE.format("block", "0.01", "", "0.01", 99) + "\n")
    put(tmp_path, "00002/phase1", LINE.format("phase1", "oh", "", "3500.00", 100))
    put(tmp_path, "00003/phase1", "")
    words = ["usage", "Hopper/mbpo/seed-7", "--folder", str(tmp_path), "--output", str(tmp_path / "out.csv")]
    assert cli.main(words) == 0
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "task,method,seed,stage,jobs,clock_seconds,cpu_seconds,memory_mib",
        "Hopper,mbpo,7,phase1,1,3540.0,3500.0,100",
        "Hopper,mbpo,7,policy,2,90.75,130.75,412",
        "Hopper,mbpo,7,block,1,0.01,0.01,99",
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert "Hopper/mbpo/seed-7 4 1 h 01 min 1 h 01 min 412 MiB phase1 96%, policy 4%, block 0%" in said


def test_runs_without_logs_are_told_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data/runs/Hopper/mbpo/seed-7/00000").mkdir(parents=True)
    assert cli.main(["usage", "--folder", str(tmp_path), "--output", str(tmp_path / "out.csv")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("usbpo usage: no log of these runs says what a stage took; ")
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out.csv").exists()
