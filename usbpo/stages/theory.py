"""Stage `theory`: shift, bias and the bounds of the poster, measured against the simulator (eq 1 and 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usbpo.agent import sac
from usbpo.artifacts import hdf5, lineage
from usbpo.artifacts import metrics as records
from usbpo.artifacts.checkpoints import check_architecture
from usbpo.artifacts.header import Header, parameters_of
from usbpo.artifacts.transitions import Transitions
from usbpo.environments import terminations
from usbpo.environments.reconstruction import Reconstruction, reconstruction
from usbpo.environments.tasks import Simulator, read_arguments
from usbpo.environments.terminations import Termination
from usbpo.errors import UsbpoError
from usbpo.model.ensemble import Ensemble, load, predict, predict_one_member
from usbpo.model.theory import bound_on_delta, bracket, rank_correlation, surrogate_bias, w2_to_point
from usbpo.model.wasserstein import Rows, draw_members, drawn, w2
from usbpo.numerics.optimizer import Params
from usbpo.numerics.seeding import torch_generator
from usbpo.stages.model_data import split_holdout
from usbpo.stages.rollout import roll_out

KIND = "theory"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredRows(Rows):
    """The same with what M* makes of them."""

    real: Tensor | None
    """Reward and next state, (rows, 1 + obs_dim), double; None where the simulator cannot be asked"""


def measure(
    rows: MeasuredRows,
    m1: Ensemble | None,
    m2: Ensemble,
    policy_shift: float,
    discount: float,
    m_star: Ensemble | None = None,
) -> tuple[dict[str, float | None], dict[str, Tensor]]:
    """The terms of eq 1 and 4 on some rows, and the distances of each row that they are made of.

    What cannot be measured is null: the shift without an M1, the true bias without a simulator, and the surrogate bias
    with a stand-in for M* that is fixed without a phase 2.

    Args:
        m_star: that stand-in, M2 as phase 1 left it.
    """
    with torch.no_grad():
        all_members = _double(predict(m2, m2.params, rows.observations, rows.actions))
        second = drawn(all_members[0], rows.members2), drawn(all_members[1], rows.members2)
        each = {"surrogate_bias": surrogate_bias(all_members, rows.members2, all_members)}
        if m_star is not None:
            still = _double(predict(m_star, m_star.params, rows.observations, rows.actions))
            each["surrogate_bias_fixed"] = surrogate_bias(all_members, rows.members2, still)
        first = None
        if m1 is not None:
            first = _double(predict_one_member(m1, rows.members1, rows.observations, rows.actions))
            each["shift"] = w2(*first, *second)
        if rows.real is not None:
            each["true_bias"] = w2_to_point(*second, rows.real)
            each["error"] = (second[0] - rows.real).norm(dim=1)
        if first is not None and rows.real is not None:
            distances = bracket(first, second, rows.real)
            each |= {"previous_bias": distances.previous_bias, "bracket": distances.values}
    terms: dict[str, float | None] = dict.fromkeys(
        ("shift", "surrogate_bias", "surrogate_bias_fixed", "true_bias", "error", "previous_bias", "bracket")
    )
    terms |= {name: float(values.mean()) for name, values in each.items()}
    terms |= {"spread": float(second[1].norm(dim=1).mean()), "true_bias_max": None, "rank_correlation": None}
    terms |= {"rank_correlation_fixed": None, "bound_shift_term": None, "bound_policy_term": None, "bound": None}
    if "true_bias" in each:
        terms["true_bias_max"] = float(each["true_bias"].max())
        for name in ("", "_fixed"):
            if (surrogate := each.get(f"surrogate_bias{name}")) is not None:
                truth = each["true_bias"].numpy()
                terms[f"rank_correlation{name}"] = rank_correlation(surrogate.numpy(), truth)
        if "shift" in each:
            bound = bound_on_delta(each["shift"], each["true_bias"], policy_shift, discount)
            terms |= {"bound_shift_term": bound.shift_term, "bound_policy_term": bound.policy_term}
            terms["bound"] = sum(bound)
    return terms, each


def _double(gaussian: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return gaussian[0].double(), gaussian[1].double()


def policy_shift(actor1: Params, actor2: Params, observations: Tensor) -> float:
    """ε_π: the mean over the states of W2 between the Gaussians of π1 and π2 before the tanh, in units of actions.

    Args:
        observations: (states, obs_dim).
    """
    with torch.no_grad():
        (mean1, log_std1), (mean2, log_std2) = (sac.policy_outputs(a, observations) for a in (actor1, actor2))
        return float(w2(mean1.double(), log_std1.double().exp(), mean2.double(), log_std2.double().exp()).mean())


def error_by_depth(
    m2: Ensemble,
    actor: Params,
    starts: Tensor,
    depth: int,
    termination: Termination,
    world: Reconstruction,
    generator: torch.Generator,
) -> list[dict[str, float | None]]:
    """How model and simulator part when both take the same actions from the same states.

    The actions are the policy's in the model's states, as in the stage `rollout`. A branch ends where the model's or
    the simulator's state is terminal.

    Args:
        starts: (branches, obs_dim).
        depth: most steps of a branch.

    Returns:
        For each depth d that a branch reaches: the number of branches; mean and quartiles of ‖ŝ_d − s_d‖; how far the
        simulator has moved, mean ‖s_d − s_0‖; and the mean W2 of one step at the model's own state ŝ_{d−1}.
    """
    with torch.no_grad():
        made, _ = roll_out(m2, actor, starts, depth, termination, generator)
        members = m2.elites[torch.randint(len(m2.elites), (len(made),), generator=generator)]
        mean, std = _double(
            predict_one_member(m2, members, torch.from_numpy(made.observations), torch.from_numpy(made.actions))
        )
    at, actions = _by_branch(made, len(starts), depth)
    real = world.follow(starts.numpy(), actions)[..., 1:]
    real[_ended(real, termination)] = np.nan
    one_step = w2_to_point(mean, std, torch.from_numpy(world.next_states(made.observations, made.actions))).numpy()
    lines: list[dict[str, float | None]] = []
    for step in range(depth):
        branches = np.flatnonzero((at[:, step] >= 0) & np.isfinite(real[:, step]).all(axis=1))
        if not len(branches):
            break
        reached = real[branches, step]
        errors = np.linalg.norm(made.next_observations[at[branches, step]] - reached, axis=1)
        asked = one_step[at[branches, step]]
        lines.append(
            {
                "depth": step + 1,
                "branches": len(branches),
                "error_mean": float(errors.mean()),
                **{f"error_q{q}": float(np.quantile(errors, q / 100)) for q in (25, 50, 75)},
                "moved": float(np.linalg.norm(reached - starts.numpy()[branches], axis=1).mean()),
                "one_step": float(np.nanmean(asked)) if np.isfinite(asked).any() else None,
            }
        )
    return lines


def _by_branch(made: Transitions, branches: int, depth: int) -> tuple[NDArray[np.int64], Array]:
    """For each branch and step its row in the rollouts, −1 where it has ended, and its actions, NaN there."""
    at = np.full((branches, depth), -1, dtype=np.int64)
    steps = np.zeros(branches, dtype=np.int64)
    for row, branch in enumerate(made.episodes):
        at[branch, steps[branch]] = row
        steps[branch] += 1
    actions = np.where((at >= 0)[..., None], made.actions[at], np.nan)
    return at, actions.astype(np.float64)


def _ended(real: Array, termination: Termination) -> NDArray[np.bool_]:
    """(branches, steps): whether the simulator's state was terminal before that step was taken."""
    terminal = np.stack([termination(real[:, step]) for step in range(real.shape[1])], axis=1)
    before = np.roll(np.logical_or.accumulate(terminal, axis=1), 1, axis=1)
    before[:, 0] = False
    return np.asarray(before)


