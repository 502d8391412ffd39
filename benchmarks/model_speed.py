"""What the model costs: phase 1, phase 2, rollouts and predictions beside plain torch, the hardware's limit and peers.

    python benchmarks/model_speed.py                  # one CPU thread
    python benchmarks/model_speed.py --device cuda    # one GPU; each step with and without its CUDA graph
    python benchmarks/model_speed.py --precision bfloat16

Sizes are Hopper's with the released networks: 7 members of 4 × 200 units, 11 + 3 inputs, a policy of 2 × 256. "limit"
is the arithmetic of the matrix products alone at the speed that `torch.mm` reaches on this machine in the same minutes,
on large square matrices in the same precision. "plain" is `benchmarks/plain_model.py`: the same computation by plain
torch and autograd in float32.
Every figure is a median over repetitions in which all works take turns. On the CPU it is the time of the one thread and
not that of the clock on the wall, so that others who use the machine disturb less; on a GPU it is the wall's, with the
device idle before and after. mbrl-lib's rows appear where it is installed (sac_peers.py says how): what its trainer
does for a minibatch and for a hold-out error, and its model environment with its agent for a rollout step.

First comes what must hold for the table to mean anything: gradients and predictions agree with plain torch in
double precision on the CPU, and a CUDA graph gives the bits that its kernels give without it. Needs torch, numpy, h5py
and safetensors, but neither gymnasium nor mujoco; where the package is not installed, PYTHONPATH=. names it.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
import plain_model
import torch
from torch import Tensor

from usbpo.agent import sac
from usbpo.environments.terminations import hopper
from usbpo.model import fine_tuning
from usbpo.model.ensemble import (
    Architecture,
    Ensemble,
    fit_scaler,
    holdout_mse,
    new_ensemble,
    predict,
    predict_one_member,
)
from usbpo.model.fitting import fit_for
from usbpo.model.likelihood import LikelihoodStep, decay_by_name
from usbpo.model.passes import PRECISIONS, number_type
from usbpo.model.wasserstein import Rows, draw_members
from usbpo.numerics import device as devices
from usbpo.numerics.optimizer import Adam, Params, copied, moved
from usbpo.stages import phase1
from usbpo.stages.rollout import roll_out

OBS_DIM, ACT_DIM, MEMBERS, ELITES, LAYERS, WIDTH = 11, 3, 7, 5, 4, 200
MINIBATCH, BATCH, STARTS, HOLDOUT, REAL_ROWS = 256, 1024, 100_000, 5000, 20_000
WEIGHT_DECAY, PENALTY = [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4], 0.01
ARCHITECTURE = Architecture(OBS_DIM, ACT_DIM, MEMBERS, ELITES, LAYERS, WIDTH)
POLICY = sac.Architecture(OBS_DIM, ACT_DIM, 2, 256)
FORMS = [("as_written", "fixed"), ("as_written", "moving"), ("as_released", "moving")]
"""`loss` and `stand_in` of phase 2"""


class Work(NamedTuple):
    """Something to time."""

    name: str
    products: float
    """Floating-point operations in its matrix products"""
    run: Callable[[], object]
    plain: str | None = None
    """Name of the work that is its plain form"""


def said(form: tuple[str, str]) -> str:
    """A form of the objective as the table names it."""
    return " ".join((form[0].replace("_", " "), *form[1:])) if form[0] == "as_written" else "as released"


def products(sizes: list[int], rows: int) -> float:
    """Operations of one forward pass of a network of these widths."""
    return 2.0 * rows * sum(a * b for a, b in pairwise(sizes))


FORWARD = products(ARCHITECTURE.sizes, 1)
"""Operations of one member for one row"""
TRAINING = 3.0 * FORWARD - products(ARCHITECTURE.sizes[:2], 1)
"""The same with the backward pass; the inputs have no gradient"""
POLICY_FORWARD = products([OBS_DIM, 256, 256, 2 * ACT_DIM], 1)


class Setting:
    """Models, data and rows, the same numbers on every device and in every precision."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype = torch.float32, products: torch.dtype | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.m1, self.m2 = new_ensemble(ARCHITECTURE, generator), new_ensemble(ARCHITECTURE, generator)
        actor = sac.new_agent(POLICY, generator).actor
        numbers = torch.randn(REAL_ROWS, OBS_DIM + ACT_DIM, generator=generator)
        matrix = 0.1 * torch.randn(OBS_DIM + ACT_DIM, OBS_DIM + 1, generator=generator)
        for model, first in ((self.m1, 1000), (self.m2, 0)):
            fit_scaler(model, numbers[first:])
        starts = 0.05 * torch.randn(STARTS, OBS_DIM, generator=generator)
        starts[:, 0] = 1.2  # a hopper that stands
        drawn = draw_members(MEMBERS, BATCH, generator)
        self.index = torch.randint(REAL_ROWS, (MEMBERS, MINIBATCH), generator=generator).to(device)
        self.members = torch.randint(ELITES, (STARTS,), generator=generator).to(device)
        self.m1, self.m2 = (_converted(model, dtype).to(device, products) for model in (self.m1, self.m2))
        self.actor = moved(_cast(actor, dtype), device)
        self.inputs, self.targets = (t.to(device, dtype) for t in (numbers, numbers @ matrix))
        self.starts = starts.to(device, dtype)
        self.actions = torch.rand(STARTS, ACT_DIM, generator=generator).to(device, dtype)
        rows = self.inputs[:BATCH]
        self.rows = Rows(rows[:, :OBS_DIM], rows[:, OBS_DIM:], drawn[0].to(device), drawn[1].to(device))
        self.generator = torch.Generator(device).manual_seed(0)


