"""Checkpoints hold the whole state bit for bit, alike in every process; damage and strangers are named."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

import usbpo
from usbpo.agent import sac
from usbpo.agent.sac import Agent
from usbpo.artifacts import checkpoints, sealing
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError
from usbpo.model import ensemble
from usbpo.model.ensemble import Ensemble
from usbpo.numerics.optimizer import new_moments


def different_everywhere(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}


@pytest.fixture
def model(make_ensemble: Callable[..., Ensemble]) -> Ensemble:
    """An ensemble no two of whose tensors are alike."""
    made = make_ensemble()
    made.finetune = new_moments(made.params)
    made.params, made.mle, made.finetune = (
        different_everywhere(tensors, seed) for seed, tensors in enumerate((made.params, made.mle, made.finetune))
    )
    made.scaler_mean, made.scaler_std = torch.randn(5), torch.rand(5)
    made.elites = torch.tensor([3, 1])
    return made


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Agent:
    """An agent no two of whose tensors are alike."""
    made = make_agent()
    made.actor, made.critics, made.targets, made.temperature = (
        different_everywhere(tensors, seed)
        for seed, tensors in enumerate((made.actor, made.critics, made.targets, made.temperature))
    )
    made.moments = {name: different_everywhere(t, 9 + n) for n, (name, t) in enumerate(made.moments.items())}
    made.updates = 12_345
    return made


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def test_a_model_is_read_bit_for_bit(tmp_path: Path, model: Ensemble) -> None:
    header = Header("model", "tiny", 3, 7, {"learning_rate": 0.1, "weight_decay": [0.5]})
    model.save(tmp_path / "model.safetensors", header)
    found_header, found = ensemble.load(tmp_path / "model.safetensors")
    assert found_header == header
    assert found.architecture == model.architecture
    for name in ("params", "mle", "finetune"):
        assert same(getattr(found, name), getattr(model, name)), name
    for name in ("scaler_mean", "scaler_std", "elites"):
        assert torch.equal(getattr(found, name), getattr(model, name)), name


def test_a_policy_is_read_bit_for_bit(tmp_path: Path, agent: Agent) -> None:
    header = Header("policy", "tiny", 3, 7)
    agent.save(tmp_path / "policy.safetensors", header)
    found_header, found = sac.load(tmp_path / "policy.safetensors")
    assert found_header == header
    assert found.architecture == agent.architecture
    assert found.updates == 12_345
    for name in ("actor", "critics", "targets", "temperature"):
        assert same(getattr(found, name), getattr(agent, name)), name
    assert found.moments.keys() == agent.moments.keys()
    assert all(same(found.moments[name], agent.moments[name]) for name in agent.moments)


ANOTHER_PROCESS = """
import sys, torch
from pathlib import Path
from usbpo.agent import sac
from usbpo.model import ensemble
from usbpo.artifacts.header import Header
folder = Path(sys.argv[1])
model = ensemble.new_ensemble(ensemble.Architecture(3, 2, 4, 2, 2, 8), torch.Generator().manual_seed(0))
agent = sac.new_agent(sac.Architecture(3, 2, 2, 8), torch.Generator().manual_seed(0))
parameters = {name: name for name in ("one", "two", "three", "four", "five")}
model.save(folder / "model.safetensors", Header("model", "tiny", 0, 1, parameters))
agent.save(folder / "policy.safetensors", Header("policy", "tiny", 0, 1, parameters))
"""


def test_the_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        folder.mkdir()
        environment = os.environ | {
            "PYTHONPATH": str(Path(usbpo.__file__).parents[1]), "PYTHONHASHSEED": hash_seed,
        }  # fmt: skip
        subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, str(folder)], check=True, env=environment, timeout=60)
    for name in ("model.safetensors", "policy.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from usbpo.artifacts import checkpoints, files
from usbpo.artifacts.header import Header
files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.write(Path(sys.argv[1]), Header("policy", "tiny", 0, 9), {"a": torch.zeros(1000)})
"""


