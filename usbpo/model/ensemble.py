"""The probabilistic ensemble: a Gaussian over (reward, next state) for each member, and its likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from usbpo.artifacts import checkpoints
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError
from usbpo.model.passes import Forward, layer_count
from usbpo.numerics.optimizer import Params, moved, new_moments, prefixed, under

KIND = "model"
MAX_LOG_VARIANCE, MIN_LOG_VARIANCE = 0.5, -10.0
"""Where the learned bounds of the log-variance start (MBPO released code)."""

BOUNDS = ("max_log_variance", "min_log_variance")
"""The parameters that all members share."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of an ensemble: `members` networks of `hidden_layers` × `hidden_size` units."""

    obs_dim: int
    act_dim: int
    members: int
    elites: int
    hidden_layers: int
    hidden_size: int

    @property
    def sizes(self) -> list[int]:
        """Widths from the input (obs_dim + act_dim) to the output (a mean and a log-variance each)."""
        out = 2 * (self.obs_dim + 1)
        return [self.obs_dim + self.act_dim, *[self.hidden_size] * self.hidden_layers, out]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every trained tensor."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            shapes[f"weight.{layer}"] = (self.members, fan_in, fan_out)
            shapes[f"bias.{layer}"] = (self.members, 1, fan_out)
        shapes["max_log_variance"] = shapes["min_log_variance"] = (self.obs_dim + 1,)
        return shapes


@dataclass
class Ensemble:
    """A model and all that its training needs to go on.

    `params` are trained; the scaler standardises (observation, action); `mle` and `finetune` are the Adam moments
    of phase 1 and phase 2, which go on across cycles as in the released code; `finetune` is empty in a model that no
    phase 2 made.
    """

    architecture: Architecture
    params: Params
    scaler_mean: Tensor
    """(obs_dim + act_dim,)"""
    scaler_std: Tensor
    """(obs_dim + act_dim,)"""
    elites: Tensor
    """(elites,): members with the lowest hold-out error, best first"""
    mle: Params
    finetune: Params
    products: torch.dtype | None = None
    """Precision of the products between hidden layers, None for that of the parameters; no part of a checkpoint"""

    def save(self, path: Path, header: Header) -> str:
        """Write the whole state; the architecture goes into the header's parameters.

        Returns:
            The artifact's digest.

        Raises:
            UsbpoError: it cannot be written, or holds what is not finite.
        """
        tensors = {
            **prefixed("params", self.params),
            "scaler/mean": self.scaler_mean,
            "scaler/std": self.scaler_std,
            "elites": self.elites,
            **prefixed("mle", self.mle),
            **prefixed("finetune", self.finetune),
        }
        cure = "lower phase1.learning_rate, or phase2.learning_rate where phase 2 has made it"
        return checkpoints.write(path, header, moved(tensors, torch.device("cpu")), cure)

    def to(self, device: torch.device, products: torch.dtype | None = None) -> "Ensemble":
        """The same model on a device, and with products between hidden layers in a precision."""
        return Ensemble(
            self.architecture,
            moved(self.params, device),
            self.scaler_mean.to(device),
            self.scaler_std.to(device),
            self.elites.to(device),
            moved(self.mle, device),
            moved(self.finetune, device),
            products,
        )


def load(path: Path) -> tuple[Header, Ensemble]:
    """Read a model checkpoint.

    Raises:
        UsbpoError: it is missing, damaged, or its tensors do not have the shapes of its architecture.
    """
    header, tensors = checkpoints.read(path, KIND)
    architecture = architecture_of(path, tensors)
    shapes = architecture.shapes()
    moments = {"step": (), **{f"{m}.{name}": s for name, s in shapes.items() for m in ("exp_avg", "exp_avg_sq")}}
    inputs = (architecture.obs_dim + architecture.act_dim,)
    fine_tuned = any(name.startswith("finetune/") for name in tensors)
    phases = ("mle", "finetune") if fine_tuned else ("mle",)
    expected: dict[str, tuple[int, ...]] = {
        **{f"params/{name}": shape for name, shape in shapes.items()},
        **{f"{phase}/{name}": shape for phase in phases for name, shape in moments.items()},
        "scaler/mean": inputs,
        "scaler/std": inputs,
        "elites": (architecture.elites,),
    }
    checkpoints.check_shapes(path, tensors, expected, {"elites": architecture.members})
    return header, Ensemble(
        architecture,
        under("params", tensors),
        tensors["scaler/mean"],
        tensors["scaler/std"],
        tensors["elites"],
        under("mle", tensors),
        under("finetune", tensors),
    )


def architecture_of(path: Path, tensors: Params) -> Architecture:
    """The architecture that a checkpoint's tensors imply."""
    try:
        first, bound = tensors["params/weight.0"], tensors["params/max_log_variance"]
        layers = sum(name.startswith("params/weight.") for name in tensors)
        obs_dim = len(bound) - 1
        members, inputs, hidden_size = first.shape
        return Architecture(obs_dim, inputs - obs_dim, members, len(tensors["elites"]), layers - 1, hidden_size)
    except (KeyError, ValueError, TypeError) as error:
        raise UsbpoError(f"{path}: it holds no ensemble; name a model checkpoint.") from error


