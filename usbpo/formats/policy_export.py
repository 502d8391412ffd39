"""A run's actor without this package: as ONNX, and as a plain torch module with an example that runs it in Gymnasium.

The ONNX graph is written node by node. torch's exporter needs two more packages and writes the paths of source files
into the graph; a network of matrix products, ReLU and tanh needs neither.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import torch

from usbpo.agent import sac
from usbpo.artifacts import checkpoints, layout
from usbpo.artifacts.files import write_text, writing
from usbpo.artifacts.header import Header
from usbpo.environments.tasks import POLICY_SIZES, Simulator, read_arguments
from usbpo.errors import UsbpoError
from usbpo.experiment.named import NamedRun, last_policy
from usbpo.formats import policy_module
from usbpo.formats.environment import environment_of, headers_of
from usbpo.formats.policy_module import Policy
from usbpo.formats.writing import require_packages, writing_folder
from usbpo.numerics.optimizer import Params
from usbpo.numerics.seeding import seed_sequence

KIND = "exported policy"

OPSET, IR_VERSION = 18, 10
"""Of the ONNX file: not the newest, so that older runtimes read it."""

COMPARED_ROWS = 256
TOLERANCE = 1e-4
"""Most that ONNX Runtime and torch may differ, relative to 1 or, where it is larger, to the value."""

EXAMPLE = '''"""One episode with an exported policy of usbpo, without usbpo: python example.py

