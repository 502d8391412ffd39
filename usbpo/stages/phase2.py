"""Stage `phase2`: fine-tune the model by model shift plus model bias (poster eq 1; algorithm, phase 2)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from usbpo import transitions
from usbpo.checkpoints import check_architecture
from usbpo.ensemble import KIND, Ensemble, choose_elites, holdout_mse, load, predict, predict_one_member
from usbpo.errors import UsbpoError
from usbpo.files import write_json
from usbpo.header import Header, parameters_of
from usbpo.optimizer import Adam, copied, trainable
from usbpo.seeding import torch_generator
from usbpo.stages.model_data import model_data, split_holdout
from usbpo.wasserstein import LOSSES, Objective


@dataclass(frozen=True)
class Rows:
    """State-action pairs with the members i of M1 and j of M2 that are compared on each."""

    observations: Tensor
    actions: Tensor
    members1: Tensor
    members2: Tensor


def draw_members(count: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A member of M1 and one of M2 for each row, each (rows,), uniformly among all `count`."""
    drawn = torch.randint(count, (2, rows), generator=generator)
    return drawn[0], drawn[1]


class FineTuning:
    """M1, M2 and the form of the objective between them."""

    def __init__(self, m1: Ensemble, m2: Ensemble, loss: str) -> None:
        self.m2, self.loss, self.released = m2, LOSSES[loss], loss == "as_released"
        self.m1 = m1
        self.params = trainable(m2.params)

    def objective(self, rows: Rows) -> Objective:
        """Shift and bias on the rows; differentiable in M2's parameters."""
        # M1 is a constant, but for the bounds that the released form shares with M2.
        with nullcontext() if self.released else torch.no_grad():
            first = self._predict_m1(rows)
        second = predict(self.m2, self.params, rows.observations, rows.actions)
        return self.loss(first, second, rows.members2)

    def _predict_m1(self, rows: Rows) -> tuple[Tensor, Tensor]:
        m1 = self.m1
        if self.released:
            # The released code backs up M1's weights alone: it shares M2's scaler and log-variance bounds.
            bounds = {name: self.params[name] for name in ("max_log_variance", "min_log_variance")}
            m1 = Ensemble(
                m1.architecture, m1.params | bounds, self.m2.scaler_mean, self.m2.scaler_std, m1.elites, {}, {}
            )
        return predict_one_member(m1, rows.members1, rows.observations, rows.actions)


def fine_tune(
    tuning: FineTuning,
    draw: Callable[[], Rows],
    validation: Rows,
    *,
    learning_rate: float,
    max_steps: int,
    min_improvement: float,
    patience: int,
    terms: str,
) -> tuple[list[float], int, str]:
    """Minimise the objective in place, and leave M2 at the best step: no step at all is a legal outcome.

    Returns:
        The objective on the validation rows before the first step and after each, the best step, and the reason
        for stopping.
    """

    def watched() -> float:
        with torch.no_grad():
            return float(tuning.objective(validation).of(terms))

    adam = Adam(tuning.params, learning_rate, tuning.m2.finetune)
    values = [watched()]
    best, best_step, best_params = values[0], 0, copied(tuning.params)
    stopped = "max_steps reached"
    for step in range(1, max_steps + 1):
        adam.minimise(tuning.objective(draw()).of(terms))
        values.append(watched())
        # An objective of 0 cannot fall any further, and a NaN compares false: neither is an improvement.
        if best > 0 and (best - values[-1]) / best > min_improvement:
            best, best_step, best_params = values[-1], step, copied(tuning.params)
        elif step - best_step > patience:
            stopped = f"no improvement for {step - best_step} steps"
            break
    tuning.m2.params = best_params
    tuning.m2.finetune = copied(adam.moments())
    tuning.params = trainable(best_params)
    return values, best_step, stopped


