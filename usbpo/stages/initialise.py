"""Stage `initialise`: an untrained policy, the one that the first cycle collects with."""

from pathlib import Path

from usbpo.agent import sac
from usbpo.artifacts import lineage, transitions
from usbpo.artifacts.header import parameters_of
from usbpo.numerics.seeding import torch_generator


def initialise(*, data: Path, output: Path, hidden_layers: int, hidden_size: int) -> None:
    """Make the policy of cycle 0.

    Args:
        data: the random steps, whose dimensions, task and seed the policy takes over.
        output: policy checkpoint to write.
        hidden_layers: hidden layers of actor and critics.
        hidden_size: units of a hidden layer.

    Raises:
        UsbpoError: the data are missing, damaged or not those of cycle 0, or the output cannot be written.
    """
    parameters = parameters_of(locals())
    found, _ = transitions.read(data)
    header, steps = lineage.begin(sac.KIND, [data], seed=found.seed, cycle=0, parameters=parameters)
    architecture = sac.Architecture(*steps.widths, hidden_layers, hidden_size)
    agent = sac.new_agent(architecture, torch_generator(header.seed, 0, "initialise"))
    agent.save(output, header)
