# Helpers of all rules: the experiment with its runs, input functions, parameters, and what happens around a run.
import gc
import json
import os
import re
import sys
from functools import cache, partial
from pathlib import Path

from snakemake.logging import logger
from snakemake.utils import validate

from usbpo.artifacts import layout
from usbpo.artifacts.files import sha256
from usbpo.experiment.loading import with_numbers
from usbpo.errors import UsbpoError
from usbpo.artifacts.fingerprint import fingerprint
from usbpo.experiment.checks import check_writable
from usbpo.experiment.plan import Plan
from usbpo.experiment.run_files import FILES
from usbpo.workspace import copied, lifetime, provenance, snakemake_inside
from usbpo.workspace.restoring import Restored, read_otherwise, restoring
from usbpo.workspace.snakemake_inside import told, without_maker

snakemake_inside.allow_long_chains()

# A DAG is millions of objects that stay; looking for dead cycles among them takes a sixth of the planning.
gc.disable()

CONFIG_FILES = snakemake_inside.configuration_files(workflow) or ["config/config.yaml"]
if snakemake_inside.has_config_words(workflow):
    CONFIG_FILES[-1] += " with --config"
CONFIG_FOLDERS = [Path("config"), Path(workflow.basedir) / "config"]

config.update(with_numbers(config))
UNUSABLE = {}  # folders whose provenance cannot be used, and why
try:
    PLAN = Plan(config, source=CONFIG_FILES[-1], folders=CONFIG_FOLDERS)
    if snakemake_inside.is_main(workflow):
        snakemake_inside.leave_log_unwritten()
        snakemake_inside.check_places([Path(), Path(workflow.basedir)])
        check_writable(Path())
        PLAN.check_files()
        lifetime.hold_workspace(Path())
        said = provenance.restore(Path(), UNUSABLE)
        said += [*copied.settle(Path()), *copied.other_package(Path(workflow.basedir))]
        for sentence in [*said, *UNUSABLE.values(), *PLAN.left_out()]:
            logger.warning(f"usbpo: {sentence}")
except UsbpoError as error:
    sys.exit(f"usbpo: {error}")

# A run that came with a damaged provenance is left out, lest all of it is made anew; the others go on.
LEFT_OUT = [run.name for run in PLAN.cycles if run.folder in UNUSABLE]
PLAN.cycles = {run: cycles for run, cycles in PLAN.cycles.items() if run.folder not in UNUSABLE}
if not PLAN.cycles:
    sys.exit("usbpo: nothing is left to do, see above.")

validate(config, "../schemas/experiment.schema.json", set_default=False)
for run_config in PLAN.configurations():
    validate(run_config, "../schemas/run.schema.json", set_default=False)

RESULTS = PLAN.results_folder

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
    run = PLAN.run(wildcards.task, wildcards.method, int(wildcards.seed))
    if run.folder in UNUSABLE:
        raise UsbpoError(UNUSABLE[run.folder])
    return run


def artifacts(wildcards):
    return PLAN.artifacts()


def result_files(wildcards):
    """The results, unless something that they are drawn from is left out."""
    return [] if LEFT_OUT or PLAN.left_behind() else rules.results.output


def of_cycle(method):
    """A parameter function that asks the run for something of the cycle in the path."""
    return told(lambda wildcards: getattr(run_of(wildcards), method)(int(wildcards.cycle)))


def of_run(method):
    """A parameter or resource function that asks the run for something that is the same in every cycle."""
    return told(lambda wildcards: getattr(run_of(wildcards), method)())


def options_of(stage):
    """A parameter function: the command-line options of a stage in the cycle, where there is one, of the path."""
    return told(lambda wildcards: run_of(wildcards).options.of(stage, int(wildcards.get("cycle", 0))))


def methods_with_trigger(phase2):
    """A pattern for the methods of the experiment whose model updates a trigger decides, with or without phase 2."""
    runs = (run for run in PLAN.cycles if run.schedule.triggered and (run.config.phase2 is not None) == phase2)
    names = sorted({re.escape(run.method) for run in runs})
    return "|".join(names) or "(?!)"


# The last of a run's stages that can use several threads.
CORES_BY_RUN = snakemake_inside.CoresByRun(workflow, ["policy", "triggered", "triggered_fine_tuned"])


def memory_of(stage):
    """A resource function: the megabytes that a stage takes in the cycle, or for the block, of the path."""

    def megabytes(wildcards):
        return run_of(wildcards).megabytes(stage, int(wildcards.get("cycle", wildcards.get("block", 0))))

    return told(megabytes)


