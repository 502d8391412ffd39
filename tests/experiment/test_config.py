"""The configuration: what the files say, what is refused and how, and that every key has an effect."""

import copy
import functools
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from helpers.workflow import FOLDERS, REPO, dry_run
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from usbpo.commands import cli, stage_verbs
from usbpo.environments.terminations import TERMINATIONS
from usbpo.errors import UsbpoError
from usbpo.experiment.experiment_config import Experiment
from usbpo.experiment.keys import Section
from usbpo.experiment.loading import load_experiment, load_run
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.schema import SCHEMAS, json_schema
from usbpo.experiment.sections import TerminationName, TriggerKeys
from usbpo.experiment.yaml_files import read_yaml

TASKS = sorted(path.stem for path in (REPO / "config/tasks").glob("*.yaml"))
METHODS = sorted(path.stem for path in (REPO / "config/algorithms").glob("*.yaml"))
STAGES = tuple(stage_verbs.SECTIONS)
EXPERIMENT: dict[str, Any] = {
    "experiment": "e",
    "tasks": ["test-pendulum"],
    "methods": ["test-mbpo"],
    "seeds": [0, 1],
    "steps": 30,
}
RUN: dict[str, Any] = load_run("HumanoidTruncated", "usbpo", FOLDERS).model_dump()


# ---- the files ---------------------------------------------------------------------------------------------------

GROWS_FROM_20_TO_150 = {"start_epoch": 20, "end_epoch": 150, "start_length": 1, "end_length": 15}
GROWS_FROM_20_TO_100 = {"start_epoch": 20, "end_epoch": 100, "start_length": 1, "end_length": 25}
GROWS_FROM_20_TO_300 = {"start_epoch": 20, "end_epoch": 300, "start_length": 1, "end_length": 25}
ALWAYS_1 = {"start_epoch": 0, "end_epoch": 0, "start_length": 1, "end_length": 1}
NO_CONTACTS = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}
POSITIONS_ONLY = {
    "include_cinert_in_observation": False,
    "include_cvel_in_observation": False,
    "include_qfrc_actuator_in_observation": False,
    "include_cfrc_ext_in_observation": False,
    "contact_cost_weight": 0,
}
# name: (id, arguments, termination, G, F, rollout length, R, target entropy, random steps, epoch, hidden units)
TABLE: dict[str, tuple[Any, ...]] = {
    "InvertedPendulum": (
        *("InvertedPendulum-v5", {}, "inverted_pendulum"), *(10, 250, ALWAYS_1, 1, -0.05, 500, 250, 200)),
    "InvertedDoublePendulum": (
        *("InvertedDoublePendulum-v5", {}, "inverted_double_pendulum"), *(20, 250, ALWAYS_1, 1, -0.5, 500, 250, 200)),
    "Hopper": ("Hopper-v5", {}, "hopper", 20, 250, GROWS_FROM_20_TO_150, 1, -1, 5000, 1000, 200),
    "Walker2d": ("Walker2d-v5", {}, "walker2d", 20, 250, ALWAYS_1, 1, -3, 5000, 1000, 200),
    "HalfCheetah": ("HalfCheetah-v5", {}, "never", 40, 250, ALWAYS_1, 1, -3, 5000, 1000, 200),
    "Swimmer": ("Swimmer-v5", {}, "never", 20, 250, ALWAYS_1, 1, -2, 5000, 1000, 200),
    "AntTruncated": ("Ant-v5", NO_CONTACTS, "ant", 20, 250, GROWS_FROM_20_TO_100, 1, -4, 5000, 1000, 200),
    "HumanoidTruncated": (
        *("Humanoid-v5", POSITIONS_ONLY, "humanoid"), *(20, 1000, GROWS_FROM_20_TO_300, 5, -2, 5000, 1000, 400)),
}  # fmt: skip


def test_the_table_of_tasks_is_complete() -> None:
    assert set(TASKS) == set(TABLE) | {"test-pendulum"}


@pytest.mark.parametrize("method", ["usbpo", "mbpo"])
@pytest.mark.parametrize("task", TABLE)
def test_a_task_has_the_numbers_of_the_table(task: str, method: str) -> None:
    run = load_run(task, method, FOLDERS)
    schedule, policy = run.schedule, run.policy
    assert (
        *(run.environment.id, run.environment.arguments, run.environment.termination),
        *(policy.updates_per_step, schedule.model_train_freq, schedule.rollout_length.model_dump()),
        *(schedule.model_retain_epochs, policy.target_entropy, schedule.random_steps, schedule.epoch_steps),
        run.model.hidden_size,
    ) == TABLE[task]
    assert run.cycle_steps == schedule.model_train_freq


# name: (α, F_c), CMLO's released configurations (docs/algorithm.md, below the table of tasks); ours for the pendulums
TRIGGERS = {
    **{"InvertedPendulum": (2.0, 50), "InvertedDoublePendulum": (2.0, 50), "Hopper": (1.2, 20), "Walker2d": (3.0, 20)},
    **{"HalfCheetah": (2.0, 50), "Swimmer": (2.0, 50), "AntTruncated": (2.0, 50), "HumanoidTruncated": (2.5, 50)},
}


