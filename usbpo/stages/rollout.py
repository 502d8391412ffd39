"""Stage `rollout`: short rollouts in the model from real states (algorithm, step 4)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from usbpo import sac, transitions
from usbpo.ensemble import Ensemble, load, predict_one_member
from usbpo.errors import UsbpoError
from usbpo.files import write_json
from usbpo.header import Header, parameters_of
from usbpo.optimizer import Params
from usbpo.seeding import torch_generator
from usbpo.terminations import Termination, find
from usbpo.transitions import Transitions


def roll_out(
    ensemble: Ensemble,
    actor: Params,
    starts: Tensor,
    length: int,
    termination: Termination,
    generator: torch.Generator,
) -> tuple[Transitions, int]:
    """Roll the stochastic policy out in the model; branches whose state is terminal stop.

    At each step and for each row one elite is drawn, and the next state is sampled from its Gaussian.

    Args:
        starts: (branches, obs_dim).
        length: most steps of a branch.

    Returns:
        The transitions, and the number of rows whose prediction was not finite: such a row is terminal and has
        nothing to learn from, so it is left out.
    """
    obs_dim, act_dim = ensemble.architecture.obs_dim, ensemble.architecture.act_dim
    made, lost = transitions.no_transitions(obs_dim, act_dim), 0
    observations, branches = starts, torch.arange(len(starts))
    for depth in range(1, length + 1):
        rows = len(observations)
        noise = torch.randn(rows, act_dim, generator=generator)
        actions, _ = sac.sample_action(actor, observations, noise)
        members = ensemble.elites[torch.randint(len(ensemble.elites), (rows,), generator=generator)]
        mean, std = predict_one_member(ensemble, members, observations, actions)
        sample = mean + std * torch.randn(mean.shape, generator=generator)
        finite = torch.isfinite(sample).all(dim=1)
        if not finite.any():
            raise UsbpoError("the model predicts no finite state any more; lower phase1.learning_rate.")
        lost += rows - int(finite.sum())
        observations, actions, branches, sample = (t[finite] for t in (observations, actions, branches, sample))
        next_observations = sample[:, 1:].contiguous()
        terminal = termination(next_observations.numpy())
        made.append(
            Transitions(
                observations=observations.numpy(),
                actions=actions.numpy(),
                rewards=sample[:, 0].numpy(),
                next_observations=next_observations.numpy(),
                terminations=terminal,
                truncations=np.full(len(sample), depth == length) & ~terminal,
                episodes=branches.numpy(),
            )
        )
        alive = torch.from_numpy(~terminal)
        observations, branches = next_observations[alive], branches[alive]
        if not len(observations):
            break
    return made, lost


def rollout(
    *,
    data: list[Path],
    model: Path,
    policy: Path,
    output: Path,
    metrics: Path,
    termination: str,
    length: int,
    batch_size: int,
    seed: int,
    cycle: int,
) -> None:
    """Make this cycle's model rollouts.

    Args:
        data: blocks and shards of D_env, oldest first, among whose states the starts are drawn.
        model: model checkpoint.
        policy: policy checkpoint.
        output: rollouts to write.
        metrics: JSON to write.
        termination: name of the termination function (usbpo/terminations.py), or a user's module:function.
        length: rollout length of this cycle, in model steps.
        batch_size: start states.
        seed: run seed.
        cycle: number of the cycle.

    Raises:
        UsbpoError: an input is missing, damaged or of another run, or the model predicts what is not finite.
    """
    parameters = parameters_of(locals())
    terminates = find(termination)
    data_header, real = transitions.read_all(data)
    header = Header(transitions.ROLLOUTS, data_header.task, seed, cycle, parameters)
    header.belongs(data[-1], data_header)
    (model_header, ensemble), (policy_header, agent) = load(model), sac.load(policy)
    header.belongs(model, model_header)
    header.belongs(policy, policy_header)
    generator = torch_generator(seed, cycle, "rollout")
    index = torch.randint(len(real), (batch_size,), generator=generator)
    starts = torch.from_numpy(real.observations)[index]
    with torch.no_grad():
        made, lost = roll_out(ensemble, agent.actor, starts, length, terminates, generator)
    transitions.write(output, header, made)
    write_json(
        metrics,
        {
            **header.identity,
            "length": length,
            "start_states": batch_size,
            "transitions": len(made),
            "terminated": int(made.terminations.sum()),
            "not_finite": lost,
            "reward_mean": float(made.rewards.mean(dtype=np.float64)),
        },
    )
    print(f"{len(made)} model transitions, {int(made.terminations.sum())} of them terminal")