Needs torch, safetensors, and Gymnasium with the environment below.
"""
import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != FOLDER]  # no module from beside data

import gymnasium
import torch

spec = importlib.util.spec_from_file_location("policy", FOLDER / "policy.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

env = gymnasium.make({environment!r}, **{arguments!r})
policy, ended, total = module.Policy(str(FOLDER / "policy.safetensors")), False, 0.0
observation, _ = env.reset(seed={seed})
while not ended:
    rows = torch.as_tensor(observation, dtype=torch.float32).reshape(1, -1)
    action = policy(rows)[0].detach().numpy().reshape(env.action_space.shape)
    observation, reward, terminated, truncated, _ = env.step(action)
    ended, total = terminated or truncated, total + reward
print("return", total)
'''


def export_policy(
    run: NamedRun,
    output: Path | None,
    cycle: int | None = None,
    environment: str | None = None,
    environment_arguments: str | None = None,
) -> Path:
    """Write a run's policy as `policy.onnx`, and as `policy.safetensors`, `policy.py` and `example.py`.

    Both give the deterministic action in the environment's own units, and mean and log standard deviation before the
    tanh. ONNX Runtime is held against torch before anything is put in place. Equal inputs and versions give equal
    bytes.

    Args:
        run: the run.
        output: folder to write, replaced where it is there; `layout.EXPORTED_POLICY` without it.
        cycle: cycle of the policy; the last one that has a policy without it.
        environment, environment_arguments: as in `environment_of`.

    Returns:
        The folder.

    Raises:
        UsbpoError: ONNX or its runtime is not installed, there is no such policy, it is damaged or of another
            environment, nothing tells the environment, the two do not agree, or the folder cannot be written.
    """
    require_packages("an exported policy", "onnx", "onnxruntime")
    cycle = last_policy(run) if cycle is None else cycle
    checkpoint = run.path(layout.POLICY, cycle)
    header, agent = sac.load(checkpoint)
    name, arguments = environment_of(run, headers_of(run, cycle), environment, environment_arguments)
    simulator = Simulator(name, read_arguments(arguments))
    simulator.close()
    sizes = agent.architecture.obs_dim, agent.architecture.act_dim
    simulator.require_sizes(f"{checkpoint}: the policy", sizes, "name the policy's own environment", said=POLICY_SIZES)
    told = {"environment": name, "environment_arguments": arguments, "method": run.method}
    header = replace(header, kind=KIND, parameters={**told, "updates": agent.updates})
    if output is None:
        output = run.path(layout.EXPORTED_POLICY, cycle)
    with writing_folder(output) as folder:
        weights = folder / "policy.safetensors"
        checkpoints.write(weights, header, tensors_of(agent.actor, simulator))
        copyfile(policy_module.__file__, folder / "policy.py")
        seed = int(seed_sequence(run.seed, 0, "evaluate").spawn(1)[0].generate_state(1)[0])  # its first episode
        example = EXAMPLE.format(environment=name, arguments=read_arguments(arguments), seed=seed)
        write_text(folder / "example.py", example)
        policy = Policy(str(weights))
        with writing(folder / "policy.onnx") as temporary:
            temporary.write_bytes(onnx_bytes(policy, header))
        difference = compare(policy, folder / "policy.onnx")
    print(f"{output}: policy.onnx, policy.safetensors, policy.py, example.py; ONNX within {difference:.1e} of torch")
    return output


def tensors_of(actor: Params, simulator: Simulator) -> Params:
    """The state of `policy_module.Policy`: torch's weights are (out, in), ours (in, out)."""
    bounds = {"low": simulator.low, "high": simulator.high, "log_std_bounds": np.array(sac.LOG_STD_BOUNDS)}
    tensors = {name: torch.tensor(values.reshape(-1), dtype=torch.float32) for name, values in bounds.items()}
    for layer in range(len(actor) // 2):
        tensors[f"network.{2 * layer}.weight"] = actor[f"weight.{layer}"].t()
        tensors[f"network.{2 * layer}.bias"] = actor[f"bias.{layer}"][0]
    return tensors


def onnx_bytes(policy: Policy, header: Header) -> bytes:
    """The ONNX model: `observation` (rows, obs_dim) to `action`, `mean` and `log_std` (rows, act_dim), float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    state = {name: tensor.detach().numpy() for name, tensor in policy.state_dict().items()}
    half = np.float32(0.5) * (state["high"] - state["low"])
    least, most = state["log_std_bounds"]
    constants = {**state, "half": half, "one": np.float32(1.0), "least": least, "most": most}
    del constants["log_std_bounds"]
    nodes, hidden = [], "observation"
    layers = sum(name.endswith("weight") for name in state)
    for layer in range(layers):
        names = [hidden, f"network.{2 * layer}.weight", f"network.{2 * layer}.bias"]
        nodes.append(helper.make_node("Gemm", names, [f"layer.{layer}"], transB=1))
        hidden = f"layer.{layer}"
        if layer < layers - 1:
            nodes.append(helper.make_node("Relu", [hidden], [f"hidden.{layer}"]))
            hidden = f"hidden.{layer}"
    nodes += [
        helper.make_node("Split", [hidden], ["mean", "unbounded"], axis=-1, num_outputs=2),
        helper.make_node("Clip", ["unbounded", "least", "most"], ["log_std"]),
        helper.make_node("Tanh", ["mean"], ["squashed"]),
        helper.make_node("Add", ["squashed", "one"], ["raised"]),
        helper.make_node("Mul", ["raised", "half"], ["stretched"]),
        helper.make_node("Add", ["stretched", "low"], ["scaled"]),
        helper.make_node("Max", ["scaled", "low"], ["not_below"]),
        helper.make_node("Min", ["not_below", "high"], ["action"]),
    ]
    obs_dim, act_dim = state["network.0.weight"].shape[1], len(state["low"])

    def tensor(name: str, columns: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", columns])

    graph = helper.make_graph(
        nodes,
        "policy",
        [tensor("observation", obs_dim)],
        [tensor(name, act_dim) for name in ("action", "mean", "log_std")],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in sorted(constants.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "usbpo"
    helper.set_model_props(model, {"header": header.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def compare(policy: Policy, path: Path) -> float:
    """The most that ONNX Runtime and torch differ, relative to 1 or the value, on random observations of many sizes.

    Raises:
        UsbpoError: they differ by more than `TOLERANCE`.
    """
    rng = np.random.default_rng(0)
    obs_dim = policy.state_dict()["network.0.weight"].shape[1]
    sizes = np.exp(rng.uniform(-3.0, 3.0, (COMPARED_ROWS, 1)))
    observations = (sizes * rng.standard_normal((COMPARED_ROWS, obs_dim))).astype(np.float32)
    found = run_onnx(path, observations)
    with torch.no_grad():
        expected = policy(torch.from_numpy(observations))
    difference = max(
        float((np.abs(found[name] - values.numpy()) / np.maximum(1.0, np.abs(values.numpy()))).max())
        for name, values in zip(("action", "mean", "log_std"), expected, strict=True)
    )
    if difference > TOLERANCE:
        raise UsbpoError(
            f"{path.name}: ONNX Runtime differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}; "
            "install another version of onnxruntime."
        )
    return difference


def run_onnx(path: Path, observations: Any) -> Mapping[str, Any]:
    """What an exported ONNX file gives for observations (rows, obs_dim), by the name of the output."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which else leaves an id of this device in HOME
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"observation": observations}), strict=True))