@pytest.mark.parametrize("task", TABLE)
def test_a_task_has_the_trigger_of_cmlos_configuration(task: str) -> None:
    trigger = load_run(task, "cmlo", FOLDERS).trigger
    assert (trigger.threshold, trigger.check_every) == TRIGGERS[task]
    assert (trigger.min_steps, trigger.max_steps, trigger.states, trigger.dimensions) == (150, 500, 1000, 3)


def documented_tasks() -> dict[str, dict[str, str]]:
    """The table of tasks in docs/algorithm.md, by task and by column, without what is said of ours."""
    text = (REPO / "docs/algorithm.md").read_text(encoding="utf-8").partition("### Tasks")[2]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, *rows = lines[: 1 + len(TABLE)]
    plain = [[cell.replace(" (ours)", "").replace(",", "").replace("−", "-") for cell in row] for row in rows]
    return {row[0]: dict(zip(head, row, strict=True)) for row in plain}


@pytest.mark.parametrize("task", TABLE)
def test_the_documented_table_of_tasks_says_what_the_files_say(task: str) -> None:
    run, said = load_run(task, "mbpo", FOLDERS), documented_tasks()[task]
    keys, length = run.schedule, run.schedule.rollout_length
    grows = f"{length.start_epoch}→{length.end_epoch}: {length.start_length}→{length.end_length}"
    assert said["rollout length (epochs a→b: x→y)"] == (grows if length.end_length > 1 else "1")
    assert said["α (F_c)"] == f"{run.trigger.threshold} ({run.trigger.check_every})"
    numbers = {
        **{"G": run.policy.updates_per_step, "F": keys.model_train_freq, "retained epochs": keys.model_retain_epochs},
        **{"target entropy": run.policy.target_entropy, "random steps": keys.random_steps, "epoch": keys.epoch_steps},
        **{"hidden units": run.model.hidden_size},
    }
    assert {name: float(said[name]) for name in numbers} == numbers


def test_the_main_experiment_runs_the_usual_budgets() -> None:
    steps = read_yaml(REPO / "config/experiments/main.yaml")["steps"]
    assert steps == {task: int(documented_tasks()[task]["usual budget"]) for task in steps}


def test_the_methods_have_the_published_constants() -> None:
    mbpo, usbpo = load_run("Hopper", "mbpo", FOLDERS), load_run("Hopper", "usbpo", FOLDERS)
    assert mbpo.model.model_dump() == {"members": 7, "elites": 5, "hidden_layers": 4, "hidden_size": 200}
    assert mbpo.phase1.model_dump() == {
        "learning_rate": 1e-3,
        "batch_size": 256,
        "weight_decay": [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4],
        "log_variance_penalty": 0.01,
        "holdout_ratio": 0.2,
        "holdout_limit": 5000,
        "min_improvement": 0.01,
        "patience": 5,
        "max_epochs": None,
    }
    assert mbpo.rollout.batch_size == 100_000
    assert mbpo.policy.model_dump(exclude={"updates_per_step", "target_entropy", "report_every"}) == {
        "hidden_layers": 2,
        "hidden_size": 256,
        "learning_rate": 3e-4,
        "discount": 0.99,
        "polyak": 0.005,
        "batch_size": 256,
        "real_ratio": 0.05,
    }
    assert usbpo.phase2 is not None
    assert usbpo.phase2.model_dump() == {
        "learning_rate": 1e-4,
        "batch_size": 1024,
        "max_steps": 100,
        "validation_rows": 1024,
        "min_improvement": 1e-4,
        "patience": 10,
        "loss": "as_written",
        "terms": "shift+bias",
        "stand_in": "fixed",
    }
    assert mbpo.phase2 is None
    assert usbpo.model_copy(update={"phase2": None}) == mbpo


def test_the_default_experiment_compares_usbpo_and_mbpo_on_inverted_pendulum() -> None:
    assert read_yaml(REPO / "config/config.yaml") == {
        "experiment": "demo",
        "tasks": ["InvertedPendulum"],
        "methods": ["usbpo", "mbpo"],
        "seeds": [0],
        "steps": 2500,
        "artifacts": {"keep": "all"},
    }