def _cast(params: Params, dtype: torch.dtype) -> Params:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in params.items()}


def _converted(model: Ensemble, dtype: torch.dtype) -> Ensemble:
    scaler = model.scaler_mean.to(dtype), model.scaler_std.to(dtype)
    params, moments = _cast(model.params, dtype), _cast(model.mle, dtype)
    return Ensemble(model.architecture, params, *scaler, model.elites, moments, {}, model.products)


def works(on: Setting) -> list[Work]:
    """All that is timed."""
    cuda, found = on.device.type == "cuda", []

    # Phase 1.
    params = copied(on.m2.params)
    step = LikelihoodStep(
        params, Adam(params, 1e-3, weight_decay=decay_by_name(WEIGHT_DECAY)), on.inputs, on.targets, MINIBATCH, PENALTY,
        on.m2.products,
    )  # fmt: skip
    plain = plain_model.PlainLikelihood(on.m2.params, 1e-3, on.inputs, on.targets, WEIGHT_DECAY, PENALTY)
    flops = TRAINING * MEMBERS * MINIBATCH
    found.append(Work("phase-1 minibatch", flops, lambda: step.take(on.index), "phase-1 minibatch, plain"))
    if cuda:
        found.append(Work("phase-1 minibatch, no graph", flops, step.once, "phase-1 minibatch, plain"))
    if devices.has_kernels(on.device):
        keys = {"learning_rate": 1e-3, "weight_decay": WEIGHT_DECAY, "log_variance_penalty": PENALTY}
        fit = fit_for(on.m2.params, on.m2.mle, on.inputs, on.targets, batch_size=MINIBATCH, **keys)
        found.append(Work("phase-1 minibatch, fused", flops, lambda: fit.take(on.index), "phase-1 minibatch, plain"))
    found.append(Work("phase-1 minibatch, plain", flops, lambda: plain.take(on.index)))
    held_out = on.inputs[:HOLDOUT], on.targets[:HOLDOUT]
    # The wanted outputs are the means; half of the last layer is not computed.
    flops = MEMBERS * HOLDOUT * (FORWARD - 2.0 * WIDTH * (OBS_DIM + 1))
    found.append(Work("hold-out error", flops, lambda: holdout_mse(on.m2, params, *held_out), "hold-out error, plain"))
    found.append(Work("hold-out error, plain", flops, lambda: plain_model.holdout_mse(on.m2, params, *held_out)))

    # Phase 2: M1 on the rows, a step, and the value on the validation rows, for which M1 is remembered.
    for form in FORMS:
        tuning = fine_tuning.FineTuning(on.m1, on.m2, *form)
        adam = Adam(tuning.params, 1e-4)
        descent = fine_tuning.Descent(tuning, adam, BATCH, "shift+bias")
        remembered = tuning.compared(on.rows)

        def value(tuning: fine_tuning.FineTuning = tuning, remembered: fine_tuning.Compared = remembered) -> Tensor:
            return tuning.objective(remembered).of("shift+bias")

        watched = devices.captured(value, on.device)

        def whole(
            step: Callable[[], object], watch: Callable[[], Tensor], tuning: fine_tuning.FineTuning = tuning
        ) -> Callable[[], float]:
            def run() -> float:
                step()
                return float(watch())

            return run

        def ours(tuning: fine_tuning.FineTuning = tuning, descent: fine_tuning.Descent = descent) -> None:
            descent.step(tuning.compared(on.rows))

        def eager(tuning: fine_tuning.FineTuning = tuning, descent: fine_tuning.Descent = descent) -> None:
            tuning.compared(on.rows)
            descent.once()

        autograd = plain_model.PlainDescent(on.m1, on.m2, form, 1e-4, "shift+bias")

        def theirs(autograd: plain_model.PlainDescent = autograd) -> None:
            autograd.step(on.rows)

        def their_value(autograd: plain_model.PlainDescent = autograd) -> Tensor:
            return autograd.value(on.rows)

        # The stand-in that is fixed is one more forward of all members.
        flops = BATCH * (MEMBERS * TRAINING + (2 if tuning.fixed else 1) * MEMBERS * FORWARD + FORWARD)
        name, plain_name = f"phase-2 step, {said(form)}", f"phase-2 step, {said(form)}, plain"
        found.append(Work(name, flops, whole(ours, watched), plain_name))
        if cuda:
            found.append(Work(f"{name}, no graph", flops, whole(eager, value), plain_name))
        found.append(Work(plain_name, flops, whole(theirs, their_value)))

    # Rollouts and predictions.
    flops = STARTS * (FORWARD + POLICY_FORWARD)

    def rollout() -> None:
        roll_out(on.m2, on.actor, on.starts, 1, hopper, on.generator)

    def plain_rollout() -> None:
        _, sample = plain_model.model_step(on.m2, on.actor, on.starts, on.generator)
        reached = sample[:, 1:].contiguous().numpy(force=True)
        hopper(reached)

    found.append(Work("rollout step", flops, rollout, "rollout step, plain"))
    found.append(Work("rollout step, plain", flops, plain_rollout))
    rows = on.rows.observations, on.rows.actions
    flops = MEMBERS * BATCH * FORWARD
    found.append(Work("prediction by all members", flops, lambda: predict(on.m2, params, *rows), "its plain form"))
    found.append(Work("its plain form", flops, lambda: _no_gradients(plain_model.predictions, params, on.m2, *rows)))
    return found + peers(on)


