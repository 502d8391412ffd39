"""Temporary rollouts: deleted once they are read, and the run the same as with all of them, also when it goes on."""

from pathlib import Path

import pytest
import yaml
from workflow_tools import FOLDERS, REPO, RESULTS, Job, copied, planned, snakemake, tree

from usbpo.config import read_yaml
from usbpo.layout import ROLLOUTS
from usbpo.plan import Plan

METHODS = ["test-usbpo", "test-cmlo"]
RUNS = [f"test-pendulum/{method}/seed-0" for method in METHODS]
CONTENT = {"experiment": "e", "tasks": ["test-pendulum"], "methods": METHODS, "seeds": [0], "steps": 90}


def experiment(folder: Path, rollouts: str) -> Path:
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, "rollouts": rollouts}))
    return path


def rollouts_of(made: dict[str, str]) -> set[str]:
    return {name for name in made if name.endswith("rollouts.h5")}


def without_rollouts(made: dict[str, str]) -> dict[str, str]:
    return {name: sha for name, sha in made.items() if name not in rollouts_of(made)}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The experiment with rollouts kept and with temporary ones, run to the end; not to be changed."""
    made = {}
    for way in ("keep", "temporary"):
        made[way] = tmp_path_factory.mktemp(way)
        ended = snakemake(made[way], experiment=experiment(made[way], way))
        assert ended.code == 0, ended.said
    return made


@pytest.fixture
def workspace(both: dict[str, Path], tmp_path: Path) -> Path:
    return copied(both["temporary"], tmp_path / "workspace")


@pytest.mark.xdist_group("retention")
def test_only_the_rollouts_that_the_next_cycle_needs_stay_and_all_else_is_the_same(both: dict[str, Path]) -> None:
    kept, temporary = tree(both["keep"]), tree(both["temporary"])
    assert without_rollouts(temporary) == without_rollouts(kept)
    assert rollouts_of(temporary) == {f"data/runs/{run}/{cycle:05d}/rollouts.h5" for run in RUNS for cycle in (2, 3)}
    assert {name: kept[name] for name in rollouts_of(temporary)} == {
        name: temporary[name] for name in rollouts_of(temporary)
    }


@pytest.mark.xdist_group("retention")
def test_nothing_is_to_be_done_again_and_a_deleted_evaluation_is_one_job(workspace: Path) -> None:
    given = {"experiment": workspace / "e.yaml"}
    assert planned(workspace, **given) == set()
    (workspace / f"data/runs/{RUNS[0]}/00002/evaluation.h5").unlink()
    assert planned(workspace, **given) == RESULTS | {Job("evaluate", RUNS[0], 2)}


@pytest.mark.xdist_group("retention")
def test_a_longer_run_goes_on_from_what_was_kept_and_a_shorter_one_asks_for_nothing(
    both: dict[str, Path], workspace: Path, tmp_path: Path
) -> None:
    given = {"experiment": workspace / "e.yaml"}
    more = ("--config", "steps=120")
    wanted = planned(workspace, *more, **given) - RESULTS
    assert {job.number for job in wanted} == {4}
    assert {Job("policy", RUNS[0], 4), Job("triggered", RUNS[1], 4)} <= wanted
    ended = snakemake(workspace, *more, **given)  # type: ignore[arg-type]
    assert ended.code == 0, ended.said
    reference = copied(both["keep"], tmp_path / "reference")
    assert snakemake(reference, *more, experiment=reference / "e.yaml").code == 0
    assert without_rollouts(tree(workspace)) == without_rollouts(tree(reference))
    assert planned(workspace, *more, **given) == set()
    assert planned(workspace, **given) <= RESULTS


@pytest.mark.slow
@pytest.mark.xdist_group("retention")
def test_a_deleted_policy_is_made_again_with_the_same_bytes(workspace: Path) -> None:
    """From the beginning of its run: what it was made from is gone."""
    before = tree(workspace)
    (workspace / f"data/runs/{RUNS[0]}/00002/policy.safetensors").unlink()
    ended = snakemake(workspace, experiment=workspace / "e.yaml")
    assert ended.code == 0, ended.said
    assert tree(workspace) == before


def test_what_shall_stay_is_the_window_of_the_next_cycle(tmp_path: Path) -> None:
    for way, expected in (("keep", [1, 2, 3]), ("temporary", [2, 3])):
        plan = Plan({**CONTENT, "rollouts": way}, source="e.yaml", folders=FOLDERS)
        for run in plan.cycles:
            named = {path for path in plan.artifacts(tmp_path) if path.endswith("rollouts.h5") and run.name in path}
            assert named == {run.path(ROLLOUTS, cycle) for cycle in expected}


@pytest.mark.parametrize("name", ["main", "thresholds", "ablations"])
def test_the_large_experiments_keep_no_rollouts(name: str) -> None:
    assert read_yaml(REPO / f"config/experiments/{name}.yaml")["rollouts"] == "temporary"