def new_ensemble(architecture: Architecture, generator: torch.Generator) -> Ensemble:
    """An untrained ensemble: truncated normal weights of sd 1/(2√fan_in), zero biases (MBPO released code)."""
    params: Params = {}
    for name, shape in architecture.shapes().items():
        if name.startswith("weight"):
            sd = 1.0 / (2.0 * sqrt(shape[1]))
            weight = torch.empty(shape)
            torch.nn.init.trunc_normal_(weight, std=sd, a=-2.0 * sd, b=2.0 * sd, generator=generator)
            params[name] = weight
        else:
            start = {"max_log_variance": MAX_LOG_VARIANCE, "min_log_variance": MIN_LOG_VARIANCE}.get(name, 0.0)
            params[name] = torch.full(shape, start)
    inputs = architecture.obs_dim + architecture.act_dim
    return Ensemble(
        architecture=architecture,
        params=params,
        scaler_mean=torch.zeros(inputs),
        scaler_std=torch.ones(inputs),
        elites=torch.arange(architecture.elites),
        mle=new_moments(params),
        finetune={},
    )


def fit_scaler(ensemble: Ensemble, inputs: Tensor) -> None:
    """Refit the scaler to (rows, obs_dim + act_dim); a constant column keeps its scale."""
    mean = inputs.mean(dim=0)
    std = inputs.std(dim=0, correction=0)
    ensemble.scaler_mean = mean
    ensemble.scaler_std = torch.where(std < 1e-12, torch.ones_like(std), std)


def raw_outputs(params: Params, standardised: Tensor) -> tuple[Tensor, Tensor]:
    """The networks' outputs: mean and log-variance of (reward, s' − s), each (members, rows, obs_dim + 1).

    This is the definition, which autograd can follow; `passes.py` computes the same in less time.

    Args:
        params: of all members.
        standardised: inputs, (members, rows, obs_dim + act_dim).
    """
    hidden = standardised
    layers = layer_count(params)
    for layer in range(layers):
        hidden = torch.baddbmm(params[f"bias.{layer}"], hidden, params[f"weight.{layer}"])
        if layer < layers - 1:
            hidden = silu(hidden)
    return bounded(params, hidden)


def bounded(params: Params, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, each (…, obs_dim + 1), from outputs (…, 2 · (obs_dim + 1)), the variance within bounds."""
    mean, log_variance = outputs.chunk(2, dim=-1)
    log_variance = params["max_log_variance"] - softplus(params["max_log_variance"] - log_variance)
    log_variance = params["min_log_variance"] + softplus(log_variance - params["min_log_variance"])
    return mean, log_variance


def gaussian(params: Params, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of (reward, s' − s), as `bounded`."""
    mean, log_variance = bounded(params, outputs)
    return mean, torch.exp(0.5 * log_variance)


def standardise(ensemble: Ensemble, inputs: Tensor) -> Tensor:
    """Inputs (…, obs_dim + act_dim) as the networks take them."""
    return (inputs - ensemble.scaler_mean) / ensemble.scaler_std


@torch.no_grad()
def predict(ensemble: Ensemble, params: Params, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of (reward, s') by every member, each (members, rows, obs_dim + 1).

    `params` stand in for the ensemble's own, so that those in training can be asked; there are no gradients.
    """
    inputs = standardise(ensemble, torch.cat([observations, actions], dim=-1))
    return _next_state(gaussian(params, Forward(params, products=ensemble.products).all_members(inputs)), observations)


@torch.no_grad()
def predict_one_member(
    ensemble: Ensemble, members: Tensor, observations: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of (reward, s') by one member for each row, each (rows, obs_dim + 1).

    Args:
        members: (rows,), the member that predicts each row. Only that member is computed.
    """
    inputs = standardise(ensemble, torch.cat([observations, actions], dim=-1))
    outputs = Forward(ensemble.params, products=ensemble.products).one_member_each(members, inputs)
    return _next_state(gaussian(ensemble.params, outputs), observations)


def _next_state(prediction: tuple[Tensor, Tensor], observations: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the Gaussian of (reward, s' − s) into that of (reward, s')."""
    mean = prediction[0].contiguous()
    mean[..., 1:] += observations
    return mean, prediction[1]


def negative_log_likelihood(
    params: Params, inputs: Tensor, targets: Tensor, weight_decay: Sequence[float], log_variance_penalty: float
) -> Tensor:
    """The loss of phase 1, a scalar: Gaussian likelihood summed over members, L2, and the bounds' penalty.

    As MBPO's released code: the likelihood is averaged over rows and dimensions and has no factor ½; L2 is
    half-squared, with one factor for each layer; the penalty is `weight · (Σ max − Σ min)` over the bounds.

    Args:
        inputs: standardised, (members, rows, obs_dim + act_dim).
        targets: (reward, s' − s), (members, rows, obs_dim + 1).
    """
    mean, log_variance = raw_outputs(params, inputs)
    fit = ((mean - targets).square() * torch.exp(-log_variance)).mean(dim=(1, 2)) + log_variance.mean(dim=(1, 2))
    decay = torch.stack(
        [0.5 * factor * params[f"weight.{layer}"].square().sum() for layer, factor in enumerate(weight_decay)]
    ).sum()
    bounds = params["max_log_variance"].sum() - params["min_log_variance"].sum()
    return fit.sum() + decay + log_variance_penalty * bounds


@torch.no_grad()
def holdout_mse(ensemble: Ensemble, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each member's mean, (members,), over rows and dimensions of (reward, s' − s).

    Args:
        inputs: raw (observation, action), (rows, obs_dim + act_dim).
        targets: (rows, obs_dim + 1).
    """
    networks = Forward(params, columns=targets.shape[1], products=ensemble.products)
    means = networks.all_members(standardise(ensemble, inputs))
    return means.sub_(targets).square_().mean(dim=(1, 2))


def choose_elites(errors: Tensor, count: int) -> Tensor:
    """The `count` members with the lowest hold-out error (members,), best first; ties go to the lower number."""
    return torch.sort(errors, stable=True).indices[:count]
