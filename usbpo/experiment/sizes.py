"""How many numbers, rows and bytes a run's networks and data have: what its disk, time and memory follow from."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.schedule import Schedule


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run of one task with one method; rows of rollouts as if no branch ended early."""

    config: RunConfig
    schedule: Schedule
    obs_dim: int
    act_dim: int

    @property
    def row(self) -> int:
        """Bytes of a transition, its two flags and its episode included."""
        return 4 * (2 * self.obs_dim + self.act_dim + 1) + 2 + 8

    @property
    def actor(self) -> int:
        """Numbers of the actor."""
        keys = self.config.policy
        return _numbers(self.obs_dim, keys.hidden_layers, keys.hidden_size, 2 * self.act_dim)

    @property
    def critics(self) -> int:
        """Numbers of both critics."""
        keys = self.config.policy
        return 2 * _numbers(self.obs_dim + self.act_dim, keys.hidden_layers, keys.hidden_size, 1)

    @property
    def ensemble(self) -> int:
        """Numbers of all members and of their bounds; 0 without a model."""
        model = self.config.model
        if model is None:
            return 0
        outputs = self.obs_dim + 1
        member = _numbers(self.obs_dim + self.act_dim, model.hidden_layers, model.hidden_size, 2 * outputs)
        return model.members * member + 2 * outputs

    def collected_rows(self, cycle: int) -> int:
        """Real rows that `cycle` collects."""
        return self.schedule.cycle_steps if cycle else self.config.schedule.random_steps

    def real_rows(self, cycle: int) -> int:
        """Rows of D_env at the end of `cycle`."""
        return self.config.schedule.random_steps + cycle * self.schedule.cycle_steps

    def rollout_rows(self, cycle: int) -> int:
        """Rows of the model rollouts that `cycle` makes."""
        return self.config.rollout.batch_size * self.schedule.rollout_steps(cycle)

    def model_rows(self, cycle: int) -> list[int]:
        """Rows of D_model at the end of `cycle`, file by file; of a triggered model at most."""
        made = self.schedule.rollout_cycles(cycle)[-self.schedule.retained_updates :]
        return [self.rollout_rows(c) for c in made]


def _numbers(inputs: int, layers: int, width: int, outputs: int) -> int:
    """Weights and biases of a network."""
    return sum(fan_in * fan_out + fan_out for fan_in, fan_out in pairwise([inputs, *[width] * layers, outputs]))


@cache
def dimensions(environment: str, arguments: str) -> tuple[int, int] | None:
    """obs_dim and act_dim, as the environment itself says; None where it cannot be made, which `collect` will report.

    Args:
        arguments: of the environment, as JSON.
    """
    try:
        # Here, because it takes a third of a second, and what Snakemake prints may be read by a program.
        with redirect_stdout(sys.stderr):
            from usbpo.environments.tasks import Simulator

            simulator = Simulator(environment, json.loads(arguments))
            simulator.close()
    except Exception:  # of the simulator's or the user's code
        return None
    return simulator.obs_dim, simulator.act_dim
