"""Stage `phase1`: maximum likelihood on real data (algorithm, phase 1)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from usbpo.artifacts import lineage
from usbpo.artifacts import metrics as records
from usbpo.artifacts.checkpoints import check_architecture
from usbpo.artifacts.header import parameters_of
from usbpo.errors import UsbpoError, saying
from usbpo.model.ensemble import (
    KIND,
    Architecture,
    Ensemble,
    choose_elites,
    fit_scaler,
    holdout_mse,
    load,
    new_ensemble,
    standardise,
)
from usbpo.model.fitting import fit_for
from usbpo.model.passes import number_type
from usbpo.numerics import device as devices
from usbpo.numerics.optimizer import copied
from usbpo.numerics.seeding import torch_generator
from usbpo.stages.model_data import ModelData, model_data, split_holdout


@dataclass
class Snapshots:
    """The best weights of each member so far, and how long none has improved.

    The log-variance bounds are shared by all members and are not part of a member's snapshot (MBPO released code).
    """

    min_improvement: float
    patience: int
    best: Tensor
    """(members,), hold-out error of each snapshot"""
    params: dict[str, Tensor] = field(default_factory=dict)
    epochs_without: int = 0

    def offer(self, errors: Tensor, params: dict[str, Tensor]) -> bool:
        """Keep the weights of the members whose error fell by more than the threshold; True when patience is spent."""
        improved = (self.best - errors) / self.best > self.min_improvement
        if not self.params:
            self.params = {name: t for name, t in copied(params).items() if not name.endswith("variance")}
        for member in torch.nonzero(improved).flatten().tolist():
            self.best[member] = errors[member]
            for name, kept in self.params.items():
                kept[member] = params[name].detach()[member]
        self.epochs_without = 0 if improved.any() else self.epochs_without + 1
        return self.epochs_without > self.patience


def shuffled_rows(indices: Tensor, generator: torch.Generator) -> Tensor:
    """Each row of (members, rows) in a random order of its own."""
    keys = torch.rand(indices.shape, generator=generator, dtype=torch.float64, device=indices.device)
    order = keys.argsort(dim=1)
    return indices.gather(1, order)


def train(
    ensemble: Ensemble,
    training: ModelData,
    holdout: ModelData,
    generator: torch.Generator,
    *,
    learning_rate: float,
    batch_size: int,
    weight_decay: list[float],
    log_variance_penalty: float,
    min_improvement: float,
    patience: int,
    max_epochs: int | None,
) -> tuple[list[list[float]], str]:
    """Train an ensemble in place until no member improves any more.

    Returns:
        The hold-out error of every member (members,) after each epoch, and the reason for stopping.
    """
    fit_scaler(ensemble, training.inputs)
    inputs = standardise(ensemble, training.inputs)
    fit = fit_for(
        ensemble.params,
        ensemble.mle,
        inputs,
        training.targets,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        log_variance_penalty=log_variance_penalty,
        batch_size=min(batch_size, len(inputs)),
        products=ensemble.products,
    )
    rows, members = len(inputs), ensemble.architecture.members
    bootstrap = torch.randint(rows, (members, rows), generator=generator, device=inputs.device)
    snapshots = Snapshots(min_improvement, patience, torch.full((members,), 1e10, device=inputs.device))
    by_epoch: list[list[float]] = []
    stopped = ""
    while not stopped:
        for first in range(0, rows, batch_size):
            fit.take(bootstrap[:, first : first + batch_size])
        bootstrap = shuffled_rows(bootstrap, generator)
        errors = holdout_mse(ensemble, fit.params, holdout.inputs, holdout.targets)
        if not torch.isfinite(errors).all():
            raise UsbpoError("phase 1 diverged: a hold-out error is not finite; lower phase1.learning_rate.")
        by_epoch.append(errors.tolist())
        if snapshots.offer(errors, fit.params):
            stopped = f"no member improved for {snapshots.epochs_without} epochs"
        elif max_epochs is not None and len(by_epoch) >= max_epochs:
            stopped = "max_epochs reached"
    ensemble.params = {name: tensor.contiguous() for name, tensor in (fit.params | snapshots.params).items()}
    ensemble.mle = fit.moments()
    return by_epoch, stopped


def phase1(
    *,
    data: list[Path],
    output: Path,
    metrics: Path,
    seed: int,
    cycle: int,
    members: int,
    elites: int,
    hidden_layers: int,
    hidden_size: int,
    learning_rate: float,
    batch_size: int,
    weight_decay: list[float],
    log_variance_penalty: float,
    holdout_ratio: float,
    holdout_limit: int,
    min_improvement: float,
    patience: int,
    max_epochs: int | None = None,
    previous_model: Path | None = None,
    model_every: int = 1,
    check: int | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> None:
    """Train M2 by maximum likelihood on all real data, starting from M1's weights and moments.

    Args:
        data: blocks and shards of D_env, oldest first.
        output: model checkpoint to write.
        metrics: JSON to write: epochs, hold-out errors by member, elites, the reason for stopping.
        seed: run seed.
        cycle: number of the cycle.
        previous_model: M1; without it a new ensemble is trained, in the first cycle.
        model_every: cycles from one model update to the next.
        check: number of the check in whose training this is, where a trigger decides within the cycle; it seeds the
            generators in place of the cycle.
        device: where to compute.
        precision: of the products between hidden layers, float32 or bfloat16.

    Raises:
        UsbpoError: an input is missing, damaged, of another run, cycle or architecture, there is no such device or
            precision, or training diverges.
    """
    parameters = parameters_of(locals())
    place, products = devices.choose(device), number_type(precision)
    lineage.require_previous("--previous-model", previous_model, cycle, 1 + model_every)
    header, batch = lineage.begin(KIND, data, seed=seed, cycle=cycle, parameters=parameters)
    # The rows of D_env, by which the hold-out rows can be told again.
    header = replace(header, parameters={**parameters, "rows": len(batch)})
    number = cycle if check is None else check
    if len(weight_decay) != hidden_layers + 1:
        raise UsbpoError(
            f"--weight-decay must have a value for each of the {hidden_layers + 1} layers; add or drop some."
        )
    obs_dim, act_dim = batch.widths
    architecture = Architecture(obs_dim, act_dim, members, elites, hidden_layers, hidden_size)
    generator = torch_generator(seed, number, "phase1", place)
    if previous_model is None:
        ensemble = new_ensemble(architecture, torch_generator(seed, number, "new_ensemble"))
    else:
        previous_header, ensemble = load(previous_model)
        before = lineage.previous_cycles(cycle, model_every, check)
        header.takes("previous_model", previous_model, previous_header, before)
        check_architecture(previous_model, "model", ensemble.architecture, architecture)
    ensemble, rows = ensemble.to(place, products), model_data(batch)
    training_rows, holdout_rows = split_holdout(len(batch), seed, number, holdout_ratio, holdout_limit)
    training, holdout = rows.rows(training_rows).to(place), rows.rows(holdout_rows).to(place)
    at_first = holdout_mse(ensemble, ensemble.params, holdout.inputs, holdout.targets)
    with saying(f"cycle {cycle}"):
        by_epoch, stopped = train(
            ensemble,
            training,
            holdout,
            generator,
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
            log_variance_penalty=log_variance_penalty,
            min_improvement=min_improvement,
            patience=patience,
            max_epochs=max_epochs,
        )
    # Phase 2 takes its moments from M1 itself, so M2 need not carry them.
    ensemble.finetune = {}
    errors = holdout_mse(ensemble, ensemble.params, holdout.inputs, holdout.targets)
    ensemble.elites = choose_elites(errors, elites)
    digest = ensemble.save(output, header)
    records.write(
        metrics,
        header,
        {
            "training_rows": len(training_rows),
            "holdout_rows": len(holdout_rows),
            "epochs": len(by_epoch),
            "stopped": stopped,
            "holdout_mse_before": at_first.tolist(),
            "holdout_mse": errors.tolist(),
            "holdout_mse_by_epoch": by_epoch,
            "elites": ensemble.elites.tolist(),
        },
        digest,
    )
    print(f"{len(by_epoch)} epochs ({stopped}), mean elite hold-out error {errors[ensemble.elites].mean():.4g}")
