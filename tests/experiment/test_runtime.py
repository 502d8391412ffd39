"""Time limits of stages: they grow with the data, and lie well above what stages are calculated to take."""

import pytest
from helpers.workflow import FOLDERS

from usbpo.experiment import runtime
from usbpo.experiment.loading import load_run
from usbpo.experiment.run import Run
from usbpo.experiment.sizes import Sizes

STAGES = ("block", "collect", "evaluate", "initialise", "phase1", "phase2", "policy", "rollout", "theory", "triggered")


def run_of(task: str, method: str = "usbpo") -> Run:
    return Run(task, method, 0, load_run(task, method, FOLDERS))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_limit_that_never_shrinks(stage: str) -> None:
    limits = [run_of("HumanoidTruncated").minutes(stage, cycle) for cycle in (1, 10, 100, 1000)]
    assert limits == sorted(limits)
    assert all(limit >= 10 and limit % runtime.STEP == 0 for limit in limits)


def test_late_trainings_get_more_time_than_early_ones() -> None:
    run = run_of("Hopper")
    assert run.minutes("phase1", 500) > run.minutes("phase1", 10)


def test_an_environment_that_cannot_be_made_is_left_to_the_stage_to_report() -> None:
    run = run_of("Hopper")
    broken = run.config.model_copy(update={"environment": run.config.environment.model_copy(update={"id": "None-v0"})})
    assert Run("Hopper", "usbpo", 0, broken).minutes("policy", 10) == runtime.STEP


@pytest.mark.parametrize(
    ("stage", "cycle", "measured"),
    # Seconds on one busy core (docs/performance.md): 5,000 updates of 9.2 ms; 5,000 rows of real steps.
    [("policy", 100, 46.0), ("collect", 0, 1.0)],
)
def test_limits_are_several_times_what_was_measured(stage: str, cycle: int, measured: float) -> None:
    run = run_of("Hopper")
    assert runtime.seconds(Sizes(run.config, run.schedule, 11, 3), stage, cycle) > 2 * measured


def test_a_stage_that_does_not_exist_has_no_limit() -> None:
    run = run_of("Hopper")
    with pytest.raises(ValueError, match="no stage paint"):
        runtime.seconds(Sizes(run.config, run.schedule, 11, 3), "paint", 1)
