"""Threads of a run's stages: how many each can use, and by how much they shorten it."""

from usbpo.experiment.run_config import RunConfig

CRITICS = 2
"""Which is how many pieces most of a policy update consists of"""

SHARED = {"phase1": 0.76, "phase2": 0.79, "rollout": 0.8, "policy": 0.44}
"""Share of each stage's time that threads divide, by what two of them save of a whole stage (docs/performance.md)"""


def most(config: RunConfig, stage: str) -> int:
    """How many threads a stage can use at most; one where a GPU does its work."""
    if stage not in {*SHARED, "triggered"} or config.device == "cuda":
        return 1
    members = config.model.members if config.model else 1
    return CRITICS if stage == "policy" else max(CRITICS, members)


def shortened(config: RunConfig, stage: str, seconds: float, share: int) -> float:
    """What is left of a stage's time on one thread where its run has so many cores for itself.

    By Amdahl's law. A triggered model's cycle is reckoned as a policy's.
    """
    shared = SHARED.get(stage, SHARED["policy"] if stage == "triggered" else 0.0)
    return seconds * (1.0 - shared + shared / min(most(config, stage), share))