@pytest.mark.parametrize("path", sorted((REPO / "config/experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_can_be_planned(path: Path) -> None:
    assert Plan(read_yaml(path), source=str(path), folders=FOLDERS).artifacts()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_task_goes_with_every_method(task: str, method: str) -> None:
    jsonschema.validate(load_run(task, method, FOLDERS).model_dump(), json.loads(json_schema("run")))


def test_terminations_of_the_configuration_are_those_that_exist() -> None:
    assert set(get_args(TerminationName)) == set(TERMINATIONS)


# ---- the models and the schemas ----------------------------------------------------------------------------------


def test_the_stored_schemas_are_those_of_the_models(tmp_path: Path) -> None:
    assert cli.main(["schema", str(tmp_path)]) == 0
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    stored = {path.name: path.read_text(encoding="utf-8") for path in (REPO / "workflow/schemas").iterdir()}
    assert made == stored, "run `make schemas`"
    assert {"run.schema.json", "experiment.schema.json"} <= set(made)


def sections_of(model: type[Section]) -> Iterator[tuple[str, Any, type[Section] | None]]:
    """Every key below a model as (dotted name, field, model of the section that it is, if it is one)."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        yield name, field, section
        if section is not None:
            for below, inner, kind in sections_of(section):
                yield f"{name}.{below}", inner, kind


LEAVES = {name: field for name, field, section in sections_of(RunConfig) if section is None}


@pytest.mark.parametrize("model", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_every_key_says_what_it_is_in_which_unit_and_from_where(model: type[Section]) -> None:
    keys = list(sections_of(model))
    assert len(keys) > 4
    for name, field, _ in keys:
        assert field.description, name
        assert field.description.endswith("."), name
        assert field.json_schema_extra["unit"], name
        assert field.json_schema_extra["source"], name


BAD_EXPERIMENTS: list[dict[str, Any]] = [
    {"seeds": []},
    {"seeds": None},
    {"seeds": [-1]},
    {"seeds": [0.5]},
    {"seeds": ["0"]},
    {"seeds": 0},
    {"seeds": [True]},
    {"seeds": [2**63]},
    {"experiment": "x" * 101},
    {"tasks": ["x" * 101]},
    {"returns": {"Hopper": [1.0] * 101}},
    {"tasks": []},
    {"tasks": "test-pendulum"},
    {"tasks": ["a/b"]},
    {"tasks": ["../b"]},
    {"tasks": [""]},
    {"methods": [3]},
    {"steps": -30},
    {"steps": 0},
    {"steps": "30"},
    {"steps": 30.5},
    {"steps": None},
    {"steps": {"test-pendulum": 0}},
    {"steps": {"test-pendulum": "30"}},
    {"steps": [30]},
    {"experiment": ""},
    {"experiment": 3},
    {"experiment": ".hidden"},
    {"experiment": "a b"},
    {"returns": [1000]},
    {"returns": 1000},
    {"returns": None},
    {"returns": {"Hopper": 1000}},
    {"returns": {"Hopper": []}},
    {"returns": {"Hopper": ["1000"]}},
    {"returns": {"Hopper": [True]}},
    {"wibble": 1},
]
GOOD_EXPERIMENTS: list[dict[str, Any]] = [
    {},
    {"seeds": [7]},
    {"steps": {"test-pendulum": 30, "Hopper": 250}},
    {"tasks": ["A-b_c.d", "test-pendulum"]},
    {"experiment": "2024-x"},
    {"returns": {}},
    {"returns": {"test-pendulum": [950, -2.5], "Hopper": [1e3]}},
]
BAD_RUNS: list[tuple[str, Any]] = [
    ("environment.id", ""),
    ("environment.id", None),
    ("environment.termination", "hoper"),
    ("environment.termination", "my-tasks:end"),
    ("environment.termination", "my_tasks:"),
    ("environment.termination", "my_tasks.end"),
    ("environment.episodes", "end"),
    ("environment.id", "x" * 1001),
    ("environment.termination", f"{'x' * 1000}:end"),
    ("model.members", 1_001),
    ("policy.hidden_layers", 101),
    ("policy.hidden_size", 100_001),
    ("phase2.max_steps", 10**400),
    ("schedule.random_steps", 10**9 + 1),
    ("theory.depth", 2**70),
    ("environment.arguments", {"a": None}),
    ("environment.arguments", {"a": [None]}),
    ("environment.arguments", {"a": [[1.0]]}),
    ("environment.arguments", {"a": {"b": 1}}),
    ("environment.arguments", {"a": [{"b": 1}]}),
    ("environment.arguments", [1]),
    ("environment.wibble", 1),
    ("schedule", 7),
    ("schedule", None),
    ("schedule.random_steps", 0),
    ("schedule.random_steps", "500"),
    ("schedule.random_steps", True),
    ("schedule.initial_data", ""),
    ("schedule.initial_data", 3),
    ("schedule.cycle_step", 10),
    ("schedule.rollout_length.start_epoch", -1),
    ("schedule.rollout_length.end", 1),
    ("model.members", 1),
    ("phase1.learning_rate", 0),
    ("phase1.learning_rate", "1e-4"),
    ("phase1.holdout_ratio", 1),
    ("phase1.holdout_ratio", 0),
    ("phase1.weight_decay", [-1.0, 0, 0, 0, 0]),
    ("phase1.weight_decay", 1e-4),
    ("phase1.max_epochs", 0),
    ("phase2.loss", "as_told"),
    ("phase2.terms", "shift + bias"),
    ("phase2.stand_in", "standing"),
    ("phase2.patience", -1),
    ("phase2", False),
    ("policy.discount", 1),
    ("policy.discount", -0.1),
    ("policy.polyak", 1.1),
    ("policy.target_entropy", None),
    ("policy.real_ratio", 1.5),
    ("policy.batch_size", 1),
    ("theory.depth", 0),
    ("theory.depth", 2.5),
    ("evaluate.episodes", 0),
    ("evaluate.episodes", 2.5),
    ("wibble", 1),
]
GOOD_RUNS: list[tuple[str, Any]] = [
    ("environment.id", "my_package.tasks:Mine-v0"),
    ("environment.termination", "my_package.tasks:ends"),
    ("environment.episodes", "end_with_cycle"),
    ("environment.arguments", {"a": 1, "b": 0.5, "c": "d", "e": True}),
    ("environment.arguments", {"a": [0.3, 1.0], "b": ["c", "d"], "e": [], "f": [1, "g", True]}),
    ("schedule.cycle_steps", 500),
    ("phase1.learning_rate", 1),
    ("phase1.max_epochs", 7),
    ("phase2", None),
    ("phase2.terms", "bias"),
    ("phase2.stand_in", "moving"),
    ("policy.real_ratio", 1),
    ("policy.real_ratio", 0),
    ("policy.polyak", 1.0),
    ("policy.target_entropy", -2),
    ("theory.depth", None),
    ("theory.depth", 25),
]


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested content with another value for a dotted key."""
    made = copy.deepcopy(content)
    *sections, last = key.split(".")
    place = made
    for section in sections:
        place = place[section]
    place[last] = value
    return made


def accepted_by_model(name: str, content: dict[str, Any]) -> bool:
    try:
        SCHEMAS[name].model_validate(content)
    except ValidationError:
        return False
    return True


@functools.cache
def validator(name: str) -> jsonschema.protocols.Validator:
    """The validator of a stored schema, as Snakemake uses it."""
    schema = json.loads((REPO / f"workflow/schemas/{name}.schema.json").read_text(encoding="utf-8"))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


@pytest.mark.parametrize("change", BAD_EXPERIMENTS, ids=str)
def test_model_and_schema_refuse_the_same_experiments(change: dict[str, Any]) -> None:
    assert not accepted_by_model("experiment", EXPERIMENT | change)
    assert not validator("experiment").is_valid(EXPERIMENT | change)


@pytest.mark.parametrize("change", GOOD_EXPERIMENTS, ids=str)
def test_model_and_schema_accept_the_same_experiments(change: dict[str, Any]) -> None:
    assert accepted_by_model("experiment", EXPERIMENT | change)
    assert validator("experiment").is_valid(EXPERIMENT | change)


@pytest.mark.parametrize("missing", EXPERIMENT)
def test_model_and_schema_ask_for_every_key_of_an_experiment(missing: str) -> None:
    content = {name: value for name, value in EXPERIMENT.items() if name != missing}
    assert not accepted_by_model("experiment", content)
    assert not validator("experiment").is_valid(content)


@pytest.mark.parametrize(("key", "value"), BAD_RUNS, ids=str)
def test_model_and_schema_refuse_the_same_runs(key: str, value: Any) -> None:
    content = changed(RUN, key, value)
    assert not accepted_by_model("run", content)
    assert not validator("run").is_valid(content)


@pytest.mark.parametrize(("key", "value"), GOOD_RUNS, ids=str)
def test_model_and_schema_accept_the_same_runs(key: str, value: Any) -> None:
    content = changed(RUN, key, value)
    assert accepted_by_model("run", content)
    assert validator("run").is_valid(content)


# Without whole numbers written as 2.0, which JSON Schema takes for integers, and without NaN and infinity, which JSON
# does not have: there the model is stricter, and it is asked first.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([-0.5, 0.25, 0.5, 1.5]),
    st.sampled_from(["", "never", "shift", "as_released", "x", "1"]),
    st.just([]),
    st.just([0.5, 0.5]),
    st.just({}),
    st.just({"a": 1}),
)
SECTIONS_AND_KEYS = [name for name, _, _ in sections_of(RunConfig)]


@given(st.sampled_from(SECTIONS_AND_KEYS), VALUES)
def test_model_and_schema_agree_on_any_value_of_any_key(key: str, value: Any) -> None:
    content = changed(RUN, key, value)
    assert validator("run").is_valid(content) == (accepted_by_model("run", content) or of_several_keys(content))


def of_several_keys(content: dict[str, Any]) -> bool:
    """Whether the model refuses content only for how several keys go together, which a JSON schema cannot say."""
    try:
        RunConfig.model_validate(content)
    except ValidationError as error:
        return all(detail["type"] == "value_error" for detail in error.errors())
    return False


def test_all_missing_keys_of_a_run_are_asked_for_by_both() -> None:
    required = [name for name, field, _ in sections_of(RunConfig) if field.is_required()]
    assert "policy.target_entropy" in required
    for name in required:
        *sections, last = name.split(".")
        content = copy.deepcopy(RUN)
        place = content
        for section in sections:
            place = place[section]
        del place[last]
        assert not accepted_by_model("run", content), name
        assert not validator("run").is_valid(content), name


# ---- what keys do ------------------------------------------------------------------------------------------------


def another(name: str, field: Any) -> Any:
    """A value of a key that differs from its own in the test configuration."""
    chosen = {
        "environment.id": "Hopper-v5",
        "environment.arguments": {"reset_noise_scale": 0.02},
        "environment.termination": "never",
        "environment.episodes": "end_with_cycle",
        "schedule.initial_data": "data/imported/other.h5",
        "schedule.epoch_steps": 30,
        "schedule.model_train_freq": 60,
        "schedule.cycle_steps": 15,
        "schedule.rollout_length.start_epoch": 1,
        "schedule.rollout_length.end_epoch": 4,
        "schedule.rollout_length.start_length": 2,
        "schedule.rollout_length.end_length": 9,
        "schedule.model_update": "triggered",
        "trigger.check_every": 15,
        "trigger.reference": "previous_check",
        "evaluate.every": 60,
        "phase1.weight_decay": [1e-5, 2e-5, 3e-5],
        "phase1.max_epochs": 9,
        "phase2.loss": "as_released",
        "phase2.terms": "bias",
        "phase2.stand_in": "moving",
        "policy.target_entropy": -3.5,
        "theory.depth": 17,
        "device": "cpu",
        "precision": "bfloat16",
    }
    if name in chosen:
        return chosen[name]
    assert field.annotation in (int, float), name
    return 17 if field.annotation is int else 0.17


def with_key(section: Section, name: str, value: Any) -> Any:
    """A copy of a section with another value for a dotted key; how keys go together is not checked."""
    first, _, rest = name.partition(".")
    return section.model_copy(update={first: with_key(getattr(section, first), rest, value) if rest else value})


def signature(run: Run) -> dict[str, Any]:
    """All that stages are told in a run: the options of every stage and the files of every cycle."""
    cycles = range(12)
    stages = ("collect", "initialise", "phase1", "phase2", "rollout", "policy", "evaluate", "theory", "triggered")
    told: dict[str, Any] = {stage: [run.options.of(stage, cycle) for cycle in cycles] for stage in stages}
    told["initial_data"] = run.initial_data(0)
    for method in (run.models, run.model_data, run.model_data_before, run.artifacts):
        told[method.__name__] = [method(cycle) for cycle in cycles if cycle]
    return told


@pytest.mark.parametrize("name", LEAVES)
def test_every_key_reaches_a_stage(name: str) -> None:
    content = load_run("test-pendulum", "test-usbpo", FOLDERS).model_dump()
    if name.startswith("schedule.rollout_length"):
        content["schedule"]["rollout_length"] = {"start_epoch": 2, "end_epoch": 5, "start_length": 3, "end_length": 8}
    before = RunConfig.model_validate(content)
    after = with_key(before, name, another(name, LEAVES[name]))
    assert before != after
    assert signature(Run("t", "m", 0, before)) != signature(Run("t", "m", 0, after))


def test_a_method_without_phase_2_has_none() -> None:
    with_phase2, without = (load_run("test-pendulum", method, FOLDERS) for method in ("test-usbpo", "test-mbpo"))
    assert [path for path in Run("t", "m", 0, with_phase2).artifacts(2) if "phase2" in path]
    assert not [path for path in Run("t", "m", 0, without).artifacts(2) if "phase2" in path]


@pytest.fixture(scope="module")
def command_lines(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The command line of every stage of the test experiment, long enough for a block."""
    folder = tmp_path_factory.mktemp("commands")
    said = dry_run(folder, "--printshellcmds", "--config", "steps=750", "methods=[test-usbpo,test-mbpo,test-cmlo]")
    found = [
        shlex.split(line) for line in re.findall(r"^Shell command: usbpo (.*) > \S+ 2>&1$", said, flags=re.MULTILINE)
    ]
    assert {words[0] for words in found} == {*STAGES, "results"}
    return found


def called_with(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments with which a command line calls its stage, which does not run."""
    function = stage_verbs.stage_function(words[0])
    seen: dict[str, Any] = {}

    @functools.wraps(function)
    def stand_in(**arguments: Any) -> None:
        seen.update(arguments)

    with monkeypatch.context() as patched:
        patched.setattr(stage_verbs, "stage_function", lambda _: stand_in)
        cli._command.cache_clear()
        assert cli.main(words) == 0
        cli._command.cache_clear()
    return seen


def test_rules_give_a_stage_every_argument_that_it_has(command_lines: list[list[str]]) -> None:
    # An option that is not given would silently take a default that stands in no configuration.
    for words in command_lines:
        if words[0] == "results":
            continue
        given_options = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        parameters = set(inspect.signature(stage_verbs.stage_function(words[0])).parameters)
        # A check is given to the stages that a trigger calls within its own, and to no job.
        assert parameters - {"check"} == given_options, words[0]


def test_stages_receive_the_values_of_the_configuration(
    command_lines: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: set[tuple[str, str]] = set()
    for stage in STAGES:
        method = "test-cmlo" if stage == "triggered" else "test-usbpo"
        words = next(w for w in reversed(command_lines) if w[0] == stage and (stage == "block" or method in str(w)))
        seen = called_with(words, monkeypatch)
        run = load_run("test-pendulum", method, FOLDERS)
        own = {
            "collect": ["environment"],
            "initialise": ["policy"],
            "phase1": ["model", "phase1"],
            "phase2": ["phase2"],
            "rollout": ["rollout"],
            "triggered": ["trigger"],
        }
        for section in own.get(stage, [stage]):
            if section == "trigger":
                assert {name: json.loads(seen[name]) for name in stage_verbs.WHOLE_SECTIONS if name != "phase2"} == {
                    name: getattr(run, name).model_dump() for name in stage_verbs.WHOLE_SECTIONS if name != "phase2"
                }
                checked |= {("trigger", name) for name in TriggerKeys.model_fields}
                continue
            for name, value in getattr(run, section, run.evaluate).model_dump().items():
                if name in seen:
                    assert seen[name] == value, (stage, name)
                    checked.add((section, name))
    names = ("trigger", "model", "phase1", "phase2", "rollout", "policy", "evaluate", "theory")
    run = load_run("test-pendulum", "test-usbpo", FOLDERS)
    sections = {name: getattr(run, name) for name in names}
    every = {(section, name) for section, keys in sections.items() for name in type(keys).model_fields}
    assert every - checked == {("policy", "updates_per_step"), ("evaluate", "every")}


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_of_a_stage_are_keys_files_or_identity(stage: str) -> None:
    parameters = inspect.signature(stage_verbs.stage_function(stage)).parameters
    keys = {name for section in stage_verbs.SECTIONS[stage] for name in section.model_fields}
    of_files = {name for name, p in parameters.items() if "Path" in str(p.annotation)}
    identity = {"task", "method", "seed", "cycle", "check", "number"}
    from_schedule = {"steps", "updates", "length", "lengths", "on_policy_steps", "retained_updates", "model_every"}
    sections = set(stage_verbs.WHOLE_SECTIONS) if stage == "triggered" else set()
    of_environment = {"environment", "environment_arguments", "termination", "episodes"}
    assert set(parameters) <= keys | of_files | identity | from_schedule | of_environment | sections
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())


# ---- YAML --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("-2.5e-5", -2.5e-5),
        ("1.0e+3", 1000.0),
        ("3e2", 300.0),
        ("7", 7),
        ("e-4", "e-4"),
        ("1e-4x", "1e-4x"),
        ("'1e-4'", "1e-4"),
        ("null", None),
    ],
)
def test_numbers_of_yaml_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"key: {text}\n")
    found = read_yaml(path)["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1\nb: 2\n", r"a\.yaml, line 2: this is not valid YAML: .*; mend the line\."),
        ("a: 1\n\tb: 2\n", r"a\.yaml, line 2: this is not valid YAML: .*; mend the line\."),
        ("a: 1\na: 2\n", r"a\.yaml, line 2: this is not valid YAML: the key 'a' stands twice; mend the line\."),
        ("b:\n  a: 1\n  c: 2\n  a: 3\n", r"a\.yaml, line 4: .*the key 'a' stands twice"),
        ("a: !!python/object/apply:os.getcwd []\n", r"a\.yaml, line 1: this is not valid YAML: .*; mend the line\."),
        ("- 1\n", r"a\.yaml: a mapping of keys to values is expected; see config/README\.md\."),
        ("", r"a\.yaml: a mapping of keys to values is expected; see config/README\.md\."),
        ("a: 1\n---\nb: 2\n", r"a\.yaml, line 2: this is not valid YAML: .*; mend the line\."),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UsbpoError, match=sentence):
        read_yaml(path)