def test_a_killed_writer_leaves_the_old_file_whole(
    tmp_path: Path, agent: Agent, make_header: Callable[..., Header]
) -> None:
    path = tmp_path / "policy.safetensors"
    agent.save(path, make_header("policy"))
    before = path.read_bytes()
    environment = os.environ | {"PYTHONPATH": str(Path(usbpo.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    left_over = [other for other in tmp_path.iterdir() if other != path]
    assert len(left_over) == 1, "the writer was killed before the move"
    assert left_over[0].suffix != ".safetensors", "no pattern for artifacts finds it"
    agent.save(path, make_header("policy", cycle=2))
    assert list(tmp_path.iterdir()) == [path], "the next writer tidies up"


def test_a_killed_first_writer_leaves_no_artifact(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    environment = os.environ | {"PYTHONPATH": str(Path(usbpo.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, timeout=60)
    with pytest.raises(UsbpoError, match="no such file"):
        sac.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_named(
    share: float, tmp_path: Path, agent: Agent, make_header: Callable[..., Header]
) -> None:
    path = tmp_path / "policy.safetensors"
    agent.save(path, make_header("policy"))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsbpoError, match=r"policy.safetensors: .*cut short.*run again"):
        sac.load(path)


@pytest.mark.parametrize("damage", ["{", '{"kind": "policy"}', '{"kind": "policy", "what": 1}', "[1]"])
def test_a_damaged_header_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    content = save({"a": torch.zeros(1)}, {"header": damage, "seal": sealing.UNSEALED})
    sealing.write(path, lambda file: file.write(content))
    with pytest.raises(UsbpoError, match=r"policy.safetensors: .*(damaged|not a JSON file).*again"):
        checkpoints.read(path, "policy")


def test_strangers_are_named(tmp_path: Path, agent: Agent, model: Ensemble, make_header: Callable[..., Header]) -> None:
    path = tmp_path / "policy.safetensors"
    with pytest.raises(UsbpoError, match="no such file"):
        sac.load(path)
    model.save(path, make_header("model"))
    with pytest.raises(UsbpoError, match=r"policy.safetensors: its kind is model, but policy is expected"):
        sac.load(path)
    agent.save(path, Header("policy", "tiny", 0, 1, schema_version=99))
    with pytest.raises(UsbpoError, match="schema 99"):
        sac.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UsbpoError, match="not written by this version of usbpo"):
        sac.load(path)


def test_nan_is_not_written_and_what_stood_before_stands(
    tmp_path: Path, agent: Agent, make_header: Callable[..., Header]
) -> None:
    path = tmp_path / "policy.safetensors"
    agent.save(path, make_header("policy"))
    before = path.read_bytes()
    agent.critics["bias.1"][0, 0, 0] = float("nan")
    with pytest.raises(UsbpoError, match=r"cycle 1: critics/bias.1 of the policy is no longer finite.*lower policy"):
        agent.save(path, make_header("policy"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_named_with_its_tensor(
    tmp_path: Path, agent: Agent, make_header: Callable[..., Header], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.safetensors"
    agent.critics["bias.1"][0, 0, 0] = float("nan")
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_is_finite", lambda _: True)
        agent.save(path, make_header("policy"))
    with pytest.raises(UsbpoError, match=r"critics/bias.1 holds NaN"):
        sac.load(path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("targets/bias.1"), "targets/bias.1 is missing"),
        (lambda t: t.pop("adam.actor/step"), "adam.actor/step is missing"),
        (lambda t: t.update({"extra": torch.zeros(1)}), "extra is not expected"),
        (lambda t: t.update({"critics/weight.1": torch.zeros(2, 8, 9)}), r"critics/weight.1 has shape \[2, 8, 9\]"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("actor/")], "no actor"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_named(
    edit: Callable[[dict[str, Tensor]], object],
    words: str,
    tmp_path: Path,
    agent: Agent,
    make_header: Callable[..., Header],
) -> None:
    path = tmp_path / "policy.safetensors"
    agent.save(path, make_header("policy"))
    header, tensors = checkpoints.read(path, "policy")
    edit(tensors)
    checkpoints.write(path, header, tensors)
    with pytest.raises(UsbpoError, match=f"policy.safetensors: .*{words}"):
        sac.load(path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("finetune/step"), "finetune/step is missing"),
        (lambda t: t.pop("params/weight.0"), "no ensemble"),
        (lambda t: t.update({"scaler/std": torch.ones(6)}), r"scaler/std has shape \[6\]"),
        (lambda t: t.update({"mle/exp_avg.bias.0": torch.ones(4, 1, 9)}), "another task or network width"),
    ],
)
def test_a_model_of_another_architecture_is_named(
    edit: Callable[[dict[str, Tensor]], object],
    words: str,
    tmp_path: Path,
    model: Ensemble,
    make_header: Callable[..., Header],
) -> None:
    path = tmp_path / "model.safetensors"
    model.save(path, make_header("model"))
    header, tensors = checkpoints.read(path, "model")
    edit(tensors)
    checkpoints.write(path, header, tensors)
    with pytest.raises(UsbpoError, match=f"model.safetensors: .*{words}"):
        ensemble.load(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [("obs_dim", 4), ("act_dim", 1), ("members", 5), ("elites", 1), ("hidden_layers", 1), ("hidden_size", 9)],
)
def test_a_model_that_does_not_fit_is_named(name: str, change: int, tmp_path: Path, model: Ensemble) -> None:
    sizes = {"obs_dim": 3, "act_dim": 2, "members": 4, "elites": 2, "hidden_layers": 2, "hidden_size": 8}
    checkpoints.check_architecture(tmp_path, "model", model.architecture, ensemble.Architecture(**sizes))
    expected = ensemble.Architecture(**(sizes | {name: change}))
    with pytest.raises(UsbpoError, match=f"{name} is {sizes[name]}, but {change} is expected"):
        checkpoints.check_architecture(tmp_path, "model", model.architecture, expected)


def test_a_header_holds_neither_time_nor_place(tmp_path: Path) -> None:
    header, reordered = (Header("policy", "tiny", 0, 1, dict.fromkeys(names, 1)) for names in ("ab", "ba"))
    for name, one, tensors in (("first", header, "cd"), ("second", reordered, "dc")):
        checkpoints.write(tmp_path / f"{name}.safetensors", one, {tensor: torch.zeros(1) for tensor in tensors})
    first, second = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert checkpoints.read(tmp_path / "first.safetensors", "policy")[0] == header
    assert str(tmp_path).encode() not in first
    assert "+" not in "".join(header.versions.values()), "no build labels"
