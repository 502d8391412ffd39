"""One update of soft actor-critic from one batch, with hand-derived gradients and buffers that are made once.

The losses, with B rows, ends of episodes d, temperature α = exp(log α) before the update and a ~ π by the tanh-Gaussian
of `sac.sample_action`:

    critics      ½ Σ_c mean (Q_c(s, a) − y)²,   y = r + γ (1 − d) (min_c Q'_c(s', a') − α log π(a'|s'))
    actor        mean (α log π(a|s) − min_c Q_c(s, a)), against the critics after their step
    temperature  log α · (H − target entropy),   H = −mean log π(a|s)
    targets      Q' ← Q' + polyak (Q − Q')

Where the order of operations is free, it is this one. benchmarks/plain_sac.py says the same with autograd, and is what
this is tested against; autograd makes every intermediate anew and differentiates the actor's loss through both critics.

Every operation writes into a buffer that stays where it is; on a GPU nothing is read back and no size depends on a
value, so that a CUDA graph holds the whole update (`usbpo.numerics.device`). Heads of one or a few units are computed
transposed (units, rows), because the products of tall and narrow matrices are many times slower.
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from usbpo.agent import sac
from usbpo.agent.networks import Stack, actor_views, layers_of, relu_backward, stored_shapes
from usbpo.agent.sac import LOG_STD_BOUNDS, Agent
from usbpo.numerics.device import captured
from usbpo.numerics.optimizer import FlatAdam, Params, flat_size, flat_views
from usbpo.numerics.threads import Spares, share_out

CPU = torch.device("cpu")
LOG_DENSITY_CONSTANT = 2.0 * log(2.0) + 0.5 * log(2.0 * torch.pi)
"""For each dimension of the action: of the Gaussian, and of log(1 − tanh²u) = 2 (log 2 − u − softplus(−2u))"""

clamp_backward = torch.ops.aten.hardtanh_backward.grad_input
softplus = torch.ops.aten.softplus.out


class Learner:
    """The agent in training.

    Fill `batch` and `noise` in place and call `update`; it overwrites the actions of `batch`.

    Args:
        agent: where to go on from; it is not changed.
        rows: rows of a batch.
        real: how many of them, the first ones, are real; the others are from the model.
        learning_rate: of actor, critics and temperature.
        discount: γ.
        polyak: share of the critics that enters the targets in each update.
        target_entropy: what the temperature aims at, nats.
        device: where to compute.
        batched: both critics in one kernel and all rows in all products, as a GPU and its graphs want it; else one
            critic after the other, whose tensors stay in the cache, and no row whose gradient is zero. By default as
            the device wants it.

    Attributes:
        batch: (2, rows, obs_dim + act_dim + 1), as `replay.pack` makes it.
        noise: standard normal, (act_dim, 2, rows), for the present and the next actions.
        actor, critics, targets, temperature: the agent's tensors, views of flat buffers.
        updates: updates taken since the beginning of the run.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        rows: int,
        real: int,
        learning_rate: float,
        discount: float,
        polyak: float,
        target_entropy: float,
        device: torch.device = CPU,
        batched: bool | None = None,
    ) -> None:
        self.architecture, self.updates, self.device = agent.architecture, agent.updates, device
        self.rows, self.real = rows, real
        self.batched = device.type != "cpu" if batched is None else batched
        self.discount, self.polyak, self.target_entropy = discount, polyak, target_entropy
        self.dtype = agent.actor["weight.0"].dtype
        with torch.no_grad():
            self._make_parameters(agent, learning_rate)
            self._make_buffers()
        self._update = captured(self._one_update, device, self._changes())

    def update(self) -> None:
        """One update of everything from `batch` and `noise`."""
        self._update()
        self.updates += 1

    def seen(self) -> dict[str, Tensor]:
        """Scalars of the last update, before the step they belong to.

        The losses, the mean Q on real and on model rows (NaN where there are none), the policy's entropy and the
        temperature.
        """
        return {
            "critic_loss": 0.5 * self._error.square().mean(dim=1).sum(),
            "actor_loss": (self._alpha * self._log_density[0] - self._policy_values.amin(dim=0)).mean(),
            "q_real": self._values[:, : self.real].mean(),
            "q_model": self._values[:, self.real :].mean(),
            "entropy": self._entropy.clone(),
            "temperature": self._alpha.clone(),
        }

    def agent(self) -> Agent:
        """A snapshot of the agent on the CPU, ready to be saved."""
        return Agent(
            architecture=self.architecture,
            actor=_snapshot(self.actor),
            critics=_snapshot(self.critics),
            targets=_snapshot(self.targets),
            temperature=_snapshot(self.temperature),
            moments={name: _snapshot(moments) for name, moments in self._moments.items()},
            updates=self.updates,
        )

    # ---- what is made once ----

    def _changes(self) -> list[Tensor]:
        """Everything that an update changes and the next one goes on from."""
        return [self._targets, *self._critic_adam.state(), *self._actor_adam.state()]

    def _make_parameters(self, agent: Agent, learning_rate: float) -> None:
        """Flat buffers for the networks, their gradients and moments, filled from the agent."""
        actor_shapes, critic_shapes = stored_shapes(self.architecture)
        critics, self._targets = (self._zeros(2, flat_size(critic_shapes)) for _ in range(2))
        weights, log_alpha = self._zeros(flat_size(actor_shapes)), self._zeros(1)
        self._critic_adam = FlatAdam([critics], learning_rate)
        self._actor_adam = FlatAdam([weights, log_alpha], learning_rate)

        views: dict[str, Callable[[Tensor], Params]] = {
            "actor": lambda buffer: actor_views(buffer, actor_shapes),
            "critics": lambda buffer: flat_views(buffer, critic_shapes),
            "temperature": lambda buffer: {"log": buffer[0]},
        }
        self.actor, self.temperature = views["actor"](weights), views["temperature"](log_alpha)
        self.critics, self.targets = views["critics"](critics), views["critics"](self._targets)
        self._moments: dict[str, Params] = {}
        for name, adam, place in (
            ("actor", self._actor_adam, 0),
            ("critics", self._critic_adam, 0),
            ("temperature", self._actor_adam, 1),
        ):
            self._moments[name] = {"step": adam.steps[place]}
            for moment, buffer in (("exp_avg", adam.exp_avg[place]), ("exp_avg_sq", adam.exp_avg_sq[place])):
                self._moments[name] |= {f"{moment}.{of}": view for of, view in views[name](buffer).items()}
        for name in (*sac.TRAINED, "targets"):
            _fill(getattr(self, name), getattr(agent, name))
        for name in sac.TRAINED:
            _fill(self._moments[name], agent.moments[name])

        self._actor_layers = layers_of(self.actor)
        self._actor_gradients = layers_of(views["actor"](self._actor_adam.gradients[0]))
        self._critic_gradients = views["critics"](self._critic_adam.gradients[0])

    def _make_buffers(self) -> None:
        """Everything that an update writes between the batch and the gradients."""
        sizes, rows = self.architecture, self.rows
        obs_dim, act_dim, hidden = sizes.obs_dim, sizes.act_dim, sizes.hidden_size
        self.batch = self._zeros(2, rows, obs_dim + act_dim + 1)
        self.noise = self._zeros(act_dim, 2, rows)
        self._observations = self.batch.view(2 * rows, -1)[:, :obs_dim]
        self._present, self._next = (half[:, : obs_dim + act_dim] for half in self.batch)
        self._rewards, self._continues = self.batch[0, :, -1], self.batch[1, :, -1]
        self._policy_inputs = self._zeros(rows, obs_dim + act_dim)
        self._to_value, self._to_take = (
            inputs[:, obs_dim : obs_dim + act_dim].t() for inputs in (self._policy_inputs, self.batch[1])
        )

        # The CPU takes the present and the next states one after the other, or at the same time.
        self._acting = [slice(2 * rows)] if self.batched else [slice(rows), slice(rows, 2 * rows)]
        self._actor_hidden = [self._zeros(2 * rows, hidden) for _ in range(sizes.hidden_layers)]
        self._actor_present = [h[:rows] for h in self._actor_hidden]
        self._actor_below = [below.t() for below in (self._observations[:rows], *self._actor_present)]
        self._head = self._zeros(2, act_dim, 2, rows)
        self._mean, self._unclipped_log_std = self._head
        self._head_rows = self._head.view(2 * act_dim, 2 * rows)
        self._head_bias, self._actor_turned = self._actor_layers[-1].bias.t(), self._actor_hidden[-1].t()
        self._log_std, self._deviation, self._before, self._actions, self._terms = (
            self._zeros(act_dim, 2, rows) for _ in range(5)
        )
        self._log_density = self._zeros(2, rows)
        self._alpha, self._entropy = self._zeros(()), self._zeros(())

        together = 2 if self.batched else 1
        places = [slice(start, start + together) for start in range(0, 2, together)]
        outputs = [self._zeros(2, rows, hidden) for _ in range(sizes.hidden_layers)]
        critics, targets = (self.critics, self._critic_gradients), (self.targets, self._critic_gradients)
        self._critic_stacks = [Stack(*critics, place, outputs) for place in places]
        self._target_stacks = [Stack(*targets, place, outputs) for place in places]
        self._values, self._target_values, self._policy_values = (self._zeros(2, rows) for _ in range(3))
        self._backup, self._error, self._of_values = self._zeros(rows), self._zeros(2, rows), self._zeros(2, rows)
        self._critic_backward = Spares(lambda: [self._zeros(together, rows, hidden) for _ in range(2)])

        self._action_gradient = self._zeros(act_dim, rows)
        self._head_gradient = self._zeros(2, act_dim, rows)
        self._actor_backward = [self._zeros(rows, hidden) for _ in range(2)]

    def _zeros(self, *shape: int | tuple[()]) -> Tensor:
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)  # type: ignore[arg-type]

    # ---- an update ----

    @torch.no_grad()
    def _one_update(self) -> None:
        self._act()
        self._evaluate()
        self._critic_adam.begin()
        share_out(self._critic_stacks, self._step_critics)
        self._step_actor_and_temperature()

    def _act(self) -> None:
        """The policy's actions in present and next states, and their log-densities."""
        torch.exp(self.temperature["log"], out=self._alpha)
        share_out(self._acting, self._pass_hidden_layers)
        last = self._actor_layers[-1]
        torch.addmm(self._head_bias, last.turned, self._actor_turned, out=self._head_rows)
        mean, log_std = self._mean, self._unclipped_log_std
        torch.clamp(log_std, *LOG_STD_BOUNDS, out=self._log_std)
        torch.exp(self._log_std, out=self._deviation).mul_(self.noise)
        torch.add(mean, self._deviation, out=self._before)
        torch.tanh(self._before, out=self._actions)
        # log π = Σ (−½ n² − log σ + 2 (u + softplus(−2u))) − constants, u before the tanh
        torch.mul(self._before, -2.0, out=self._terms)
        softplus(self._terms, out=self._terms).add_(self._before).mul_(2.0).sub_(self._log_std)
        self._terms.addcmul_(self.noise, self.noise, value=-0.5)
        torch.sum(self._terms, dim=0, out=self._log_density)
        self._log_density.sub_(self.architecture.act_dim * LOG_DENSITY_CONSTANT)

    @torch.no_grad()
    def _pass_hidden_layers(self, rows: slice) -> None:
        """Those of the policy, for some of the states."""
        hidden = self._observations[rows]
        for layer, output in zip(self._actor_layers, self._actor_hidden, strict=False):
            hidden = torch.addmm(layer.bias[0], hidden, layer.weight, out=output[rows]).relu_()

    def _evaluate(self) -> None:
        """What the critics are regressed on."""
        self._to_take.copy_(self._actions[:, 1])
        self._policy_inputs[:, : self.architecture.obs_dim].copy_(self._observations[: self.rows])
        self._to_value.copy_(self._actions[:, 0])
        share_out(self._target_stacks, self._evaluate_next)
        torch.amin(self._target_values, dim=0, out=self._backup)
        self._backup.addcmul_(self._alpha, self._log_density[1], value=-1.0)
        torch.addcmul(self._rewards, self._continues, self._backup, value=self.discount, out=self._backup)

    @torch.no_grad()
    def _evaluate_next(self, targets: Stack) -> None:
        targets.forward(self._next, self._target_values)

    @torch.no_grad()
    def _step_critics(self, critics: Stack) -> None:
        """Regress critics on the backup, move their targets, and have them value the policy's actions."""
        place = critics.place
        critics.forward(self._present, self._values)
        self._fill_critic_gradients(critics)
        self._critic_adam.step_of(0, place)
        self._targets[place].lerp_(self._critic_adam.buffers[0][place], self.polyak)
        critics.forward(self._policy_inputs, self._policy_values)

    def _fill_critic_gradients(self, critics: Stack) -> None:
        """Gradients of the critics' loss after their `forward`."""
        error, of_values = self._error[critics.place], self._of_values[critics.place]
        torch.sub(self._values[critics.place], self._backup, out=error)
        torch.mul(error, 1.0 / self.rows, out=of_values)
        *gradients, of_last = critics.gradients
        torch.bmm(of_values[:, None], critics.hidden[-1], out=of_last.turned)
        torch.sum(of_values[:, None], dim=2, keepdim=True, out=of_last.bias)
        below = [self._present.t().expand(len(error), -1, -1), *critics.hidden_turned]
        with self._critic_backward.one() as buffers:
            for place, flowing in critics.backward(of_values, critics.hidden, buffers):
                torch.bmm(below[place], flowing, out=gradients[place].weight)
                torch.sum(flowing, dim=1, keepdim=True, out=gradients[place].bias)

    def _step_actor_and_temperature(self) -> None:
        """Raise the smaller value of the policy's actions and their entropy; move the temperature."""
        values, chosen = self._policy_values, self._of_values
        torch.lt(values[0], values[1], out=chosen[0])
        torch.ge(values[0], values[1], out=chosen[1])
        if self.batched:
            self._differentiate_all_rows(chosen)
        else:
            share_out(self._critic_stacks, self._differentiate_chosen_rows)

        # With v = ∂ min Q / ∂a: ∂u = (2 α a − v (1 − a²)) / B, ∂ log σ = ∂u σ n − α / B within the clip's bounds.
        actions, (mean, log_std), rows = self._actions[:, 0], self._head_gradient, self.rows
        torch.mul(self._action_gradient, actions, out=mean).add_(self._alpha, alpha=2.0)
        mean.mul_(actions).sub_(self._action_gradient).mul_(1.0 / rows)
        torch.mul(mean, self._deviation[:, 0], out=log_std).sub_(self._alpha, alpha=1.0 / rows)
        clamp_backward(log_std, self._head[1, :, 0], *LOG_STD_BOUNDS, grad_input=log_std)

        layers, gradients, head = self._actor_layers, self._actor_gradients, self._head_gradient.view(-1, rows)
        torch.mm(head, self._actor_present[-1], out=gradients[-1].turned)
        torch.sum(head, dim=1, keepdim=True, out=gradients[-1].bias.t())
        flowing, other = self._actor_backward
        torch.mm(head.t(), layers[-1].turned, out=flowing)
        for place in reversed(range(len(layers) - 1)):
            relu_backward(flowing, self._actor_present[place], 0, grad_input=flowing)
            torch.mm(self._actor_below[place], flowing, out=gradients[place].weight)
            torch.sum(flowing, dim=0, keepdim=True, out=gradients[place].bias)
            if place:
                flowing, other = torch.mm(flowing, layers[place].turned, out=other), flowing

        torch.mean(self._log_density[0], dim=0, out=self._entropy).neg_()
        torch.sub(self._entropy, self.target_entropy, out=self._actor_adam.gradients[1][0])
        self._actor_adam.step()

    def _differentiate_all_rows(self, chosen: Tensor) -> None:
        """Fill the smaller value's gradient by the actions: whichever rows are whose, the sizes are the same.

        Args:
            chosen: (2, rows), 1 where a critic's value is the smaller one, else 0.
        """
        self._action_gradient.zero_()
        for critics in self._critic_stacks:
            with self._critic_backward.one() as buffers:
                *_, (_, of_first) = critics.backward(chosen[critics.place], critics.hidden, buffers)
            for weight, of_network in zip(critics.layers[0].weight, of_first, strict=True):
                self._action_gradient.addmm_(weight[self.architecture.obs_dim :], of_network.t())

    @torch.no_grad()
    def _differentiate_chosen_rows(self, critics: Stack) -> None:
        """The same from half of the products: a critic's gradient of a row that is not its is zero."""
        (of_critic,) = self._of_values[critics.place]
        rows = of_critic.nonzero()[:, 0]
        hidden = [output.index_select(1, rows) for output in critics.hidden]
        weight = critics.layers[0].weight[0, self.architecture.obs_dim :]
        with self._critic_backward.one() as whole:
            buffers = [buffer[:, : len(rows)] for buffer in whole]
            *_, (_, of_first) = critics.backward(of_critic.new_ones(1, len(rows)), hidden, buffers)
            self._action_gradient.index_copy_(1, rows, torch.mm(weight, of_first[0].t()))


def _fill(places: Params, values: Params) -> None:
    for name, place in places.items():
        place.copy_(values[name])


def _snapshot(params: Params) -> Params:
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in params.items()}
