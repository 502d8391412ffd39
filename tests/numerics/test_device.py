"""The device of a stage, and what captures a function for it."""

import pytest
import torch

from usbpo.errors import UsbpoError
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
