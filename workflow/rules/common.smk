# Helpers of all rules: the experiment with its runs, input functions, parameters, and what happens around a run.
import json
import os
import re
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.utils import validate

from usbpo import layout, lifetime
from usbpo.config import with_numbers
from usbpo.errors import UsbpoError
from usbpo.fingerprint import fingerprint
from usbpo.plan import Plan, check_writable
from usbpo.report.runs import FILES

# Snakemake follows a chain of jobs by recursion; Python's own limit ends a run at about 480 cycles.
sys.setrecursionlimit(20_000)

CONFIG_FILES = [str(path) for path in workflow.overwrite_configfiles] or ["config/config.yaml"]
if workflow.config_settings.config:
    CONFIG_FILES[-1] += " with --config"
CONFIG_FOLDERS = [Path("config"), Path(workflow.basedir) / "config"]

config.update(with_numbers(config))
try:
    PLAN = Plan(config, source=CONFIG_FILES[-1], folders=CONFIG_FOLDERS)
    if workflow.is_main_process:
        check_writable(Path())
        lifetime.hold_workspace(Path())
except UsbpoError as error:
    sys.exit(f"usbpo: {error}")

validate(config, "../schemas/experiment.schema.json", set_default=False)
for run_config in PLAN.configurations():
    validate(run_config, "../schemas/run.schema.json", set_default=False)

ROLLOUTS = temp(layout.ROLLOUTS) if PLAN.experiment.rollouts == "temporary" else layout.ROLLOUTS
RESULTS = layout.RESULTS.format(experiment=PLAN.experiment.experiment)

# Stages end when the Snakemake that started them is gone; the logger shows how far each run is.
OWNER = lifetime.identity()
os.environ.update(
    USBPO_OWNER=OWNER,
    USBPO_TARGETS=json.dumps(PLAN.targets()),
    # So that the rules find `usbpo` even where the environment of this Snakemake is not activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
)


wildcard_constraints:
    task="[^/]+",
    method="[^/]+",
    seed="[0-9]+",
    cycle="[0-9]{5}",
    block="[0-9]{5}",


# ---- runs ------------------------------------------------------------------------------------------------------


def run_of(wildcards):
    return PLAN.run(wildcards.task, wildcards.method, int(wildcards.seed))


def artifacts(wildcards):
    return PLAN.artifacts()


def result_files(wildcards):
    return rules.results.output


def of_cycle(method):
    """An input function that asks the run for something of the cycle in the path."""
    return lambda wildcards: getattr(run_of(wildcards), method)(int(wildcards.cycle))


def of_run(method):
    """A parameter function that asks the run for something that is the same in every cycle."""
    return lambda wildcards: getattr(run_of(wildcards), method)()


def methods_with_trigger(phase2):
    """A pattern for the methods of the experiment whose model updates a trigger decides, with or without phase 2."""
    runs = (run for run in PLAN.cycles if run.schedule.triggered and (run.config.phase2 is not None) == phase2)
    names = sorted({re.escape(run.method) for run in runs})
    return "|".join(names) or "(?!)"


def memory_of(stage):
    """A resource function: the megabytes that a stage takes in the cycle, or for the block, of the path."""

    def megabytes(wildcards):
        return run_of(wildcards).megabytes(stage, int(wildcards.get("cycle", wildcards.get("block", 0))))

    return megabytes


def runtime_of(stage):
    """A resource function: the minutes that a batch system gives a stage, more in each attempt."""

    def minutes(wildcards, attempt):
        return attempt * run_of(wildcards).minutes(stage, int(wildcards.get("cycle", wildcards.get("block", 0))))

    return minutes


def parts_of_block(wildcards):
    return run_of(wildcards).parts_of_block(int(wildcards.block))


def code_of(stage):
    """What makes a stage run again when its code has changed, and only then."""
    return fingerprint(f"stages.{stage}")


def first_shard(wildcards):
    return run_of(wildcards).path(layout.SHARD, 0)


def event_files(wildcards):
    return PLAN.event_files()


def event_inputs(wildcards):
    return PLAN.event_inputs(run_of(wildcards))


def cycles_of_run(wildcards):
    return PLAN.cycles[run_of(wildcards)]


def videos(wildcards):
    return PLAN.videos()


# ---- around a run ----------------------------------------------------------------------------------------------


def result_inputs(wildcards):
    return PLAN.result_inputs()


# The category in the report of each file that it shows; the others lie beside them. The caption is the .rst of its name.
SHOWN = {
    "learning_curves.svg": "Returns",
    "beside_published.svg": "Returns",
    "final_returns.html": "Returns",
    "aggregate.svg": "Comparison",
    "probability_of_improvement.svg": "Comparison",
    "comparison.html": "Comparison",
    "model_shift_and_bias.svg": "Model",
    "holdout_error.svg": "Model",
    "trigger_history.svg": "Model",
    "policy_diagnostics.svg": "Policy",
    "theory_bracket.svg": "Theory",
    "theory_bias.svg": "Theory",
    "theory_surrogate.svg": "Theory",
    "theory_depth.svg": "Theory",
    "theory_bound.svg": "Theory",
}


def shown(name):
    path = Path(name)
    return report(
        f"{RESULTS}/{name}",
        caption=f"../report/{path.stem}.rst",
        category=SHOWN[name],
        labels={
            "result": path.stem.replace("_", " ").capitalize(),
            "kind": "figure" if path.suffix == ".svg" else "table",
        },
    )


def hold_runs():
    """Refuse to start while another Snakemake is at work on one of the same runs, or draws the same results."""
    jobs = list(workflow.dag.needrun_jobs())
    held = {layout.RUN.format(**job.wildcards_dict) for job in jobs if "seed" in job.wildcards_dict}
    held |= {RESULTS for job in jobs if job.rule.name == "results"}
    try:
        lifetime.hold_names(Path(), held)
    except UsbpoError as error:
        sys.exit(f"usbpo: {error}")


def start_warm_worker():
    if not workflow.local_exec:  # stages run elsewhere, and would find the way to a worker here in their environment
        return
    from usbpo import worker

    os.environ.update(USBPO_WORKER=worker.start(OWNER))