def test_yaml_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(UsbpoError, match=r"a\.yaml"):
        read_yaml(path)


# ---- inheritance and errors --------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, ...]:
    """A configuration folder of the user's, before that of the project."""
    for kind in ("tasks", "algorithms"):
        (tmp_path / "config" / kind).mkdir(parents=True)
    return (tmp_path / "config", *FOLDERS)


def write(folders: tuple[Path, ...], name: str, content: Any) -> Path:
    path = folders[0] / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_file_inherits_what_it_does_not_say(folders: tuple[Path, ...]) -> None:
    write(folders, "tasks/mine", {"base": "test-pendulum", "policy": {"target_entropy": -7.0}})
    mine = load_run("mine", "test-mbpo", folders)
    theirs = load_run("test-pendulum", "test-mbpo", folders)
    assert mine.policy.target_entropy == -7.0
    assert mine.policy.model_copy(update={"target_entropy": theirs.policy.target_entropy}) == theirs.policy
    assert mine.schedule == theirs.schedule


def test_lists_and_null_replace_what_is_inherited(folders: tuple[Path, ...]) -> None:
    write(folders, "algorithms/mine", {"base": "test-usbpo", "phase2": None, "phase1": {"weight_decay": [1, 2, 3]}})
    mine = load_run("test-pendulum", "mine", folders)
    assert mine.phase2 is None
    assert mine.phase1.weight_decay == [1, 2, 3]
    assert mine.phase1.max_epochs == 3