def floor(world: Reconstruction, real: Transitions) -> dict[str, float | int | None]:
    """How well a reconstructed state stands for the real one: the W2 below which nothing can be told.

    Returns:
        Of the distance between (reward, s') as recorded and as simulated from s's reconstruction: median, mean, 95 %
        quantile and largest; the rows asked, and of these how many determine no state (clipped velocities).
    """
    simulated = world.next_states(real.observations, real.actions)
    errors = np.linalg.norm(simulated - _outcomes(real), axis=1)
    known = errors[np.isfinite(errors)]
    found: dict[str, float | int | None] = {"rows": len(errors), "undetermined": len(errors) - len(known)}
    for name, quantile in (("median", 0.5), ("q95", 0.95), ("max", 1.0)):
        found[name] = float(np.quantile(known, quantile)) if len(known) else None
    return found | {"mean": float(known.mean()) if len(known) else None}


def _outcomes(batch: Transitions) -> Array:
    """Reward and next state, (rows, 1 + obs_dim)."""
    return np.hstack([batch.rewards[:, None], batch.next_observations]).astype(np.float64)


def theory(
    *,
    data: list[Path],
    model_mle: Path,
    previous_policy: Path,
    policy: Path,
    output: Path,
    metrics: Path,
    environment: str,
    termination: str,
    seed: int,
    cycle: int,
    rows: int,
    starts: int,
    depth: int,
    holdout_ratio: float,
    holdout_limit: int,
    discount: float,
    rollouts: list[Path] | None = None,
    model: Path | None = None,
    previous_model: Path | None = None,
    retained_updates: int | None = None,
    model_every: int = 1,
    environment_arguments: str = "{}",
) -> None:
    """Measure model shift, model bias and the bounds of a cycle before and after phase 2, against the simulator.

    Args:
        data: blocks and shards of D_env, oldest first; its hold-out rows are those of phase 1.
        model_mle: M2 as phase 1 left it.
        previous_policy: π1, with which this cycle's model rollouts were made.
        policy: π2, the policy at the end of this cycle.
        output: HDF5 to write: surrogate (moving and fixed) and true bias, shift and bracket of each row.
        metrics: JSON to write: the terms of eq 1 and 4, and the model's error over rollout depth.
        environment: Gymnasium id.
        termination: name of the termination function (usbpo/environments/terminations.py).
        seed: run seed.
        cycle: number of the cycle.
        rollouts: D_model when phase 2 ran, the model rollouts of the previous cycles; none in the first cycle.
        model: M2 as phase 2 left it; none where there is no phase 2.
        previous_model: M1; none at first.
        retained_updates: of how many model updates the rollouts are D_model, the last ones; without it all.
        model_every: cycles from one model update to the next.
        environment_arguments: keyword arguments of the environment, as JSON.

    Raises:
        UsbpoError: an input is missing, damaged, of another run, cycle or architecture, or the model predicts what is
            not finite.
    """
    parameters = parameters_of(locals())
    ends = terminations.find(termination)
    header, real = lineage.begin(KIND, data, seed=seed, cycle=cycle, parameters=parameters)
    lineage.require_previous("--previous-model", previous_model, cycle, 1 + model_every)
    lineage.require_d_model(header, rollouts or [], cycle - 1, model_every, retained_updates)
    mle_header, mle = _model(header, "model_mle", model_mle, [cycle])
    after = _model(header, "model", model, [cycle], like=mle)[1] if model else mle
    before = mle if model else None
    earlier = lineage.previous_cycles(cycle, model_every)
    m1 = _model(header, "previous_model", previous_model, earlier, like=after)[1] if previous_model else None
    agent1 = _agent(header, "previous_policy", previous_policy, cycle - 1, after)
    agent2 = _agent(header, "policy", policy, cycle, after)
    check_architecture(policy, "policy", agent2.architecture, agent1.architecture)
    actor1, actor2 = agent1.actor, agent2.actor
    simulator = Simulator(environment, read_arguments(environment_arguments))
    sizes = (after.architecture.obs_dim, after.architecture.act_dim)
    simulator.require_sizes(f"{model_mle}: its model", sizes, "give files of this task")
    world = reconstruction(simulator)

    generator = torch_generator(seed, cycle, "theory")
    members = after.architecture.members
    held_out = _held_out(model_mle, mle_header, holdout_ratio, holdout_limit)
    sets = {"holdout": real.rows(_some(held_out, rows, generator).numpy())}
    outcomes: dict[str, Array | None] = {"holdout": _outcomes(sets["holdout"])}
    if rollouts:
        model_rows = lineage.read_d_model(header, rollouts, cycle - 1, model_every, retained_updates)
        made = model_rows.rows(_some(torch.arange(len(model_rows)), rows, generator).numpy())
        sets["rollout"] = made
        outcomes["rollout"] = world.next_states(made.observations, made.actions) if world else None

    found: dict[str, Any] = dict.fromkeys(("holdout", "rollout"))
    each: dict[str, dict[str, Tensor]] = {}
    for place, batch in sets.items():
        compared = _rows(batch, outcomes[place], members, generator)
        if not len(compared):
            continue
        shift = policy_shift(actor1, actor2, compared.observations)
        found[place] = {"rows": len(compared), "policy_shift": shift, "before": None}
        for phase, m2 in (("before", before), ("after", after)):
            if m2 is not None:
                found[place][phase], each[f"{place}/{phase}"] = measure(compared, m1, m2, shift, discount, before)
    _check_finite(model or model_mle, found)

    reconstructed, by_depth = None, None
    if world:
        reconstructed = floor(world, sets["holdout"])
        begin = torch.from_numpy(real.observations)[_some(held_out, starts, generator)]
        begin = begin[torch.from_numpy(world.determines(begin.numpy()))]
        if len(begin):
            by_depth = error_by_depth(after, actor1, begin, depth, ends, world, generator)
    digest = _write_rows(output, header, each)
    records.write(
        metrics,
        header,
        {
            "discount": discount,
            **found,
            "reconstruction": reconstructed,
            "depth": by_depth,
        },
        digest,
    )
    last = found["rollout"] or found["holdout"]
    print(f"bias {_said(last['after']['true_bias'])}, bracket {_said(last['after']['bracket'])} on {last['rows']} rows")


