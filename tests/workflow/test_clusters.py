"""docs/clusters.md: the manifest for Kubernetes and the profiles, as far as they can be tried without a cluster."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.workflow import BIN, REPO, ended, environment

from usbpo.experiment.yaml_files import read_yaml

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


@pytest.fixture
def hopper(tmp_path: Path) -> Path:
    """A folder with the experiment that the README writes."""
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    written = re.search(r"cat > (config/experiments/hopper.yaml) <<EOF\n(.*?)EOF\n", readme, flags=re.DOTALL)
    assert written, "docs/clusters.md says that the README writes it"
    (tmp_path / written[1]).parent.mkdir(parents=True)
    (tmp_path / written[1]).write_text(written[2])
    return tmp_path


def commands(said: str) -> list[str]:
    """The command lines of Snakemake in the document's blocks that hold `said`."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", DOCUMENT, flags=re.DOTALL)).replace("\\\n", "")
    return [line for line in blocks.splitlines() if "snakemake " in line and said in line]


def dry_run(line: str, folder: Path) -> str:
    """What a command line of the document says that it would do."""
    line = re.sub(r"^numactl .*?(?=snakemake)", "", line)
    line = re.sub(r"(snakemake( runs)?) ", rf"\1 --snakefile {REPO}/Snakefile --dry-run ", line, count=1)
    assert not set("$&|;<>") & set(line), "a shell would do no more than split it"
    program, *words = shlex.split(line)
    done = ended([str(BIN / program), *words], folder)
    assert done.code == 0, done.said
    return done.said


def test_the_commands_for_machines_and_sockets_plan_the_runs_that_they_name(hopper: Path) -> None:
    found = commands("only=")
    assert len(found) == 2
    for line in found:
        assert set(re.findall(r"Hopper/\w+/seed-\d", dry_run(line, hopper))) == {
            f"Hopper/usbpo/seed-{seed}" for seed in (0, 1)
        }


def test_no_command_of_the_document_lacks_its_cores_or_its_experiment() -> None:
    for line in re.findall(r"snakemake runs .*", DOCUMENT.replace("\\\n", "")):
        assert {"--nolock", "--cores", "--configfile"} <= set(line.split()), line


def test_the_cure_for_clusters_without_gpus_names_all_rules_that_ask_for_one() -> None:
    rules = "\n".join(path.read_text(encoding="utf-8") for path in (REPO / "workflow/rules").glob("*.smk"))
    asking = {text.split(":", 1)[0] for text in rules.split("\nrule ")[1:] if re.search(r"^ +gpu=", text, re.MULTILINE)}
    assert "phase1" in asking
    (line,) = commands("--set-resources")
    profile = (REPO / "profiles/slurm/config.yaml").read_text(encoding="utf-8")
    (commented,) = re.findall(r"^# (set-resources: .*)$", profile, flags=re.MULTILINE)
    wanted = {f"{rule}:gpu=0" for rule in asking}
    assert set(line.split("--set-resources ")[1].split()) == wanted
    assert set(yaml.safe_load(commented)["set-resources"]) == wanted


@pytest.mark.parametrize("arguments", [["--set-resources"], ["--workflow-profile"]], ids=["typed", "in the profile"])
def test_snakemake_takes_the_cure_also_where_no_method_has_a_trigger(arguments: list[str], hopper: Path) -> None:
    (line,) = commands("--set-resources")
    words = line.split("--set-resources ")[1].split()
    if arguments == ["--workflow-profile"]:
        (hopper / "profile").mkdir()
        (hopper / "profile/config.yaml").write_text(yaml.safe_dump({"set-resources": words}))
        words = [str(hopper / "profile")]
    said = dry_run(
        shlex.join(["snakemake", *arguments, *words, "--configfile", "config/experiments/hopper.yaml"]), hopper
    )
    assert "phase1: maximum likelihood for Hopper/usbpo/seed-0" in said


@pytest.mark.parametrize("name", ["slurm", "cluster"])
def test_a_profile_for_clusters_sets_what_the_default_one_sets(name: str) -> None:
    default, profile = (read_yaml(REPO / f"profiles/{of}/config.yaml") for of in ("default", name))
    del default["report-metadata"]
    assert {key: profile[key] for key in default} == default