def test_the_method_stands_above_the_task(folders: tuple[Path, ...]) -> None:
    write(folders, "tasks/mine", {"base": "test-pendulum", "policy": {"discount": 0.5}})
    assert load_run("mine", "mbpo", folders).policy.discount == 0.99


def test_a_users_file_hides_the_projects_file_of_the_same_name(folders: tuple[Path, ...]) -> None:
    write(folders, "algorithms/test-mbpo", {"base": "mbpo"})
    assert load_run("test-pendulum", "test-mbpo", folders).policy.batch_size == 256


SENTENCES: list[tuple[str, dict[str, Any] | str, str]] = [
    ("tasks/mine", {"base": "mine"}, "mine.yaml: base leads back to this file"),
    ("tasks/mine", {"base": "absent"}, "unknown task 'absent'"),
    ("tasks/mine", {"base": ["test-pendulum"]}, "mine.yaml: base must be a name"),
    ("tasks/mine", {"base": "test-pendulum", "wibble": 1}, "mine.yaml: unknown key 'wibble'"),
    ("tasks/mine", {"base": "test-pendulum", "policy": {"gamma": 1}}, "mine.yaml: unknown key 'policy.gamma'"),
    ("tasks/mine", {"base": "test-pendulum", "schedule": 7}, "mine.yaml: 'schedule' must be"),
    (
        "tasks/mine",
        {"base": "test-pendulum", "schedule": {"cycle_steps": "ten"}},
        "mine.yaml: 'schedule.cycle_steps' must be a valid integer, but is 'ten'",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "schedule": {"random_steps": -1}},
        "'schedule.random_steps' must be greater",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "schedule": {"cycle_steps": 7}},
        "mine.yaml: schedule: cycle_steps (7) must divide epoch_steps (60)",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "schedule": {"cycle_steps": 20}},
        "mine.yaml: schedule: cycle_steps (20) must divide model_train_freq (30)",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "schedule": {"model_train_freq": 45, "cycle_steps": 15}},
        "mine.yaml: schedule: model_train_freq (45) must divide epoch_steps (60)",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"termination": "hoper"}},
        "'environment.termination' must be never, inverted_pendulum, inverted_double_pendulum, hopper, walker2d, ant, "
        "humanoid, or module:function, but is 'hoper'; mend the value.",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"arguments": {"a": None}}},
        "mine.yaml: 'environment.arguments.a' must be a number, a text, true or false, or a list of these, but is None",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"arguments": {"a": [0.3, [1.0]]}}},
        "mine.yaml: 'environment.arguments.a.1' must be a number, a text, true or false, but is [1.0];",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"arguments": {"a": {"b": 1}}}},
        "mine.yaml: 'environment.arguments.a' must be a number, a text, true or false, or a list of these, but is {'b'",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"arguments": {"a": [0.7, float("inf")]}}},
        "mine.yaml: 'environment.arguments.a.1' must be a finite number, but is inf; mend the value.",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"arguments": {"a": list(range(9000))}}},
        "mine.yaml: environment: arguments come to 52,897 characters, but 20,000 are the most; write them into a file",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"id": "x" * 2000}},
        "mine.yaml: 'environment.id' may have 1000 characters at most, but has 2000; shorten it.",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "environment": {"episodes": "y" * 100_000}},
        f"mine.yaml: 'environment.episodes' must be 'continue' or 'end_with_cycle', but is '{'y' * 149}…{'y' * 74}'",
    ),
    (
        "tasks/mine",
        {"base": "test-pendulum", "z" * 100_000: 1},
        f"mine.yaml: unknown key '{'z' * 150}…{'z' * 75}'; see",
    ),
    ("tasks/mine", {"base": "b" * 5000}, "config/tasks/" + "b" * 50),
    (
        "tasks/mine",
        {"base": "test-pendulum", "schedule": {"rollout_length": {"start_length": 5}}},
        "mine.yaml: schedule.rollout_length: end_epoch and end_length must not be below",
    ),
    ("tasks/mine", {"policy": {"target_entropy": -1.0}}, "tasks/mine.yaml: the key 'environment' is missing; add it."),
    (
        "tasks/mine",
        {"base": "test-pendulum", "policy": {"target_entropy": float("nan")}},
        "'policy.target_entropy' must be",
    ),
    ("algorithms/mine", {"base": "test-mbpo", "wibble": 1}, "algorithms/mine.yaml: unknown key 'wibble'"),
    (
        "algorithms/mine",
        {"base": "test-mbpo", "phase2": {"loss": "x"}},
        "mine.yaml: 'phase2.loss' must be 'as_written' or",
    ),
    (
        "algorithms/mine",
        {"base": "usbpo-samples", "phase2": {"loss": "as_released"}},
        "mine.yaml: phase2: loss: as_released has a stand-in that moves along; set stand_in: moving beside it.",
    ),
    (
        "algorithms/mine",
        {"base": "usbpo", "phase2": {"loss": "as_released"}},
        "mine.yaml: phase2: loss: as_released has a stand-in that moves along; set stand_in: moving beside it.",
    ),
    (
        "algorithms/mine",
        {"base": "test-mbpo", "model": {"elites": 9}},
        "mine.yaml: model: elites (9) must not exceed members",
    ),
    (
        "algorithms/mine",
        {"base": "test-mbpo", "model": {"hidden_layers": 3}},
        "phase1.weight_decay must have one value for each of the 4 layers, but has 3",
    ),
    (
        "algorithms/mine",
        {"base": "test-mbpo", "evaluate": {"episodes": 0}},
        "mine.yaml: 'evaluate.episodes' must be greater",
    ),
    ("algorithms/mine", "base: test-mbpo\nmodel: [\n", "mine.yaml, line 3: this is not valid YAML"),
]


