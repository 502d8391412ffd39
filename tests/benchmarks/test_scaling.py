"""benchmarks/scaling.py: what it prints is of stages that do nothing, and of the experiment that it names."""

import re
import subprocess
import sys
from pathlib import Path

from helpers.workflow import REPO, Ended, environment

from usbpo.experiment.plan import Plan


def scaling(*arguments: str, **changes: str) -> Ended:
    """Run the benchmark; `changes` are variables of the environment."""
    words = [sys.executable, str(REPO / "benchmarks/scaling.py"), *arguments]
    variables = environment(PYTHONPATH=str(REPO), **changes)
    done = subprocess.run(words, env=variables, capture_output=True, text=True, cwd=REPO, timeout=600)
    return Ended(done.returncode, done.stdout + done.stderr)


def test_a_sample_runs_stages_that_do_nothing() -> None:
    done = scaling("run", "--cycles", "1")
    assert done.code == 0, done.said
    assert re.match(r"Hopper/usbpo, run: \d+ jobs, .* ms a job", done.said)
    assert "data files" in done.said


def test_a_sample_of_real_stages_is_no_measurement(tmp_path: Path) -> None:
    """A `usbpo` that bash finds before the stub writes files that are not empty."""
    (tmp_path / "profile").write_text(REAL)
    done = scaling("run", "--cycles", "1", BASH_ENV=str(tmp_path / "profile"))
    assert done.code == 1
    assert re.search(r"scaling: data/runs/Hopper/usbpo/seed-0/\S+ is not empty: .* measurement is void\.$", done.said)


REAL = """
usbpo() {
  for word in "$@"; do
    case "$word" in data/*.*) [ -e "$word" ] || echo real > "$word" ;; esac
  done
}
"""


def test_the_experiment_is_one_that_can_be_planned(tmp_path: Path) -> None:
    file = tmp_path / "scaling.yaml"
    file.write_text(scaling("experiment").said, encoding="utf-8")
    plan = Plan.named(str(file))
    assert len(plan.cycles) == 960
    assert len({run.method for run in plan.cycles}) == 8