def runtime_of(stage):
    """A resource function: the minutes that a batch system gives a stage, more in each attempt."""

    def minutes(wildcards, attempt):
        return attempt * run_of(wildcards).minutes(stage, int(wildcards.get("cycle", wildcards.get("block", 0))))

    return told(minutes)


def threads_of(stage):
    """A function of the threads of a stage: its run's share of the cores, as far as the stage can use them."""

    def threads(wildcards):
        return run_of(wildcards).threads(stage, CORES_BY_RUN.share())

    return told(threads)


def code_of(stage):
    """What makes a stage run again when its code has changed, and only then."""
    return fingerprint(f"stages.{stage}")


def event_files(wildcards):
    return PLAN.event_files()


def event_inputs(wildcards):
    return PLAN.event_inputs(run_of(wildcards))


def cycles_of_run(wildcards):
    return PLAN.cycles[run_of(wildcards)]


def videos(wildcards):
    return PLAN.videos()


# ---- what is let go and made again -----------------------------------------------------------------------------


def passing(path):
    """A model, a policy or rollouts: Snakemake deletes what no stage reads any more and the experiment does not keep."""
    return path if PLAN.experiment.artifacts.keep == "all" else temp(path)


def reads(stage, method):
    """An input function that asks the run for what a stage reads, by the method of this name."""
    return told(lambda wildcards: shown_to(stage, run_of(wildcards), int(wildcards.get("cycle", 0)), method))


def reads_of_block(wildcards):
    run, number = run_of(wildcards), int(wildcards.block)
    return shown_to("block", run, number, "parts_of_block")


def shown_to(stage, run, cycle, method):
    """What a job reads, without the makers of what is made again where it need not run for that."""
    paths, again = getattr(run, method)(cycle), restored().runs.get(run.name)
    if again is None:
        return paths
    return [without_maker(path) if again.hides(path, (stage, cycle)) else path for path in paths]


record_of = partial(snakemake_inside.record_of, workflow)


@cache
def restored():
    """What is made again although jobs have read it that need not run again.

    Asked for the first time when Snakemake plans; only then it knows its targets.
    """
    asked, nothing = snakemake_inside.asked(workflow), Restored({}, set())
    if not snakemake_inside.is_main(workflow):
        return nothing
    snakemake_inside.forgive_damaged_records(workflow, lambda sentence: logger.warning(f"usbpo: {sentence}"))
    whole = asked.targets <= {"all"} and not asked.partly
    if not whole:
        # What the experiment keeps is known by its target `all` alone; any other would let go of that as well.
        snakemake_inside.keep_temporary_files(workflow)
    if asked.forced:
        return nothing
    found = restoring(PLAN, record_of, PLAN.of_runs(asked.targets))
    for run, again in found.runs.items():
        many = "1 job" if len(again.jobs) == 1 else f"{len(again.jobs)} jobs"
        logger.info(f"{run}: {many} to run; those that have read what is made again stand, and do not run.")
    return found if whole else Restored(found.runs, set())  # nobody else asks for what the results are not shown


def check_restored():
    """Say which files were made again with other bytes than the jobs that stand have read: something was spoilt."""
    other = read_otherwise(PLAN, restored(), record_of, sha256)
    if other:
        more = f" and {len(other) - 1} more are" if len(other) > 1 else " is"
        sys.exit(
            f"usbpo: {other[0]}{more} not what was read of it before; type the command again, and its readers run."
        )


def check_left_out():
    """Say at the end, too, what was asked for and not done."""
    if LEFT_OUT:
        sys.exit(f"usbpo: {', '.join(LEFT_OUT)}: left out, see above; all else is done.")


# ---- around a run ----------------------------------------------------------------------------------------------


def result_inputs(wildcards):
    return [without_maker(path) if path in restored().for_results else path for path in PLAN.result_inputs()]


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
    jobs = snakemake_inside.jobs_to_run(workflow)
    held = {layout.RUN.format(**wildcards) for _, wildcards in jobs if "seed" in wildcards}
    held |= {RESULTS for rule, _ in jobs if rule == "results"}
    try:
        lifetime.hold_names(Path(), held)
    except UsbpoError as error:
        sys.exit(f"usbpo: {error}")


def begin():
    """Before the first job: the collector comes back, and never looks at the DAG; the warm worker starts."""
    gc.freeze()
    gc.enable()
    # Where stages run elsewhere, they would find the way to a worker here in their environment.
    if not snakemake_inside.runs_jobs_here(workflow):
        return
    from usbpo.worker import client, starting

    socket = starting.start(OWNER)
    os.environ.update(USBPO_WORKER=socket)
    # Where jobs have an environment of their own, `usbpo` is that one's; without a worker it is what the user's shell has.
    if socket and not snakemake_inside.gives_jobs_environments(workflow):
        os.environ.update(client.shell_function())