def one_sentence(text: str) -> bool:
    """Whether a message is one line that ends in a full stop and shows nothing of the machinery behind."""
    inner = ("constrained", "Input should", "String should", "instance of", "Keys", "dict[", "Traceback", "\n")
    return text.endswith(".") and not any(word in text for word in inner)


@pytest.mark.parametrize(("name", "content", "said"), SENTENCES, ids=[case[2][:60] for case in SENTENCES])
def test_an_error_names_the_file_the_key_and_the_fault(
    folders: tuple[Path, ...], name: str, content: dict[str, Any] | str, said: str
) -> None:
    write(folders, name, content)
    task, method = ("mine", "test-mbpo") if name.startswith("tasks") else ("test-pendulum", "mine")
    with pytest.raises(UsbpoError) as caught:
        load_run(task, method, folders)
    assert said in str(caught.value)
    assert one_sentence(str(caught.value))
    assert len(str(caught.value)) < 1000


def test_a_longer_circle_of_bases_is_found(folders: tuple[Path, ...]) -> None:
    write(folders, "algorithms/a", {"base": "b"})
    write(folders, "algorithms/b", {"base": "c"})
    write(folders, "algorithms/c", {"base": "b"})
    with pytest.raises(UsbpoError, match=r"b\.yaml: base leads back to this file"):
        load_run("test-pendulum", "a", folders)