def _model(
    header: Header, name: str, path: Path, cycles: list[int], like: Ensemble | None = None
) -> tuple[Header, Ensemble]:
    """A model with its header, which what `header` begins is made from."""
    found, ensemble = load(path)
    header.takes(name, path, found, cycles)
    if like is not None:
        check_architecture(path, "model", ensemble.architecture, like.architecture)
    return found, ensemble


def _held_out(path: Path, header: Header, ratio: float, limit: int) -> Tensor:
    """The rows of D_env that phase 1 held out when it made a checkpoint, in mid-cycle where a trigger decided.

    Args:
        path: the checkpoint.
        header: that of the checkpoint.
        ratio, limit: share and most rows, as phase 1 held them out.
    """
    try:
        rows, training = int(header.parameters["rows"]), int(header.parameters.get("check", header.cycle))
    except (KeyError, ValueError, TypeError) as error:
        raise UsbpoError(f"{path}: it does not say which rows it was trained on; delete it and run again.") from error
    return split_holdout(rows, header.seed, training, ratio, limit)[1]


def _agent(header: Header, name: str, path: Path, cycle: int, model: Ensemble) -> sac.Agent:
    found, agent = sac.load(path)
    header.takes(name, path, found, cycle)
    sizes = agent.architecture
    expected = sac.Architecture(
        model.architecture.obs_dim, model.architecture.act_dim, sizes.hidden_layers, sizes.hidden_size
    )
    check_architecture(path, "policy", sizes, expected)
    return agent


