"""The device of a stage, and what captures a function for it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from usbpo.agent import choice
from usbpo.agent.learner import Learner
from usbpo.agent.sac import Agent
from usbpo.errors import UsbpoError
from usbpo.model import fitting
from usbpo.model.ensemble import Ensemble
from usbpo.numerics import device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize(("name", "with_gpu", "kind"), [("auto", False, "cpu"), ("cpu", True, "cpu")])
def test_auto_is_the_cpu_where_there_is_no_gpu(
    name: str, with_gpu: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: with_gpu)
    assert device.choose(name) == torch.device(kind)


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.gpus, "taken", lambda: 0)
    assert device.choose("auto") == device.choose("cuda") == torch.device("cuda:0")


def test_a_gpu_that_is_not_there_is_asked_for_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsbpoError, match=r"^device is cuda, but torch finds no CUDA GPU here; [^.]*\.$"):
        device.choose("cuda")
    with pytest.raises(UsbpoError, match=r"^device must be auto, cpu or cuda, but is 'tpu'; mend the value\.$"):
        device.choose("tpu")


def test_on_the_cpu_a_captured_function_is_the_function_itself() -> None:
    def function() -> None:
        raise AssertionError("no warm-up")

    assert device.captured(function, torch.device("cpu")) is function


GPU = torch.device("cuda")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Triton, a C compiler and Python's headers as the system's folders of this test, and no CC."""
    device._tell_of_torch.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device, "find_spec", lambda name: name)
    monkeypatch.setattr(device.sysconfig, "get_path", lambda *_: str(tmp_path))
    (tmp_path / "gcc").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    return tmp_path


def test_a_gpu_has_kernels_where_all_is_there_that_compiles_them(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device.has_kernels(GPU)
    assert not device.has_kernels(torch.device("cpu"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("lacking", "told"), [("gcc", "a C compiler (gcc)"), ("Python.h", "Python's headers (Python.h; Debian's package")]
)
def test_without_what_compiles_them_torchs_kernels_do_and_that_is_said_once(
    installed: Path, lacking: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed / lacking).unlink()
    assert not device.has_kernels(GPU)
    assert not device.has_kernels(GPU)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said
    assert "torch's kernels do the same" in said


def test_kernels_that_do_not_compile_leave_the_work_to_torchs(capsys: pytest.CaptureFixture[str]) -> None:
    device._tell_of_torch.cache_clear()

    def make() -> None:
        raise RuntimeError("PassManager::run failed\nat line 3")

    assert device.fused_or_none(make) is None
    assert device.fused_or_none(lambda: 5) == 5
    assert capsys.readouterr().err == (
        "usbpo: no fused kernels on this GPU (PassManager::run failed); torch's kernels do the same, more slowly.\n"
    )


def test_a_learner_and_a_fit_are_torchs_where_the_kernels_fail(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., Agent], make_ensemble: Callable[..., Ensemble]
) -> None:
    class Failing:
        def __init__(self, *_: object, **__: object) -> None:
            raise OSError("fatal error: Python.h: No such file or directory")

    for module, name in (("usbpo.agent", "FusedLearner"), ("usbpo.model", "FusedFit")):
        fake = SimpleNamespace(fits=lambda *_: True, **{name: Failing})
        monkeypatch.setitem(sys.modules, f"{module}.fused", fake)
        monkeypatch.setattr(sys.modules[module], "fused", fake, raising=False)
    for user in (choice, fitting):
        monkeypatch.setattr(user, "has_kernels", lambda device: True)
    keys = {"learning_rate": 3e-4, "discount": 0.99, "polyak": 0.005, "target_entropy": -1.0}
    learner = choice.learner_for(make_agent(), rows=32, real=16, device=torch.device("cpu"), **keys)
    assert type(learner) is Learner
    model, rows = make_ensemble(), (torch.zeros(40, 5), torch.zeros(40, 4))
    keys = {"learning_rate": 1e-3, "weight_decay": [0.0] * 3, "log_variance_penalty": 0.01}
    fit = fitting.fit_for(model.params, model.mle, *rows, batch_size=8, **keys)
    assert type(fit) is fitting.TorchFit


@needs_cuda
def test_a_replay_goes_on_from_where_the_state_was_before_the_capture() -> None:
    here = device.choose("cuda")
    state, given, seen = (torch.zeros(3, device=here) for _ in range(3))

    def function() -> torch.Tensor:
        seen.copy_(state)
        return state.add_(given)

    replay = device.captured(function, here, [state])
    assert state.tolist() == [0.0] * 3
    for value in (1.0, 2.0):
        given.fill_(value)
        result = replay()
    assert result.tolist() == [3.0] * 3
    assert seen.tolist() == [1.0] * 3