def test_an_unknown_name_lists_the_known_ones(folders: tuple[Path, ...]) -> None:
    with pytest.raises(UsbpoError, match=r"unknown task 'Hoper'.*Hopper.*Walker2d.*\.$"):
        load_run("Hoper", "mbpo", folders)
    with pytest.raises(UsbpoError, match=r"unknown method 'usbp'.*mbpo.*usbpo.*\.$"):
        load_run("Hopper", "usbp", folders)


EXPERIMENT_SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"seeds": []}, "'seeds' needs at least 1 entry, but has 0; add more."),
    ({"seeds": [0, 0]}, "seeds names something twice: [0, 0]"),
    ({"seeds": [0.5]}, "'seeds.0' must be a valid integer, but is 0.5"),
    ({"seeds": [-1]}, "'seeds.0' must be greater than or equal to 0, but is -1"),
    ({"tasks": ["a", "a"]}, "tasks names something twice: ['a', 'a']"),
    ({"tasks": "Hopper"}, "'tasks' must be a valid list, but is 'Hopper'"),
    ({"steps": -30}, "'steps' must be greater than or equal to 1, but is -30"),
    ({"steps": "many"}, "'steps' must be a valid integer, but is 'many'"),
    ({"steps": {"test-pendulum": -30}}, "'steps.test-pendulum' must be greater than or equal to 1, but is -30"),
    ({"steps": {"Hopper": 250}}, "steps has no entry for the task test-pendulum"),
    ({"experiment": "a/b"}, "'experiment' may hold letters, digits, dots, dashes and underscores only"),
    ({"only": ["a", "a"]}, "only names something twice: ['a', 'a']"),
    ({"only": "a"}, "'only' must be a valid list, but is 'a'"),
    ({"returns": [1000]}, "'returns' must be a mapping of keys to values, but is [1000]; mend the value."),
    ({"returns": {"Hopper": 1000}}, "'returns.Hopper' must be a valid list, but is 1000; mend the value."),
    ({"returns": {"Hopper": []}}, "'returns.Hopper' needs at least 1 entry, but has 0; add more."),
    ({"returns": {"Hopper": ["many"]}}, "'returns.Hopper.0' must be a valid number, but is 'many'; mend the value."),
    ({"returns": {"Hopper": [1000, float("inf")]}}, "'returns.Hopper.1' must be a finite number, but is inf;"),
    ({"returns": {"Hopper": [1000, 3000, 1000]}}, "returns.Hopper names something twice: [1000.0, 3000.0, 1000.0]."),
    ({"wibble": 1}, "unknown key 'wibble'"),
    ({"tasks": ["x" * 2000]}, "'tasks.0' may have 100 characters at most, but has 2000; shorten it."),
    ({"returns": {"Hopper": [1.0] * 101}}, "'returns.Hopper' may have 100 entries at most, but has 101; shorten it."),
    ({"seeds": [10**4000]}, "'seeds.0' must be less than 9223372036854775808, but is 1000000"),
    ({"steps": 10**4000}, "'steps' must be less than 9223372036854775808, but is 1000000"),
    ({"tasks": ["a"] * 1000}, "tasks names something twice: ['a', 'a', "),
]


