"""The stages of a run: plain functions, files in and files out, with parameters and a seed.

A stage knows nothing of Snakemake and reads no configuration; the command line (`usbpo STAGE --help`) and the
rules under `workflow/rules/` call it with arguments.
"""

STAGES = (
    "initialise",
    "collect",
    "block",
    "triggered",
    "phase1",
    "phase2",
    "rollout",
    "policy",
    "evaluate",
    "theory",
)
"""Their names: each is a file here, a function of it, and a verb of the command line."""
