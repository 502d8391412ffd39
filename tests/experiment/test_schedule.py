"""The schedule, worked by hand; and nothing in it depends on how long a run shall be."""

from collections.abc import Callable
from dataclasses import fields, replace
from inspect import signature

import pytest

from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.schedule import RolloutLength, Schedule


def schedule_of(config: RunConfig) -> Schedule:
    return config.cycles()


def schedule(epoch_steps: int = 1000, cycle_steps: int = 250, model_train_freq: int = 250, retain: int = 1) -> Schedule:
    return Schedule(epoch_steps, cycle_steps, model_train_freq, retain, RolloutLength(0, 0, 1, 1), model_train_freq)


TABLE = {  # G, F, a, b, x, y, retained epochs, target entropy, random steps, steps of an epoch
    "InvertedPendulum": (10, 250, 0, 0, 1, 1, 1, -0.05, 500, 250),
    "InvertedDoublePendulum": (20, 250, 0, 0, 1, 1, 1, -0.5, 500, 250),
    "Hopper": (20, 250, 20, 150, 1, 15, 1, -1.0, 5000, 1000),
    "Walker2d": (20, 250, 0, 0, 1, 1, 1, -3.0, 5000, 1000),
    "HalfCheetah": (40, 250, 0, 0, 1, 1, 1, -3.0, 5000, 1000),
    "Swimmer": (20, 250, 0, 0, 1, 1, 1, -2.0, 5000, 1000),
    "AntTruncated": (20, 250, 20, 100, 1, 25, 1, -4.0, 5000, 1000),
    "HumanoidTruncated": (20, 1000, 20, 300, 1, 25, 5, -2.0, 5000, 1000),
}


@pytest.mark.parametrize("task", TABLE)
def test_the_tasks_have_the_released_numbers(task: str, run_config: Callable[[str], RunConfig]) -> None:
    config = run_config(task)
    keys, length = config.schedule, config.schedule.rollout_length
    assert TABLE[task] == (
        config.policy.updates_per_step, keys.model_train_freq, length.start_epoch, length.end_epoch,
        length.start_length, length.end_length, keys.model_retain_epochs, config.policy.target_entropy,
        keys.random_steps, keys.epoch_steps,
    )  # fmt: skip
    assert schedule_of(config).cycle_steps == keys.model_train_freq, "the default cycle is F steps"
    assert config.model.hidden_size == (400 if task == "HumanoidTruncated" else 200)


LENGTHS: dict[str, dict[int, int]] = {  # epoch: length = floor(x + clip((epoch - a) / (b - a), 0, 1) * (y - x))
    "Hopper": {  # a = 20, b = 150, x = 1, y = 15: floor(1 + (epoch - 20) / 130 * 14)
        0: 1,  # before a
        20: 1,  # 1 + 0 / 130 * 14 = 1
        29: 1,  # 1 + 9 / 130 * 14 = 1.97
        30: 2,  # 1 + 10 / 130 * 14 = 2.08
        84: 7,  # 1 + 64 / 130 * 14 = 7.89
        85: 8,  # 1 + 65 / 130 * 14 = 8, half of the way
        149: 14,  # 1 + 129 / 130 * 14 = 14.89
        150: 15,  # 1 + 130 / 130 * 14 = 15
        400: 15,  # after b
    },
    "AntTruncated": {  # a = 20, b = 100, x = 1, y = 25: floor(1 + (epoch - 20) / 80 * 24) = floor(1 + 0.3 (epoch - 20))
        0: 1,  # before a
        20: 1,  # 1 + 0.3 * 0 = 1
        23: 1,  # 1 + 0.3 * 3 = 1.9
        24: 2,  # 1 + 0.3 * 4 = 2.2
        30: 4,  # 1 + 0.3 * 10 = 4
        53: 10,  # 1 + 0.3 * 33 = 10.9
        60: 13,  # 1 + 0.3 * 40 = 13, half of the way
        99: 24,  # 1 + 0.3 * 79 = 24.7
        100: 25,  # 1 + 0.3 * 80 = 25
        299: 25,  # after b
    },
    "HumanoidTruncated": {  # a = 20, b = 300, x = 1, y = 25: floor(1 + (epoch - 20) / 280 * 24)
        1: 1,  # before a
        20: 1,  # 1 + 0 / 280 * 24 = 1
        31: 1,  # 1 + 11 / 280 * 24 = 1.94
        32: 2,  # 1 + 12 / 280 * 24 = 2.03
        54: 3,  # 1 + 34 / 280 * 24 = 3.91
        55: 4,  # 1 + 35 / 280 * 24 = 4, an eighth of the way
        160: 13,  # 1 + 140 / 280 * 24 = 13, half of the way
        299: 24,  # 1 + 279 / 280 * 24 = 24.91
        300: 25,  # 1 + 280 / 280 * 24 = 25
        500: 25,  # after b
    },
    "InvertedPendulum": {1: 1, 59: 1},  # x = y = 1
}


