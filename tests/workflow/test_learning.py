"""USB-PO learns InvertedPendulum at the settings of the paper: the science behind `make`, run in full."""

import subprocess
import sys
from pathlib import Path

import h5py
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_usbpo_balances_the_pendulum_within_2500_steps_with_three_seeds(tmp_path: Path) -> None:
    experiment = tmp_path / "seeds.yaml"
    experiment.write_text(
        "{experiment: seeds, tasks: [InvertedPendulum], methods: [usbpo], seeds: [0, 1, 2], steps: 2500}"
    )
    snakemake = Path(sys.executable).parent / "snakemake"
    command = [snakemake, "--snakefile", REPOSITORY / "Snakefile", "--directory", tmp_path, "--cores", "2"]
    subprocess.run([*command, "--configfile", experiment], check=True)
    for seed in (0, 1, 2):
        with h5py.File(tmp_path / f"data/runs/InvertedPendulum/usbpo/seed-{seed}/00010/evaluation.h5") as file:
            assert file["returns"][()].mean() >= 950, f"seed {seed}"
