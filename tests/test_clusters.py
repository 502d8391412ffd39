"""docs/clusters.md: the manifest for Kubernetes and the profiles, as far as they can be tried without a cluster."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from workflow_tools import REPO, environment

from usbpo.config import read_yaml

DOCUMENT = (REPO / "docs/clusters.md").read_text(encoding="utf-8")


def test_the_command_of_the_manifest_plans_one_run(tmp_path: Path) -> None:
    manifest = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL)[0])
    pod = manifest["spec"]["template"]["spec"]
    shell, flag, script = pod["containers"][0]["command"]
    (tmp_path / "config/experiments").mkdir(parents=True)
    content = {"experiment": "hopper", "tasks": ["Hopper"], "methods": ["usbpo"], "seeds": [0, 1], "steps": 1000}
    (tmp_path / "config/experiments/hopper.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [shell, flag, script.replace(" --config ", f" --snakefile {REPO}/Snakefile --dry-run --config ", 1)],
        cwd=tmp_path,
        env=environment(JOB_COMPLETION_INDEX="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"Hopper/usbpo/seed-\d", done.stdout)) == {"Hopper/usbpo/seed-1"}
    assert pod["restartPolicy"] == "OnFailure", "a pod that was killed begins again, and goes on"
    assert manifest["spec"]["completions"] == script.count("Hopper/usbpo/seed-")


@pytest.mark.parametrize("name", ["slurm", "cluster"])
def test_a_profile_for_clusters_sets_what_the_default_one_sets(name: str) -> None:
    default, profile = (read_yaml(REPO / f"profiles/{of}/config.yaml") for of in ("default", name))
    del default["report-metadata"]
    assert {key: profile[key] for key in default} == default
