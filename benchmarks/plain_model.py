"""The model's computations as plain torch and autograd: what `usbpo/model/passes.py` and the stages are held against.

Nothing here is fast, and nothing of it is used by the package; it reads as the algorithm does.
`benchmarks/model_speed.py` measures it too.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from usbpo.agent import sac
from usbpo.model.ensemble import BOUNDS, Ensemble, bounded, negative_log_likelihood, raw_outputs, standardise
from usbpo.model.passes import layer_count
from usbpo.model.wasserstein import Objective, Rows, as_released, as_written
from usbpo.numerics.optimizer import Params, trainable

Gaussians = tuple[Tensor, Tensor]
"""Mean and standard deviation."""


def outputs(params: Params, inputs: Tensor) -> Tensor:
    """Outputs of all members, (members, rows, 2 · (obs_dim + 1)), before the bounds."""
    hidden = inputs
    layers = layer_count(params)
    for layer in range(layers):
        hidden = torch.baddbmm(params[f"bias.{layer}"], hidden, params[f"weight.{layer}"])
        hidden = silu(hidden) if layer < layers - 1 else hidden
    return hidden


def gradients(params: Params, loss: Callable[[Params], Tensor]) -> Params:
    """Autograd's gradients of a function of the parameters; 0 for those that it does not use."""
    followed = trainable(params)
    found = torch.autograd.grad(loss(followed), list(followed.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(params.items(), found, strict=True)}


class PlainLikelihood:
    """A step of phase 1 by autograd and `torch.optim.Adam`; arguments as in `likelihood.LikelihoodStep`."""

    def __init__(
        self,
        params: Params,
        learning_rate: float,
        inputs: Tensor,
        targets: Tensor,
        weight_decay: Sequence[float],
        log_variance_penalty: float,
    ) -> None:
        self.params = trainable(params)
        self.adam = torch.optim.Adam(list(self.params.values()), lr=learning_rate, fused=True)
        self.inputs, self.targets = inputs, targets
        self.decay, self.penalty = weight_decay, log_variance_penalty

    def take(self, index: Tensor) -> None:
        """Learn from the rows of these numbers, (members, rows)."""
        minibatch = self.inputs[index], self.targets[index]
        self.adam.zero_grad()
        negative_log_likelihood(self.params, *minibatch, self.decay, self.penalty).backward()  # type: ignore[no-untyped-call]
        self.adam.step()


def predictions(params: Params, scaler: Ensemble, observations: Tensor, actions: Tensor) -> Gaussians:
    """Gaussians of (reward, s') by all members of `params`, (members, rows, obs_dim + 1)."""
    inputs = standardise(scaler, torch.cat([observations, actions], dim=1))
    mean, log_variance = raw_outputs(params, inputs.expand(len(params["weight.0"]), -1, -1))
    return torch.cat([mean[..., :1], mean[..., 1:] + observations], dim=-1), torch.exp(0.5 * log_variance)


def one_member_predictions(
    params: Params, scaler: Ensemble, members: Tensor, observations: Tensor, actions: Tensor
) -> Gaussians:
    """Gaussians of (reward, s') by one member for each row, (rows, obs_dim + 1), one member after the other."""
    found: list[Tensor] = []
    for member in range(len(params["weight.0"])):
        rows = torch.nonzero(members == member).squeeze(1)
        alone = {name: t if name in BOUNDS else t[member : member + 1] for name, t in params.items()}
        found += [torch.cat([g[0] for g in predictions(alone, scaler, observations[rows], actions[rows])], dim=1)]
    order = torch.cat([torch.nonzero(members == member).squeeze(1) for member in range(len(params["weight.0"]))])
    together = torch.cat(found)[torch.argsort(order)]
    mean, std = together.chunk(2, dim=1)
    return mean, std


def objective(m1: Ensemble, m2: Ensemble, params: Params, form: tuple[str, str], rows: Rows) -> Objective:
    """Shift and bias in raw units of (reward, s'); differentiable in `params`, which are those of M2 in training.

    Args:
        m2: before training, which is the stand-in for M* that is fixed.
        form: `loss` and `stand_in`, as in `FineTuning`.
    """
    loss, stand_in = form
    released = loss == "as_released"
    bounds = {name: params[name] for name in BOUNDS} if released else {}
    first = one_member_predictions(
        m1.params | bounds, m2 if released else m1, rows.members1, rows.observations, rows.actions
    )
    second = predictions(params, m2, rows.observations, rows.actions)
    if released:
        return as_released(first, second, rows.members2)
    m_star = predictions(m2.params, m2, rows.observations, rows.actions) if stand_in == "fixed" else None
    return as_written(first, second, rows.members2, m_star)


class PlainDescent:
    """A step of phase 2 by autograd and `torch.optim.Adam`, and the value that is watched."""

    def __init__(self, m1: Ensemble, m2: Ensemble, form: tuple[str, str], learning_rate: float, terms: str) -> None:
        self.m1, self.m2, self.form, self.terms = m1, m2, form, terms
        self.params = trainable(m2.params)
        self.adam = torch.optim.Adam(list(self.params.values()), lr=learning_rate, fused=True)

    def step(self, rows: Rows) -> None:
        """One step on the rows."""
        self.adam.zero_grad()
        objective(self.m1, self.m2, self.params, self.form, rows).of(self.terms).backward()  # type: ignore[no-untyped-call]
        self.adam.step()

    @torch.no_grad()
    def value(self, rows: Rows) -> Tensor:
        """The objective on the rows."""
        return objective(self.m1, self.m2, self.params, self.form, rows).of(self.terms)


@torch.no_grad()
def model_step(
    ensemble: Ensemble, actor: Params, observations: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Actions, and sampled (reward, s') where finite: one step of a rollout."""
    device, rows = observations.device, len(observations)
    noise = torch.randn(rows, ensemble.architecture.act_dim, generator=generator, device=device)
    actions, _ = sac.sample_action(actor, observations, noise)
    members = ensemble.elites[torch.randint(len(ensemble.elites), (rows,), generator=generator, device=device)]
    mean, std = one_member_predictions(ensemble.params, ensemble, members, observations, actions)
    sample = mean + std * torch.randn(mean.shape, generator=generator, device=device)
    finite = torch.isfinite(sample).all(dim=1)
    return actions[finite], sample[finite]


@torch.no_grad()
def holdout_mse(ensemble: Ensemble, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each member's mean, (members,)."""
    mean, _ = bounded(params, outputs(params, standardise(ensemble, inputs).expand(len(params["weight.0"]), -1, -1)))
    return (mean - targets).square().mean(dim=(1, 2))