def _no_gradients(function: Callable[..., object], *arguments: object) -> None:
    with torch.no_grad():
        function(*arguments)


def peers(on: Setting) -> list[Work]:
    """The same by mbrl-lib, where it is installed: as its trainer and its model environment do it."""
    try:
        from mbrl.env.termination_fns import hopper as ended
        from mbrl.models import GaussianMLP, ModelEnv, ModelTrainer, OneDTransitionRewardModel
        from mbrl.planning.sac_wrapper import SACAgent
        from mbrl.types import TransitionBatch
        from mbrl.util.replay_buffer import BootstrapIterator, TransitionIterator
        from sac_peers import Space, mbrl_agent
    except ImportError:
        return []
    networks = GaussianMLP(
        OBS_DIM + ACT_DIM, OBS_DIM + 1, on.device, LAYERS, MEMBERS, WIDTH, propagation_method="random_model",
        learn_logvar_bounds=True, activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )  # fmt: skip
    networks.set_elite(list(range(ELITES)))
    model = OneDTransitionRewardModel(networks, normalize=True, num_elites=ELITES)
    inputs, targets = on.inputs.numpy(force=True), on.targets.numpy(force=True)
    observations, never = inputs[:, :OBS_DIM], np.zeros(REAL_ROWS, dtype=bool)
    columns = observations, inputs[:, OBS_DIM:], observations + targets[:, 1:], targets[:, 0], never, never
    batch = TransitionBatch(*columns)
    model.update_normalizer(batch)
    trainer = ModelTrainer(model, optim_lr=1e-3, weight_decay=5e-5)
    whole_minibatches = BootstrapIterator(batch[: REAL_ROWS - REAL_ROWS % MINIBATCH], MINIBATCH, MEMBERS, True)
    held_out = TransitionIterator(batch[:HOLDOUT], MINIBATCH)

    def minibatches() -> Iterator[TransitionBatch]:
        while True:
            yield from whole_minibatches

    minibatch, starts = minibatches(), on.starts.numpy(force=True)
    agent = SACAgent(mbrl_agent(OBS_DIM, ACT_DIM, str(on.device)))
    environment = ModelEnv(Space(OBS_DIM, ACT_DIM), model, ended, generator=torch.Generator(on.device))

    def rollout() -> None:
        actions = agent.act(starts, sample=True, batched=True)
        environment.step(actions, environment.reset(starts), sample=True)

    def predictions() -> None:
        _no_gradients(networks.forward, on.inputs[:BATCH], None, None, False)

    training, evaluation = TRAINING * MEMBERS * MINIBATCH, FORWARD * MEMBERS * HOLDOUT
    return [
        Work("phase-1 minibatch, mbrl-lib", training, lambda: model.update(next(minibatch), trainer.optimizer)),
        Work("hold-out error, mbrl-lib", evaluation, lambda: trainer.evaluate(held_out)),
        Work("rollout step, mbrl-lib", STARTS * (FORWARD + POLICY_FORWARD), rollout),
        Work("prediction by all members, mbrl-lib", MEMBERS * BATCH * FORWARD, predictions),
    ]


