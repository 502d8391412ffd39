"""A policy that usbpo trained, without usbpo: the file beside it holds its weights. Needs torch and safetensors."""

import torch
from safetensors.torch import load_file


class Policy(torch.nn.Module):
    """Observations (rows, obs_dim), flattened, to actions (rows, act_dim) in the environment's own units.

    Args:
        path: the safetensors file with the weights.
    """

    low: torch.Tensor
    high: torch.Tensor
    log_std_bounds: torch.Tensor

    def __init__(self, path: str) -> None:
        super().__init__()
        tensors = load_file(path)
        modules: list[torch.nn.Module] = []
        while (weight := tensors.get(f"network.{len(modules)}.weight")) is not None:
            modules += [torch.nn.Linear(weight.shape[1], weight.shape[0]), torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*modules[:-1])
        for name in ("low", "high", "log_std_bounds"):
            self.register_buffer(name, torch.empty_like(tensors[name]))
        self.load_state_dict(tensors)

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The deterministic action, and mean and log standard deviation before the tanh, each (rows, act_dim).

        A random action is `self.scaled(torch.tanh(mean + log_std.exp() * torch.randn_like(mean)))`.
        """
        mean, log_std = self.network(observations).chunk(2, dim=-1)
        least, most = self.log_std_bounds
        return self.scaled(torch.tanh(mean)), mean, log_std.clamp(least, most)

    def scaled(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions of the environment for actions in [−1, 1]."""
        half = 0.5 * (self.high - self.low)
        return (self.low + (actions + 1.0) * half).clamp(self.low, self.high)