@pytest.mark.parametrize(("task", "lengths"), LENGTHS.items(), ids=list(LENGTHS))
def test_rollouts_grow_with_the_epochs(
    task: str, lengths: dict[int, int], run_config: Callable[[str], RunConfig]
) -> None:
    plan = schedule_of(run_config(task))
    cycles_an_epoch = plan.epoch_steps // plan.cycle_steps
    for epoch, length in lengths.items():
        first, last = epoch * cycles_an_epoch, (epoch + 1) * cycles_an_epoch - 1
        for cycle in (max(first, 1), last):
            assert plan.epoch(cycle) == epoch
            assert plan.rollout_steps(cycle) == length


def test_growth_may_be_a_step() -> None:
    step = RolloutLength(5, 5, 1, 4)
    assert [step.at(epoch) for epoch in (0, 4, 5, 6)] == [1, 1, 4, 4]


@pytest.mark.parametrize(
    ("task", "retained"),
    [  # the last R epochs · steps of an epoch / F model updates, each of them in a cycle of its own
        ("InvertedPendulum", {1: [1], 2: [2], 7: [7]}),  # 1 · 250 / 250 = 1
        # 1 · 1,000 / 250 = 4
        ("Hopper", {1: [1], 3: [1, 2, 3], 4: [1, 2, 3, 4], 5: [2, 3, 4, 5], 500: [497, 498, 499, 500]}),
        # 1 · 1,000 / 250 = 4
        (
            "AntTruncated",
            {1: [1], 4: [1, 2, 3, 4], 5: [2, 3, 4, 5], 81: [78, 79, 80, 81], 1200: [1197, 1198, 1199, 1200]},
        ),
        # 5 · 1,000 / 1,000 = 5
        ("HumanoidTruncated", {1: [1], 5: [1, 2, 3, 4, 5], 6: [2, 3, 4, 5, 6], 300: [296, 297, 298, 299, 300]}),
    ],
)
def test_model_data_are_the_rollouts_of_the_last_epochs(
    task: str, retained: dict[int, list[int]], run_config: Callable[[str], RunConfig]
) -> None:
    plan = schedule_of(run_config(task))
    for cycle, cycles in retained.items():
        assert plan.rollout_cycles(cycle) == cycles
    assert plan.rollout_cycles(0) == []


def test_every_cycle_of_the_default_updates_the_model(run_config: Callable[[str], RunConfig]) -> None:
    plan = schedule_of(run_config("Hopper"))
    assert not plan.has_model_stages(0)
    assert all(plan.has_model_stages(cycle) for cycle in range(1, 50))
    assert [plan.model_cycles(cycle) for cycle in range(4)] == [[], [1], [2], [3]]
    assert plan.cycles(125_000) == 500


def test_shorter_cycles_keep_the_model_for_a_while() -> None:
    plan = schedule(epoch_steps=1000, cycle_steps=50, model_train_freq=250)
    assert [cycle for cycle in range(13) if plan.has_model_stages(cycle)] == [1, 6, 11]
    in_force = [plan.model_cycles(cycle) for cycle in range(13)]
    assert in_force == [[], [1], [1], [1], [1], [1], [6], [6], [6], [6], [6], [11], [11]]
    assert plan.rollout_cycles(16) == plan.rollout_cycles(20) == [1, 6, 11, 16]
    assert plan.rollout_cycles(21) == [6, 11, 16, 21]
    assert [plan.epoch(cycle) for cycle in (1, 19, 20, 39, 40)] == [0, 0, 1, 1, 2]


