# USB-PO as a DAG: collect → phase 1 → phase 2 → model rollouts → policy update → evaluate, cycle after cycle.
from snakemake.utils import min_version

min_version("9.27")

from usbpo.workspace import configfiles
from usbpo.workspace.snakemake_inside import configuration_files

# For the file below, whichever logger Snakemake was given.
configfiles.read_as_data()

# An experiment given by --configfile stands alone; only without one is the default experiment read.
if not configuration_files(workflow):

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        # In ascending order of cycle: Snakemake follows a chain of jobs by recursion.
        artifacts,
        result_files,


rule runs:
    input:
        artifacts,


include: "workflow/rules/data.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/policy.smk"
include: "workflow/rules/theory.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/media.smk"


# Only where a method has a trigger: Snakemake holds every input of every job against every rule that may make it.
if any(run.schedule.triggered for run in PLAN.cycles):

    include: "workflow/rules/triggered.smk"


onstart:
    hold_runs()
    begin()


onsuccess:
    check_restored()
    check_left_out()
    if not PLAN.experiment.only and not PLAN.left_behind():
        logger.info(f"The results of the experiment are in {RESULTS}/; `usbpo status` lists the runs.")
