"""Stage `phase2`: fine-tune the model by model shift plus model bias (poster eq 1; algorithm, phase 2)."""

from pathlib import Path

import torch
from torch import Tensor

from usbpo.artifacts import lineage
from usbpo.artifacts import metrics as records
from usbpo.artifacts.checkpoints import check_architecture
from usbpo.artifacts.header import parameters_of
from usbpo.errors import UsbpoError
from usbpo.model.ensemble import KIND, choose_elites, holdout_mse, load
from usbpo.model.fine_tuning import Compared, FineTuning, Sampled, fine_tune, with_real
from usbpo.model.passes import number_type
from usbpo.model.wasserstein import Rows, draw_members
from usbpo.numerics import device as devices
from usbpo.numerics.seeding import torch_generator
from usbpo.stages.model_data import model_data, split_holdout


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
    stand_in: str,
    retained_updates: int | None = None,
    model_every: int = 1,
    check: int | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> None:
    """Fine-tune M2 so that it lies between M1 and what stands for M*, on the states that π1 visits in M1.

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
        model_every: cycles from one model update to the next.
        check: number of the check in whose training this is, where a trigger decides within the cycle; it seeds the
            generators in place of the cycle.
        device: where to compute.
        precision: of the products between hidden layers, float32 or bfloat16.

    Raises:
        UsbpoError: an input is missing, damaged, of another run, cycle or architecture, there is no such device or
            precision, or the objective is not finite.
    """
    parameters = parameters_of(locals())
    place, products = devices.choose(device), number_type(precision)
    number, within = cycle if check is None else check, check is not None
    header, real = lineage.begin(KIND, data, seed=seed, cycle=cycle, parameters=parameters)
    model_rows = lineage.read_d_model(header, rollouts, cycle - 1, model_every, retained_updates, within=within)
    (m1_header, m1), (m2_header, m2) = load(previous_model), load(model_mle)
    header.takes("previous_model", previous_model, m1_header, lineage.previous_cycles(cycle, model_every, check))
    header.takes("model_mle", model_mle, m2_header, cycle)
    check_architecture(previous_model, "model", m1.architecture, m2.architecture)
    m2.finetune = m1.finetune
    m1, m2 = m1.to(place, products), m2.to(place, products)

    members = m2.architecture.members
    generator = torch_generator(seed, number, "phase2", place)
    tuning = Sampled(m1, m2) if stand_in == "samples" else FineTuning(m1, m2, loss, stand_in)
    # The released code draws the members once, when it builds its graph, one for each place in a batch.
    once = torch_generator(seed, 0, "phase2_members", place) if tuning.released else None
    if once is not None:
        fixed = draw_members(members, max(batch_size, validation_rows), once)
    observations = torch.from_numpy(model_rows.observations).to(place)
    actions = torch.from_numpy(model_rows.actions).to(place)

    def draw_for(rows: int) -> tuple[Tensor, Tensor]:
        if once is not None:
            return fixed[0][:rows], fixed[1][:rows]
        return draw_members(members, rows, generator)

    training_rows, holdout_rows = split_holdout(len(real), seed, number, holdout_ratio, holdout_limit)
    recorded = model_data(real)
    holdout = recorded.rows(holdout_rows).to(place)
    training = recorded.rows(training_rows).to(place) if isinstance(tuning, Sampled) else None
    samples = torch_generator(seed, number, "phase2_samples", place)

    def draw() -> Rows:
        index = torch.randint(len(observations), (batch_size,), generator=generator, device=place)
        rows = Rows(observations[index], actions[index], *draw_for(batch_size))
        if training is None:
            return rows
        of_real = torch.randint(len(training.inputs), index.shape, generator=samples, device=place)
        return with_real(rows, training.inputs[of_real], training.targets[of_real])

    watched = torch.randint(len(holdout_rows), (validation_rows,), generator=generator, device=place)
    obs_dim = m2.architecture.obs_dim
    validation_inputs = holdout.inputs[watched]
    drawn_inputs = validation_inputs[:, :obs_dim], validation_inputs[:, obs_dim:]
    validation_on = Rows(*drawn_inputs, *draw_for(validation_rows))
    if training is not None:
        validation_on = with_real(validation_on, validation_inputs, holdout.targets[watched])
    validation = tuning.compared(validation_on)

    mse_before = holdout_mse(m2, m2.params, holdout.inputs, holdout.targets)
    before = _described(tuning, validation)
    values, best_step, stopped = fine_tune(
        tuning,
        draw,
        validation,
        learning_rate=learning_rate,
        batch_size=batch_size if training is None else 2 * batch_size,
        max_steps=max_steps,
        min_improvement=min_improvement,
        patience=patience,
        terms=terms,
    )
    after = _described(tuning, validation)
    errors = holdout_mse(m2, m2.params, holdout.inputs, holdout.targets)
    if not torch.isfinite(torch.tensor([*values, *errors.tolist()])).all():
        raise UsbpoError(
            f"cycle {cycle}: phase 2 diverged, its objective or a hold-out error is not finite; lower "
            "phase2.learning_rate."
        )
    m2.elites = choose_elites(errors, m2.architecture.elites)
    digest = m2.save(output, header)
    records.write(
        metrics,
        header,
        {
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
        digest,
    )
    print(f"{len(values) - 1} steps ({stopped}), shift + bias {before['sum']:.4g} → {after['sum']:.4g}")


def _described(tuning: FineTuning, rows: Compared) -> dict[str, float]:
    """Shift, bias and their sum on the rows, for the metrics."""
    shift, bias = (float(value) for value in tuning.objective(rows))
    return {"shift": shift, "bias": bias, "sum": shift + bias}