@pytest.mark.parametrize(("change", "said"), EXPERIMENT_SENTENCES, ids=[case[1][:60] for case in EXPERIMENT_SENTENCES])
def test_an_error_in_an_experiment_names_its_file_the_key_and_the_fault(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsbpoError) as caught:
        load_experiment(EXPERIMENT | change, "mine.yaml")
    assert str(caught.value).startswith(f"mine.yaml: {said}")
    assert one_sentence(str(caught.value))
    assert len(str(caught.value)) < 1000


def test_more_cycles_than_a_path_can_number_are_refused_before_they_are_listed() -> None:
    with pytest.raises(UsbpoError) as caught:
        Plan(EXPERIMENT | {"steps": 30 * 10**15}, source="mine.yaml", folders=FOLDERS)
    assert str(caught.value).startswith("mine.yaml: steps (30000000000000000) are 1,000,000,000,000,000 cycles of")
    assert str(caught.value).endswith("but 99,999 are the most; take 2999970 or fewer.")


def test_steps_that_are_no_whole_number_of_cycles_are_refused_with_the_next_ones_that_are() -> None:
    with pytest.raises(UsbpoError) as caught:
        Plan(EXPERIMENT | {"steps": 100}, source="mine.yaml", folders=FOLDERS)
    assert str(caught.value).startswith("mine.yaml: steps (100) must be a multiple of the 30 steps of a cycle")
    assert re.search(r"take 90\b", str(caught.value))
    with pytest.raises(UsbpoError, match=r"take 30\b"):
        Plan(EXPERIMENT | {"steps": 10}, source="mine.yaml", folders=FOLDERS)


def test_an_experiment_is_not_changed_by_its_check() -> None:
    content = copy.deepcopy(EXPERIMENT)
    assert load_experiment(content, "mine.yaml") == Experiment(**EXPERIMENT)
    assert content == EXPERIMENT
