"""A run whose warm worker is killed or stopped in the middle goes on to the same bytes, with a worker again."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from helpers.workflow import MBPO, at_work_in, command, environment, finished_workspace, tree, wait_for


def worker_in(folder: Path) -> psutil.Process | None:
    """The warm worker that serves the stages in a folder, once it serves."""
    log = folder / ".snakemake" / "usbpo-worker.log"
    if not log.exists() or "export " not in log.read_text():
        return None
    named = [process for process in at_work_in(folder) if "usbpo.worker.warm" in " ".join(process.cmdline())]
    return min(named, key=psutil.Process.create_time, default=None)  # the stages are its children


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_outlives_its_worker(
    number: signal.Signals, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = tree(finished_workspace(tmp_path_factory))
    run = f"data/runs/{MBPO}"
    words = command(tmp_path, "runs", "--cores", "1", "--config", f"only=[{MBPO}]")
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(words, env=environment(), cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)
    with process:
        wait_for(lambda: (tmp_path / run / "logs/00001").exists(), 300, "cycle 1")
        wait_for(lambda: worker_in(tmp_path) is not None, 60, "a worker")
        worker = worker_in(tmp_path)
        assert worker
        worker.send_signal(number)
        assert process.wait(300) == 0, (tmp_path / "said").read_text()
    made = {name: digest for name, digest in tree(tmp_path).items() if name.startswith(run)}
    assert made == {name: digest for name, digest in whole.items() if name.startswith(run)}
    # One more worker where the first was lost; one that was stopped in the middle of a stage may simply have gone on.
    served = (tmp_path / ".snakemake/usbpo-worker.log").read_text().count("export ")
    assert served in ((2,) if number == signal.SIGKILL else (1, 2))