def phase2(
    *,
    data: list[Path],
    rollouts: list[Path],
    model_mle: Path,
    previous_model: Path,
    output: Path,
    metrics: Path,
    seed: int,
    cycle: int,
    holdout_ratio: float,
    holdout_limit: int,
    learning_rate: float,
    batch_size: int,
    max_steps: int,
    validation_rows: int,
    min_improvement: float,
    patience: int,
    loss: str,
    terms: str,
    retained_updates: int | None = None,
) -> None:
    """Fine-tune M2 so that it is close to M1 and its members agree, on the states that π1 visits in M1.

    Args:
        data: blocks and shards of D_env, oldest first; its hold-out rows are those of phase 1.
        rollouts: D_model, the model rollouts of the previous cycles, which stand for d_M1^π1.
        model_mle: M2 as phase 1 left it.
        previous_model: M1.
        output: model checkpoint to write.
        metrics: JSON to write: shift, bias and their sum before and after, steps, the reason for stopping.
        seed: run seed.
        cycle: number of the cycle.
        retained_updates: of how many model updates the rollouts are D_model, the last ones; without it all.

    Raises:
        UsbpoError: an input is missing, damaged, of another run or architecture, or the objective is not finite.
    """
    parameters = parameters_of(locals())
    data_header, real = transitions.read_all(data)
    header = Header(KIND, data_header.task, seed, cycle, parameters)
    header.belongs(data[-1], data_header)
    rollout_header, model_rows = transitions.read_rollouts(rollouts, retained_updates)
    header.belongs(rollouts[-1], rollout_header)
    (m1_header, m1), (m2_header, m2) = load(previous_model), load(model_mle)
    header.belongs(previous_model, m1_header)
    header.belongs(model_mle, m2_header)
    check_architecture(previous_model, "model", m1.architecture, m2.architecture)
    m2.finetune = m1.finetune

    members = m2.architecture.members
    generator = torch_generator(seed, cycle, "phase2")
    tuning = FineTuning(m1, m2, loss)
    # The released code draws the members once, when it builds its graph, one for each place in a batch.
    once = torch_generator(seed, 0, "phase2_members") if tuning.released else None
    if once is not None:
        fixed = draw_members(members, max(batch_size, validation_rows), once)
    observations = torch.from_numpy(model_rows.observations)
    actions = torch.from_numpy(model_rows.actions)

    def draw_for(rows: int) -> tuple[Tensor, Tensor]:
        if once is not None:
            return fixed[0][:rows], fixed[1][:rows]
        return draw_members(members, rows, generator)

    def draw() -> Rows:
        index = torch.randint(len(observations), (batch_size,), generator=generator)
        return Rows(observations[index], actions[index], *draw_for(batch_size))

    everything = model_data(real)
    _, holdout_rows = split_holdout(len(real), seed, cycle, holdout_ratio, holdout_limit)
    holdout = everything.rows(holdout_rows)
    watched = torch.randint(len(holdout_rows), (validation_rows,), generator=generator)
    obs_dim = m2.architecture.obs_dim
    validation_inputs = holdout.inputs[watched]
    validation = Rows(validation_inputs[:, :obs_dim], validation_inputs[:, obs_dim:], *draw_for(validation_rows))

    mse_before = holdout_mse(m2, m2.params, holdout.inputs, holdout.targets)
    before = _described(tuning, validation)
    values, best_step, stopped = fine_tune(
        tuning,
        draw,
        validation,
        learning_rate=learning_rate,
        max_steps=max_steps,
        min_improvement=min_improvement,
        patience=patience,
        terms=terms,
    )
    after = _described(tuning, validation)
    errors = holdout_mse(m2, m2.params, holdout.inputs, holdout.targets)
    if not torch.isfinite(torch.tensor([*values, *errors])).all():
        raise UsbpoError(f"{model_mle}: fine-tuning diverged, the objective is not finite; lower phase2.learning_rate.")
    m2.elites = choose_elites(errors, m2.architecture.elites)
    m2.save(output, header)
    write_json(
        metrics,
        {
            **header.identity,
            "model_rows": len(observations),
            "validation_rows": validation_rows,
            "before": before,
            "after": after,
            "steps": len(values) - 1,
            "best_step": best_step,
            "stopped": stopped,
            "objective_by_step": values,
            "holdout_mse_before": mse_before.tolist(),
            "holdout_mse": errors.tolist(),
            "elites": m2.elites.tolist(),
        },
    )
    print(f"{len(values) - 1} steps ({stopped}), shift + bias {before['sum']:.4g} → {after['sum']:.4g}")


def _described(tuning: FineTuning, rows: Rows) -> dict[str, float]:
    """Shift, bias and their sum on the rows, for the metrics."""
    with torch.no_grad():
        shift, bias = (float(value) for value in tuning.objective(rows))
    return {"shift": shift, "bias": bias, "sum": shift + bias}
