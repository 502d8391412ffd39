"""Fine-tuning of M2 between M1 and what stands for M*: the objective on rows, and the way down it (poster eq 1, 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from usbpo.model.ensemble import BOUNDS, Ensemble, gaussian, standardise
from usbpo.model.passes import Forward, Passes
from usbpo.model.theory import w2_to_point
from usbpo.model.wasserstein import Objective, Rows, as_released, as_written, drawn, w2
from usbpo.numerics.device import captured
from usbpo.numerics.optimizer import Adam, Params, copied, trainable


@dataclass(frozen=True)
class Compared:
    """Rows with all of the comparison that does not change while M2 is trained."""

    inputs: Tensor
    """As M2 takes them, (rows, obs_dim + act_dim)"""
    m1: Tensor
    """Outputs of M1's member i, (rows, 2 · (obs_dim + 1)): mean, and log-variance before its bounds"""
    members: Tensor
    """The members j of M2, (rows,)"""
    m_star: Tensor | None
    """Outputs of all members that stand for M*, (members, rows, 2 · (obs_dim + 1)); None where M2's own do"""


class FineTuning:
    """M1, M2 in training, what stands for M*, and the form of the objective between them.

    M* is a constant (poster eq 3). So what stands for it is M2 as it is given, which stands still (`fixed`); the
    released code has M2's own members, which move along (`moving`). `Sampled` has what was recorded of M* itself.

    What is compared are the Gaussians of (reward, s' − s): all those of a row lie nearer to the origin by the same s
    than the ones of (reward, s'), and so their distances are the same.
    """

    def __init__(self, m1: Ensemble, m2: Ensemble, loss: str, stand_in: str) -> None:
        self.m1, self.m2, self.released, self.fixed = m1, m2, loss == "as_released", stand_in == "fixed"
        self.params, self.m_star = copied(m2.params), copied(m2.params)
        self._m1_networks = Forward(m1.params, products=m1.products)
        self._m_star_networks = Forward(self.m_star, products=m2.products)

    def compared(self, rows: Rows) -> Compared:
        """What M1 and a stand-in for M* that stands still say of the rows, which are constants."""
        inputs, first = self._of_m1(rows)
        own = standardise(self.m2, inputs)
        return Compared(own, first, rows.members2, self._m_star_networks.all_members(own) if self.fixed else None)

    def _of_m1(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The rows as inputs, (rows, obs_dim + act_dim), and what M1 says of them."""
        inputs = torch.cat([rows.observations, rows.actions], dim=1)
        # The released code backs up M1's weights alone: it shares M2's scaler and log-variance bounds.
        own = standardise(self.m2 if self.released else self.m1, inputs)
        return inputs, self._m1_networks.one_member_each(rows.members1, own)

    def objective(self, rows: Compared) -> Objective:
        """Shift and bias on the rows."""
        with torch.no_grad():
            second = Forward(self.params, products=self.m2.products).all_members(rows.inputs)
            return self.between(rows.m1, second, rows.members, rows.m_star, self.params)

    def between(self, m1: Tensor, m2: Tensor, members: Tensor, m_star: Tensor | None, bounds: Params) -> Objective:
        """Shift and bias from the networks' outputs; differentiable in those of M2 and in its bounds.

        Args:
            m1: of one member for each row, (rows, 2 · (obs_dim + 1)).
            m2: of all members, (members, rows, 2 · (obs_dim + 1)).
            members: (rows,), the member of M2 drawn for each row.
            m_star: of the members that stand for M*, as those of M2; None where M2's own do.
            bounds: of M2's log-variance.
        """
        first, second = gaussian(bounds if self.released else self.m1.params, m1), gaussian(bounds, m2)
        if self.released:
            return as_released(first, second, members)
        return as_written(first, second, members, None if m_star is None else gaussian(self.m_star, m_star))


@dataclass(frozen=True)
class Halves(Rows):
    """State-action pairs of D_model for the shift, then as many of D_env for the bias."""

    outcomes: Tensor
    """(reward, s' − s) of the latter as recorded, (rows / 2, obs_dim + 1)"""


class Sampled(FineTuning):
    """What was recorded of D_env are samples of M*: bias is W2 between the member j of M2 and the Dirac there.

    The shift is on the first half of the rows, the bias on the second. The recorded outcomes travel where the outputs
    of the members that stand for M* do.
    """

    def __init__(self, m1: Ensemble, m2: Ensemble) -> None:
        super().__init__(m1, m2, "as_written", "fixed")

    def compared(self, rows: Rows) -> Compared:
        """As there, with the outcomes."""
        assert isinstance(rows, Halves)
        inputs, first = self._of_m1(rows)
        half, dim = rows.outcomes.shape
        m_star = first.new_zeros(len(self.m2.params["weight.0"]), *first.shape)
        m_star[:, half:, :dim] = rows.outcomes
        return Compared(standardise(self.m2, inputs), first, rows.members2, m_star)

    def between(self, m1: Tensor, m2: Tensor, members: Tensor, m_star: Tensor | None, bounds: Params) -> Objective:
        """As there."""
        assert m_star is not None
        first, (mean, std) = gaussian(self.m1.params, m1), (drawn(of, members) for of in gaussian(bounds, m2))
        half = len(mean) // 2
        shift = w2(first[0][:half], first[1][:half], mean[:half], std[:half])
        bias = w2_to_point(mean[half:], std[half:], m_star[0, half:, : mean.shape[1]])
        return Objective(shift.mean(), bias.mean())


def with_real(rows: Rows, inputs: Tensor, outcomes: Tensor) -> Halves:
    """The rows and, with the same members, as many of D_env.

    Args:
        inputs: (observation, action), (rows, obs_dim + act_dim).
        outcomes: (reward, s' − s) as recorded, (rows, obs_dim + 1).
    """
    obs_dim = rows.observations.shape[1]
    return Halves(
        torch.cat([rows.observations, inputs[:, :obs_dim]]),
        torch.cat([rows.actions, inputs[:, obs_dim:]]),
        rows.members1.repeat(2),
        rows.members2.repeat(2),
        outcomes,
    )


class Descent:
    """Adam steps of M2 down the objective, on batches of one size.

    Autograd differentiates the distances in the networks' outputs, `Passes` the outputs in the weights.

    Args:
        tuning: the models; the parameters in training are changed in place.
        adam: their optimizer.
        rows: rows of a batch.
        terms: what is minimised, as in `Objective.of`.
    """

    def __init__(self, tuning: FineTuning, adam: Adam, rows: int, terms: str) -> None:
        self._tuning, self._adam, self._terms = tuning, adam, terms
        self._passes = Passes(tuning.params, adam.gradients, rows, tuning.m2.products)
        self._m1 = self._passes.outputs.new_zeros(self._passes.outputs.shape[1:])
        self._members = torch.zeros(rows, dtype=torch.int64, device=self._m1.device)
        self._m_star = torch.zeros_like(self._passes.outputs) if tuning.fixed else None
        self._step = captured(self.once, self._m1.device, adam.changes())

    def step(self, rows: Compared) -> None:
        """One step on the rows."""
        self._passes.inputs.copy_(rows.inputs)
        self._m1.copy_(rows.m1)
        self._members.copy_(rows.members)
        if self._m_star is not None and rows.m_star is not None:
            self._m_star.copy_(rows.m_star)
        self._step()

    def once(self) -> None:
        self._passes.forward()
        outputs = self._passes.outputs.detach().requires_grad_()
        bounds = trainable({name: self._tuning.params[name] for name in BOUNDS})
        objective = self._tuning.between(self._m1, outputs, self._members, self._m_star, bounds)
        to_outputs, *to_bounds = torch.autograd.grad(objective.of(self._terms), [outputs, *bounds.values()])
        self._passes.deltas.copy_(to_outputs)
        for name, gradient in zip(bounds, to_bounds, strict=True):
            self._adam.gradients[name].copy_(gradient)
        self._passes.backward()
        self._adam.step()


def fine_tune(
    tuning: FineTuning,
    draw: Callable[[], Rows],
    validation: Compared,
    *,
    learning_rate: float,
    batch_size: int,
    max_steps: int,
    min_improvement: float,
    patience: int,
    terms: str,
) -> tuple[list[float], int, str]:
    """Minimise the objective in place, and leave M2 at the best step: no step at all is a legal outcome.

    Args:
        draw: gives the `batch_size` rows of a step.

    Returns:
        The objective on the validation rows before the first step and after each, the best step, and the reason
        for stopping.
    """
    adam = Adam(tuning.params, learning_rate, tuning.m2.finetune)
    descent = Descent(tuning, adam, batch_size, terms)
    watched = captured(lambda: tuning.objective(validation).of(terms), validation.inputs.device)
    values = [float(watched())]
    best, best_step, best_params = values[0], 0, copied(tuning.params)
    stopped = "max_steps reached"
    for step in range(1, max_steps + 1):
        descent.step(tuning.compared(draw()))
        values.append(float(watched()))
        # An objective of 0 cannot fall any further, and a NaN compares false: neither is an improvement.
        if best > 0 and (best - values[-1]) / best > min_improvement:
            best, best_step, best_params = values[-1], step, copied(tuning.params)
        elif step - best_step > patience:
            stopped = f"no improvement for {step - best_step} steps"
            break
    tuning.m2.params = tuning.params = best_params
    tuning.m2.finetune = adam.moments()
    return values, best_step, stopped