def timed(runs: list[Callable[[], object]], repetitions: int, device: torch.device) -> list[float]:
    """Median seconds of each, all by turns; the first of each is left out."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repetitions):
        for run, taken in zip(runs, seconds, strict=True):
            if device.type == "cuda":
                run()
                torch.cuda.synchronize(device)
                begun = time.perf_counter()
                run()
                torch.cuda.synchronize(device)
                taken.append(time.perf_counter() - begun)
            else:
                begun = time.process_time()
                run()
                taken.append(time.process_time() - begun)
    return [median(taken) for taken in seconds]


def largest_error(found: Params | Iterable[Tensor], expected: Params | Iterable[Tensor]) -> float:
    """The largest difference between tensors, as a share of the largest entry of them all."""
    pairs = list(zip(_tensors(found), _tensors(expected), strict=True))
    largest = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a.cpu().double() - b).abs().max()) for a, b in pairs) / largest


def _tensors(several: Params | Iterable[Tensor]) -> list[Tensor]:
    return list(several.values()) if isinstance(several, dict) else list(several)


def agreement(on: Setting) -> Iterable[str]:
    """How far gradients and predictions are from plain torch in double precision on the CPU, and plain torch itself."""
    exact = Setting(torch.device("cpu"), torch.float64)

    def likelihood(at: Setting, params: Params) -> Tensor:
        minibatch = at.inputs[at.index], at.targets[at.index]
        return plain_model.negative_log_likelihood(params, *minibatch, [0.0] * 5, PENALTY)

    def objective(at: Setting, params: Params, form: tuple[str, str]) -> Tensor:
        return plain_model.objective(at.m1, at.m2, params, form, at.rows).of("shift+bias")

    def told(what: str, found: Params, loss: Callable[[Setting, Params], Tensor]) -> str:
        expected, plain = (plain_model.gradients(at.m2.params, partial(loss, at)) for at in (exact, on))
        return f"{what}: {largest_error(found, expected):.1e} (plain torch: {largest_error(plain, expected):.1e})"

    adam = Adam(copied(on.m2.params), 0.0)
    LikelihoodStep(adam.params, adam, on.inputs, on.targets, MINIBATCH, PENALTY, on.m2.products).take(on.index)
    yield told("gradient of phase 1", adam.gradients, likelihood)
    for form in FORMS:
        tuning = fine_tuning.FineTuning(on.m1, on.m2, *form)
        adam = Adam(tuning.params, 0.0)
        fine_tuning.Descent(tuning, adam, BATCH, "shift+bias").step(tuning.compared(on.rows))
        yield told(f"gradient of phase 2, {said(form)}", adam.gradients, partial(objective, form=form))
    found = predict_one_member(on.m2, on.members, on.starts, on.actions)
    with torch.no_grad():
        drawn = plain_model.one_member_predictions(
            exact.m2.params, exact.m2, exact.members, exact.starts, exact.actions
        )
    yield f"predictions: {largest_error(found, drawn):.1e}"
    if on.device.type == "cuda":
        yield f"CUDA graphs give the bits of their kernels: {_same_bits(on)}"


def _same_bits(on: Setting) -> bool:
    results = []
    for graph in (True, False):
        adam = Adam(copied(on.m2.params), 1e-3)
        step = LikelihoodStep(adam.params, adam, on.inputs, on.targets, MINIBATCH, PENALTY, on.m2.products)
        tuning = fine_tuning.FineTuning(on.m1, on.m2, *FORMS[0])
        tuned = Adam(tuning.params, 1e-4)
        descent = fine_tuning.Descent(tuning, tuned, BATCH, "shift+bias")
        step.take(on.index)
        descent.step(tuning.compared(on.rows))
        for _ in range(4):
            if graph:
                step.take(on.index)
                descent.step(tuning.compared(on.rows))
            else:
                step.once()
                descent.once()
        results.append([*adam.params.values(), *tuned.params.values()])
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def whole_phases(on: Setting, repetitions: int) -> Iterable[str]:
    """Time of the loops of phase 1 and phase 2, as the stages run them, on the same clock as the table.

    Phase 2 in all its forms by turns, medians of `repetitions`.
    """
    clock = time.perf_counter if on.device.type == "cuda" else time.process_time
    training = phase1.ModelData(on.inputs, on.targets)
    holdout = phase1.ModelData(on.inputs[:HOLDOUT], on.targets[:HOLDOUT])
    for what, count in (("1 epoch of phase 1", 1), ("5 epochs of phase 1", 5)):
        model = _converted(on.m2, torch.float32)
        begun = clock()
        phase1.train(
            model, training, holdout, on.generator, learning_rate=1e-3, batch_size=MINIBATCH, weight_decay=WEIGHT_DECAY,
            log_variance_penalty=PENALTY, min_improvement=0.01, patience=5, max_epochs=count,
        )  # fmt: skip
        yield f"{what} on {REAL_ROWS:,} rows: {clock() - begun:.2f} s"
    ends: dict[tuple[str, str], tuple[float, float]] = {}

    def fine_tune(form: tuple[str, str]) -> None:
        tuning = fine_tuning.FineTuning(on.m1, _converted(on.m2, torch.float32), *form)
        values, best, _ = fine_tuning.fine_tune(
            tuning, lambda: on.rows, tuning.compared(on.rows), learning_rate=1e-4, batch_size=BATCH, max_steps=100,
            min_improvement=1e-4, patience=100, terms="shift+bias",
        )  # fmt: skip
        ends[form] = values[0], values[best]

    for form, taken in zip(FORMS, timed([partial(fine_tune, f) for f in FORMS], repetitions, on.device), strict=True):
        yield f"100 steps of phase 2, {said(form)}: {taken:.2f} s ({ends[form][0]:.4g} → {ends[form][1]:.4g})"


def main() -> None:
    """Print the agreement, the table and the whole phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of products between hidden layers")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--phases", type=int, default=3, help="repetitions of whole phases 2")
    parser.add_argument("--no-phases", action="store_true", help="leave out whole phases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    device = devices.choose(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU thread"
    print(
        f"torch {torch.__version__}, {name}\n\nLargest error as a share of the largest entry, against double precision:"
    )
    products = number_type(options.precision)
    on = Setting(device, products=products)
    for line in agreement(on):
        print(f"  {line}")

    every = works(on)
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=products) for _ in range(2))
    product = torch.empty_like(a)
    seconds = timed([lambda: torch.mm(a, b, out=product), *(w.run for w in every)], options.repetitions, device)
    speed = 2.0 * size**3 / seconds[0]
    taken = dict(zip((w.name for w in every), seconds[1:], strict=True))
    told = f"{size} × {size}, {options.precision}: {speed / 1e9:,.1f} GFLOP/s"
    print(f"\ntorch.mm of {told}; medians of {options.repetitions}\n")
    print(f"{'':38}{'GFLOP':>8}{'limit ms':>10}{'took ms':>10}{'× limit':>9}{'plain / it':>12}")
    for work in every:
        limit, own = work.products / speed, taken[work.name]
        faster = "" if work.plain is None else f"{taken[work.plain] / own:.2f}"
        numbers = f"{work.products / 1e9:8.2f}{limit * 1e3:10.3f}{own * 1e3:10.3f}{own / limit:9.2f}"
        print(f"{work.name:38}{numbers}{faster:>12}")
    if not options.no_phases:
        print()
        for line in whole_phases(on, options.phases):
            print(line)


if __name__ == "__main__":
    main()