def test_one_retained_rollout_and_short_cycles() -> None:
    plan = schedule(epoch_steps=250, cycle_steps=125, model_train_freq=250)
    assert [plan.rollout_cycles(cycle) for cycle in range(1, 6)] == [[1], [1], [3], [3], [5]]


def test_model_data_never_lie_in_the_future() -> None:
    for plan in (schedule(), schedule(cycle_steps=50), schedule(1000, 500, 1000, 5), schedule(250, 125, 250, 2)):
        for cycle in range(1, 60):
            for kept in plan.rollout_cycles(cycle):
                assert 1 <= kept <= cycle
                assert plan.has_model_stages(kept)


def test_a_triggered_model_is_trained_in_every_cycle(run_config_of: Callable[[str, str], RunConfig]) -> None:
    """Hopper: a training at the latest after 500 steps, that is a cycle; within it a check every 20 steps."""
    plan = schedule_of(run_config_of("Hopper", "cmlo"))
    assert (plan.cycle_steps, plan.triggered, plan.check_every) == (500, True, 20)
    assert not plan.has_model_stages(0)
    assert all(plan.has_model_stages(cycle) for cycle in range(1, 60))
    assert [plan.model_cycles(cycle) for cycle in (0, 1, 30)] == [[], [1], [30]]
    assert plan.retained_updates == 4, "D_model holds as many updates as one epoch of MBPO's"
    assert plan.rollout_cycles(120) == [117, 118, 119, 120], "the last four trainings lie within four cycles"


def test_rollouts_grow_within_a_triggered_cycle(run_config_of: Callable[[str, str], RunConfig]) -> None:
    """Hopper, 1 until epoch 20, then 14 more in 130 epochs: the second step at 20 + 130/14 = 29.3, so in epoch 30."""
    plan = schedule_of(run_config_of("Hopper", "cmlo"))
    assert plan.rollout_steps_at_checks(1) == [1] * 25
    lengths = [plan.rollout_steps_at_checks(cycle) for cycle in (59, 60, 61)]
    assert lengths == [[1] * 25, [1] * 24 + [2], [2] * 25], "the check at 30,000 steps is in epoch 30"


@pytest.mark.parametrize(
    ("task", "every", "retained"),
    [("Walker2d", 20, 4), ("AntTruncated", 50, 4), ("HumanoidTruncated", 50, 5)],
)
def test_cmlo_has_the_check_interval_of_the_task_and_its_longest_interval_as_cycle(
    task: str, every: int, retained: int, run_config_of: Callable[[str, str], RunConfig]
) -> None:
    plan = schedule_of(run_config_of(task, "cmlo"))
    assert (plan.check_every, plan.cycle_steps, plan.retained_updates) == (every, 500, retained)
    assert len(plan.rollout_steps_at_checks(3)) == 500 // every


def test_sac_has_no_cycle_with_a_model(run_config_of: Callable[[str, str], RunConfig]) -> None:
    plan = schedule_of(run_config_of("Hopper", "sac"))
    assert plan.cycle_steps == 250
    assert not any(plan.has_model_stages(cycle) for cycle in range(100))
    assert plan.model_cycles(50) == plan.rollout_cycles(50) == []


def test_short_cycles_are_evaluated_at_the_first_end_after_each_interval() -> None:
    plan = replace(schedule(cycle_steps=20, model_train_freq=1000), evaluate_every=250)
    assert [cycle * 20 for cycle in range(51) if plan.evaluates(cycle)] == [0, 260, 500, 760, 1000]
    assert [plan.last_evaluation(cycle) for cycle in (0, 12, 13, 24, 25)] == [0, 0, 13, 13, 25]


def test_cycles_longer_than_the_interval_are_each_evaluated() -> None:
    plan = replace(schedule(), evaluate_every=100)
    assert all(plan.evaluates(cycle) for cycle in range(20))


def test_nothing_depends_on_the_length_of_a_run() -> None:
    """No method but the one that counts cycles knows of a total, and the object holds none."""
    assert {field.name for field in fields(Schedule)} == {
        "epoch_steps", "cycle_steps", "model_train_freq", "model_retain_epochs", "rollout_length", "evaluate_every",
        "has_model", "check_every",
    }  # fmt: skip
    for name in ("epoch", "has_model_stages", "model_cycles", "rollout_steps", "rollout_cycles", "evaluates"):
        assert list(signature(getattr(Schedule, name)).parameters) == ["self", "cycle"]
