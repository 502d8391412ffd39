"""Stage `rollout`: short rollouts in the model from real states (algorithm, step 4)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from usbpo.agent import sac
from usbpo.artifacts import lineage, transitions
from usbpo.artifacts import metrics as records
from usbpo.artifacts.header import parameters_of
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.terminations import Termination, find
from usbpo.errors import UsbpoError, saying
from usbpo.model.ensemble import Ensemble, load, predict_one_member
from usbpo.model.passes import Forward, number_type
from usbpo.numerics import device as devices
from usbpo.numerics.optimizer import Params, moved
from usbpo.numerics.seeding import torch_generator

MOST_LOST = 0.01
"""Share of the model's predictions that may be other than finite"""


@torch.no_grad()
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
        starts: (branches, obs_dim), on the device of all networks and of the generator.
        length: most steps of a branch.

    Returns:
        The transitions, and the number of rows whose prediction was not finite: such a row is terminal and has
        nothing to learn from, so it is left out.
    """
    obs_dim, act_dim, device = ensemble.architecture.obs_dim, ensemble.architecture.act_dim, starts.device
    made, lost = transitions.no_transitions(obs_dim, act_dim), 0
    observations, branches = starts, torch.arange(len(starts), device=device)
    for depth in range(1, length + 1):
        rows = len(observations)
        noise = torch.randn(rows, act_dim, generator=generator, device=device, dtype=starts.dtype)
        actions = act(actor, observations, noise, ensemble.products)
        members = ensemble.elites[torch.randint(len(ensemble.elites), (rows,), generator=generator, device=device)]
        mean, std = predict_one_member(ensemble, members, observations, actions)
        sample = torch.randn(mean.shape, generator=generator, device=device, dtype=mean.dtype).mul_(std).add_(mean)
        # One look at the sum of all, which is seldom not finite, costs less than one at each row.
        if not torch.isfinite(sample.sum()):
            finite = torch.isfinite(sample).all(dim=1)
            if not finite.any():
                raise UsbpoError("the model predicts no finite state any more; lower phase1.learning_rate.")
            lost += rows - int(finite.sum())
            observations, actions, branches, sample = (t[finite] for t in (observations, actions, branches, sample))
        next_observations = sample[:, 1:].contiguous()
        reached = next_observations.numpy(force=True)
        terminal = termination(reached)
        made.append(
            Transitions(
                observations=observations.numpy(force=True),
                actions=actions.numpy(force=True),
                rewards=sample[:, 0].numpy(force=True),
                next_observations=reached,
                terminations=terminal,
                truncations=np.full(len(sample), depth == length) & ~terminal,
                episodes=branches.numpy(force=True),
            )
        )
        observations = next_observations
        if terminal.any():
            alive = torch.from_numpy(np.flatnonzero(~terminal)).to(device)
            observations, branches = observations.index_select(0, alive), branches.index_select(0, alive)
        if not len(observations):
            break
    return made, lost


def check_lost(made: int, lost: int) -> None:
    """Check that nearly all predictions were finite: a branch may run away, but not many.

    Raises:
        UsbpoError: too many were not.
    """
    if lost > MOST_LOST * (made + lost):
        raise UsbpoError(
            f"the model predicts NaN or infinity for {lost} of {made + lost} rows, so it has diverged; lower "
            "phase1.learning_rate, or phase2.learning_rate where there is a phase 2."
        )


def act(actor: Params, observations: Tensor, noise: Tensor, products: torch.dtype | None = None) -> Tensor:
    """Actions (rows, act_dim) of the stochastic policy: `sac.sample_action` without the densities, for many rows.

    Args:
        noise: standard normal, (rows, act_dim).
        products: precision of the products between hidden layers; default: that of the parameters.
    """
    networks = {name: tensor[None] for name, tensor in actor.items()}
    policy = Forward(networks, activation=torch.relu_, products=products)
    mean, log_std = policy.all_members(observations)[0].chunk(2, dim=-1)
    return torch.tanh(mean + torch.exp(log_std.clamp(*sac.LOG_STD_BOUNDS)) * noise)


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
    check: int | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> None:
    """Make this cycle's model rollouts.

    Args:
        data: blocks and shards of D_env, oldest first, among whose states the starts are drawn.
        model: model checkpoint.
        policy: policy checkpoint.
        output: rollouts to write.
        metrics: JSON to write.
        termination: name of the termination function (usbpo/environments/terminations.py), or a user's module:function.
        length: rollout length of this cycle, in model steps.
        batch_size: start states.
        seed: run seed.
        cycle: number of the cycle.
        check: number of the check in whose training this is, where a trigger decides within the cycle; it seeds the
            generators in place of the cycle.
        device: where to compute.
        precision: of the products between hidden layers, those of the policy too, float32 or bfloat16.

    Raises:
        UsbpoError: an input is missing, damaged or of another run or cycle, there is no such device or precision, or
            the model predicts what is not finite.
    """
    parameters = parameters_of(locals())
    terminates, place, products = find(termination), devices.choose(device), number_type(precision)
    header, real = lineage.begin(transitions.ROLLOUTS, data, seed=seed, cycle=cycle, parameters=parameters)
    (model_header, ensemble), (policy_header, agent) = load(model), sac.load(policy)
    header.takes("model", model, model_header, cycle)
    header.takes("policy", policy, policy_header, cycle if check is not None else cycle - 1)
    generator = torch_generator(seed, cycle if check is None else check, "rollout", place)
    index = torch.randint(len(real), (batch_size,), generator=generator, device=place)
    starts = torch.from_numpy(real.observations).to(place)[index]
    with saying(f"cycle {cycle}"):
        made, lost = roll_out(
            ensemble.to(place, products), moved(agent.actor, place), starts, length, terminates, generator
        )
        check_lost(len(made), lost)
    digest = transitions.write(output, header, made)
    records.write(
        metrics,
        header,
        {
            "length": length,
            "start_states": batch_size,
            "transitions": len(made),
            "terminated": int(made.terminations.sum()),
            "not_finite": lost,
            "reward_mean": float(made.rewards.mean(dtype=np.float64)),
        },
        digest,
    )
    print(f"{len(made)} model transitions, {int(made.terminations.sum())} of them terminal, {lost} more not finite")
