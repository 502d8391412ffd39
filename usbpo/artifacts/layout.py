"""Where everything lies: the paths of a run, of its cycles and of the results."""

import re
from pathlib import Path

RUN = "data/runs/{task}/{method}/seed-{seed}"
"""A run's folder. Task and method are names of files, so that two experiments share the runs they have in common."""

RESULTS = "data/results/{experiment}"

CYCLE = RUN + "/{cycle}"
SHARD = RUN + "/data/{cycle}.h5"
BLOCK = RUN + "/data/blocks/{block}.h5"
TRIGGER = CYCLE + "/trigger.json"
MODEL_MLE = CYCLE + "/model-mle.safetensors"
PHASE1_METRICS = CYCLE + "/phase1.json"
MODEL = CYCLE + "/model.safetensors"
PHASE2_METRICS = CYCLE + "/phase2.json"
ROLLOUTS = CYCLE + "/rollouts.h5"
ROLLOUT_METRICS = CYCLE + "/rollout.json"
POLICY = CYCLE + "/policy.safetensors"
POLICY_METRICS = CYCLE + "/policy.json"
EVALUATION = CYCLE + "/evaluation.h5"
THEORY_METRICS = CYCLE + "/theory.json"
THEORY_ROWS = CYCLE + "/theory.h5"
LOG = RUN + "/logs/{cycle}/{stage}.log"
BENCHMARK = RUN + "/benchmarks/{cycle}/{stage}.tsv"

PROVENANCE = "provenance.jsonl.gz"
"""In the folder of a run or of results that is shared: what Snakemake knows of its files."""

EVENT_FILE = "events.out.tfevents.usbpo"
"""TensorBoard reads every file with `tfevents` in its name."""
TENSORBOARD = "data/tensorboard/{task}/{method}/seed-{seed}/" + EVENT_FILE
VIDEO = "data/videos/{task}/{method}/seed-{seed}/{cycle}.gif"
EXPORTED_POLICY = "data/exports/policies/{task}/{method}/seed-{seed}/{cycle}"
MINARI = "data/exports/minari"
"""What MINARI_DATASETS_PATH is to name."""
IMPORTED = "data/imported/{task}.h5"


_LARGE = tuple(template.removeprefix(CYCLE) for template in (MODEL_MLE, MODEL, POLICY, ROLLOUTS))


def is_large(path: str) -> bool:
    """Whether a path is that of a model, a policy or rollouts, which a run need not keep of every cycle."""
    return path.endswith(_LARGE)


_IN_CYCLE = re.compile(r"data/runs/[^/]+/[^/]+/seed-[0-9]+/(?P<cycle>[0-9]{5})/[^/]+")


def cycle_of(path: str) -> int | None:
    """The cycle in whose folder a file lies; None for one that lies elsewhere, also in a folder that a user made."""
    found = _IN_CYCLE.fullmatch(path)
    return None if found is None else int(found["cycle"])


MOST_CYCLES = 99_999
"""A cycle has five digits in a path."""


def five_digits(cycle: int) -> str:
    """A cycle, or block, as it stands in a path."""
    return f"{cycle:05d}"


def runs_on_disk(root: Path) -> list[tuple[str, str, int]]:
    """The (task, method, seed) of every run folder below `root`/data/runs, sorted."""
    found = []
    for folder in (root / "data" / "runs").glob("*/*/seed-*"):
        seed = folder.name.removeprefix("seed-")
        if seed.isdecimal() and folder.name == f"seed-{int(seed)}" and folder.is_dir():
            found.append((folder.parent.parent.name, folder.parent.name, int(seed)))
    return sorted(found)