def _some(index: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the rows in `index`, none twice."""
    return index[torch.randperm(len(index), generator=generator)[:count]]


def _rows(batch: Transitions, outcomes: Array | None, members: int, generator: torch.Generator) -> MeasuredRows:
    """Draw the members; rows whose outcome the simulator could not tell are left out."""
    members1, members2 = draw_members(members, len(batch), generator)
    known = np.ones(len(batch), np.bool_) if outcomes is None else np.isfinite(outcomes).all(axis=1)
    kept = torch.from_numpy(known)
    return MeasuredRows(
        torch.from_numpy(batch.observations)[kept],
        torch.from_numpy(batch.actions)[kept],
        members1[kept],
        members2[kept],
        None if outcomes is None else torch.from_numpy(outcomes[known]),
    )


def _check_finite(path: Path, found: Mapping[str, Any]) -> None:
    numbers = [
        value
        for place in found.values()
        for phase in ("before", "after")
        for value in ((place or {}).get(phase) or {}).values()
        if value is not None
    ]
    if not np.isfinite(numbers).all():
        raise UsbpoError(f"{path}: the model's predictions are not finite; lower phase1.learning_rate.")


def _write_rows(output: Path, header: Header, each: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The distances of each row, as place/phase/name; returns the file's digest."""
    rows = {
        f"{group}/{name}": values.numpy().astype(np.float32)
        for group, arrays in each.items()
        for name, values in arrays.items()
    }
    return hdf5.write(output, header, rows)


def _said(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
