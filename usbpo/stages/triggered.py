"""Stage `triggered`: a cycle of a model whose updates an event trigger decides, check after check (algorithm, CMLO).

The trigger looks every 20 or 50 real steps, and nobody knows beforehand when it fires. As jobs of a workflow, each
check would be six of them, most with nothing to do; so one cycle, in which the model is trained once at least, is one
stage. Between two checks it does what the stages collect, phase1, phase2, rollout and policy do in a cycle of that
length, with the same generators and to the same tensors.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from usbpo.agent import sac
from usbpo.agent.choice import learner_for
from usbpo.agent.learner import Learner
from usbpo.agent.replay import Replay, replay_of
from usbpo.artifacts import layout, lineage, transitions
from usbpo.artifacts import metrics as records
from usbpo.artifacts.checkpoints import check_architecture
from usbpo.artifacts.header import Header, parameters_of, require_same_physics
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.tasks import Simulator, read_arguments
from usbpo.errors import UsbpoError, saying
from usbpo.model import ensemble
from usbpo.model.trigger import Trigger, hull_volume, model_errors
from usbpo.numerics import device as devices
from usbpo.numerics.optimizer import moved
from usbpo.numerics.seeding import numpy_generator, torch_generator
from usbpo.stages.collect import CONTINUE, Collector, check_episodes, check_finite, stochastic_actor
from usbpo.stages.phase1 import phase1 as train_model
from usbpo.stages.phase2 import phase2 as fine_tune
from usbpo.stages.policy import Line, learn, write_metrics
from usbpo.stages.rollout import rollout as roll_out

KIND = "trigger"


def triggered(
    *,
    data: list[Path],
    previous_shard: Path,
    previous_policy: Path,
    output: Path,
    folder: Path,
    task: str,
    environment: str,
    termination: str,
    steps: int,
    lengths: list[int],
    retained_updates: int,
    seed: int,
    cycle: int,
    trigger: str,
    model: str,
    phase1: str,
    rollout: str,
    policy: str,
    phase2: str | None = None,
    previous_model: Path | None = None,
    previous_trigger: Path | None = None,
    rollouts: list[Path] | None = None,
    method: str | None = None,
    environment_arguments: str = "{}",
    episodes: str = CONTINUE,
    device: str = "auto",
    precision: str = "float32",
) -> None:
    """Collect, check, train the model where the trigger fires, update the policy; as often as the cycle has checks.

    Args:
        data: blocks and shards of D_env before this cycle, oldest first.
        previous_shard: the shard to go on from.
        previous_policy: policy checkpoint to go on from.
        output: shard to write, with the collector's state at its end.
        folder: the cycle's folder, for all else: the trigger's checks and state (trigger.json), the last model trained
            and its metrics, the rollouts of the last trainings, the policy and its metrics.
        task: name of the task.
        environment: Gymnasium id.
        termination: name of the termination function (usbpo/environments/terminations.py), or a user's module:function.
        steps: real steps of this cycle, a whole number of checks.
        lengths: rollout length at each check, in model steps.
        retained_updates: of how many model updates the rollouts are D_model, the last ones.
        seed: run seed.
        cycle: number of the cycle.
        trigger: parameters of the trigger, as JSON.
        model: sizes of the ensemble, as JSON.
        phase1: parameters of maximum likelihood, as JSON.
        rollout: parameters of the model rollouts, as JSON.
        policy: parameters of the policy updates, as JSON.
        phase2: parameters of fine-tuning, as JSON; without it there is none.
        previous_model: the model in force; without it a new one is trained at the first check.
        previous_trigger: the trigger's state at the end of the cycle before; none before the first model.
        rollouts: D_model at the end of the cycle before.
        method: name of the method; without it that of the data.
        environment_arguments: keyword arguments of the environment, as JSON.
        episodes: `continue` where the last shard's episode goes on, `end_with_cycle` where each shard begins one.
        device: where to compute.
        precision: of the model's products between hidden layers, float32 or bfloat16.

    Raises:
        UsbpoError: an input is missing, damaged, of another run, cycle or architecture, there is no such device or
            precision, training diverges, the environment cannot be used so, or the cycle is so short that the model is
            not trained in it.
    """
    parameters = parameters_of(locals())
    sections = {"trigger": trigger, "model": model, "phase1": phase1, "rollout": rollout, "policy": policy}
    keys = {name: json.loads(text) for name, text in (sections | ({"phase2": phase2} if phase2 else {})).items()}
    simulator = Simulator(environment, read_arguments(environment_arguments))
    check_episodes(episodes, simulator)
    for option, path in (("--previous-model", previous_model), ("--previous-trigger", previous_trigger)):
        lineage.require_previous(option, path, cycle, 2)
    run: dict[str, Any] = {"task": task, "method": method, "seed": seed, "cycle": cycle}
    header, real = lineage.begin(KIND, data, **run, parameters=parameters, until=cycle - 1)
    lineage.require_d_model(header, rollouts or [], cycle - 1, 1, retained_updates)
    scratch = folder / ".triggered"
    shutil.rmtree(scratch, ignore_errors=True)  # of a stage that was killed
    try:
        checks = Checks(
            header,
            keys,
            scratch,
            Collector(simulator, seed, cycle if episodes != CONTINUE else None),
            data=data,
            real=real,
            previous_policy=previous_policy,
            previous_shard=previous_shard,
            previous_model=previous_model,
            previous_trigger=previous_trigger,
            rollouts=rollouts or [],
            retained_updates=retained_updates,
            environment=environment,
            termination=termination,
            steps=steps,
            device=device,
            precision=precision,
        )
        every = keys["trigger"]["check_every"]
        if len(lengths) * every != steps:
            raise UsbpoError(f"--lengths must have one value for each {every} of the {steps} steps; add or drop some.")
        for check, length in enumerate(lengths, start=1):
            checks.check((cycle - 1) * len(lengths) + check, length, last=check == len(lengths))
        checks.save(output, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Checks:
    """A run between two checks: its real data, its policy in training, its model, and the trigger's state.

    Args:
        header: of the cycle's artifacts.
        keys: parameters by section.
        scratch: folder for what the stages of the model hand each other.
    """

    def __init__(
        self,
        header: Header,
        keys: dict[str, Any],
        scratch: Path,
        collector: Collector,
        *,
        data: list[Path],
        real: Transitions,
        previous_policy: Path,
        previous_shard: Path,
        previous_model: Path | None,
        previous_trigger: Path | None,
        rollouts: list[Path],
        retained_updates: int,
        environment: str,
        termination: str,
        steps: int,
        device: str,
        precision: str,
    ) -> None:
        self.header, self.keys, self.scratch, self.collector = header, keys, scratch, collector
        self.data, self.model, self.rollouts = data, previous_model, rollouts
        self.retained_updates, self.environment, self.termination = retained_updates, environment, termination
        self.real, self.before, last = real, len(real), header.cycle - 1
        shard_header, state = transitions.read_collector(previous_shard)
        header.takes("previous_shard", previous_shard, shard_header, last)
        require_same_physics(previous_shard, shard_header)
        with saying(str(previous_shard)):
            collector.restore(state)
        self.device, self.steps, self.precision = devices.choose(device), steps, precision
        self.learner = self._learner(previous_policy)
        self.ensemble: ensemble.Ensemble | None = None
        if previous_model is not None:
            model_header, self.ensemble = ensemble.load(previous_model)
            header.takes("previous_model", previous_model, model_header, lineage.previous_cycles(header.cycle, 1))
        self.state = Trigger() if previous_trigger is None else read_state(previous_trigger, header)
        model_rows: Transitions | None = None
        if rollouts:
            model_rows = lineage.read_d_model(header, rollouts, last, 1, retained_updates)
        self.replay = self._replay(model_rows)
        self.found: list[dict[str, Any]] = []
        self.history: list[Line] = []
        self.trained: list[int] = []
        """Numbers of the checks after which the model was trained"""

    def _replay(self, model: Transitions | None) -> Replay:
        """D_model and D_env, with room for the rest of the cycle's real rows."""
        return replay_of(self.real, model, self.device, room=self.before + self.steps - len(self.real))

    def _learner(self, path: Path) -> Learner:
        found, agent = sac.load(path)
        self.header.takes("previous_policy", path, found, self.header.cycle - 1)
        sim, keys = self.collector.simulator, self.keys["policy"]
        expected = sac.Architecture(sim.obs_dim, sim.act_dim, keys["hidden_layers"], keys["hidden_size"])
        check_architecture(path, "policy", agent.architecture, expected)
        names = ("learning_rate", "discount", "polyak", "target_entropy")
        rows, real = keys["batch_size"], int(keys["batch_size"] * keys["real_ratio"])
        return learner_for(agent, rows=rows, real=real, device=self.device, **{name: keys[name] for name in names})

    def check(self, number: int, length: int, *, last: bool) -> None:
        """Take the steps up to a check, ask the trigger, train the model if it fires, and update the policy.

        Args:
            number: of the check, counted from the beginning of the run; the stage's generators are seeded by it.
            length: of the rollouts, if there are any.
            last: whether the cycle ends with it.
        """
        steps = self.keys["trigger"]["check_every"]
        actor = moved(self.learner.actor, torch.device("cpu"))
        with saying(f"cycle {self.header.cycle}, check {number}"):
            new = self.collector.collect(steps, stochastic_actor(actor), cycle_ends=last)
            check_finite(new, self.environment)
        self.real.append(new)
        self.replay.append(new)
        if self._fires(number, new):
            self._train(number, length)
        keys = self.keys["policy"]
        updates = keys["updates_per_step"] * steps
        generator = torch_generator(self.header.seed, number, "policy", self.device)
        with saying(f"cycle {self.header.cycle}, check {number}"):
            lines = learn(self.learner, self.replay, updates, generator, report_every=updates)
        self.history += lines if not self.history else lines[-1:]

    def _fires(self, number: int, new: Transitions) -> bool:
        """The trigger's verdict after the steps `new`."""
        keys, seed = self.keys["trigger"], self.header.seed
        rows = numpy_generator(seed, number, "trigger").permutation(len(self.real))[: keys["states"]]
        volume = hull_volume(self.real.observations[rows], keys["dimensions"])
        reference = self.state.reference_volume if self.ensemble is not None else None
        if self.ensemble is None:
            reason: str | None = "the first model"
        else:
            errors = model_errors(self.ensemble, new, torch_generator(seed, number, "trigger"))
            if not np.isfinite(errors).all():
                raise UsbpoError(
                    f"cycle {self.header.cycle}, check {number}: the model's errors are not finite; lower "
                    "phase1.learning_rate."
                )
            self.state = self.state.seen(errors).checked(volume, keys["reference"])
            reason = self.state.verdict(keys["threshold"], keys["min_steps"], keys["max_steps"])
        self.found.append(
            {
                "on_policy_steps": number * keys["check_every"],
                "volume": volume,
                "reference_volume": reference,
                "mean_error": self.state.mean_error,
                "estimate": self.state.estimate,
                "threshold": keys["threshold"],
                "steps": self.state.steps,
                "fired": reason is not None,
                "reason": reason,
            }
        )
        if reason is not None:
            self.state = Trigger(reference_volume=volume)
        return reason is not None

    def _train(self, number: int, length: int) -> None:
        """Phase 1, phase 2 where there is one and a D_model, and rollouts; by their stages, through files."""
        header = replace(self.header, parameters={"check": number}, inputs={})
        identity: dict[str, Any] = {"seed": header.seed, "cycle": header.cycle, "check": number}
        identity |= {"device": self.device.type, "precision": self.precision}
        shard, agent = self.scratch / "shard.h5", self.scratch / "policy.safetensors"
        collected = self.real.rows(slice(self.before, None))
        transitions.write(shard, replace(header, kind=transitions.KIND), collected)
        self.learner.agent().save(agent, replace(header, kind=sac.KIND))
        data, mle = [*self.data, shard], self._path(layout.MODEL_MLE, number)
        train_model(
            data=data,
            output=mle,
            metrics=self._path(layout.PHASE1_METRICS, number),
            previous_model=self.model,
            **identity,
            **self.keys["model"],
            **self.keys["phase1"],
        )
        trained = mle
        if "phase2" in self.keys and self.model is not None:
            trained = self._path(layout.MODEL, number)
            fine_tune(
                data=data,
                rollouts=self.rollouts,
                model_mle=mle,
                previous_model=self.model,
                output=trained,
                metrics=self._path(layout.PHASE2_METRICS, number),
                retained_updates=self.retained_updates,
                **identity,
                **self.keys["phase2"],
                **{name: self.keys["phase1"][name] for name in ("holdout_ratio", "holdout_limit")},
            )
        made = self._path(layout.ROLLOUTS, number)
        roll_out(
            data=data,
            model=trained,
            policy=agent,
            output=made,
            metrics=self._path(layout.ROLLOUT_METRICS, number),
            termination=self.termination,
            length=length,
            **identity,
            **self.keys["rollout"],
        )
        self.model, self.ensemble = trained, ensemble.load(trained)[1]
        self.rollouts = [*self.rollouts, made]
        self.replay = self._replay(None)  # lets the old D_model go before the new one is read
        self.replay = self._replay(transitions.read_rollouts(self.rollouts, self.retained_updates)[1])
        self.trained.append(number)

    def _path(self, template: str, number: int) -> Path:
        return self.scratch / str(number) / Path(template).name

    def save(self, output: Path, folder: Path) -> None:
        """Write the cycle's artifacts."""
        if not self.trained:
            raise UsbpoError(
                f"{folder}: no training fell into this cycle; give as many --steps as trigger.max_steps at least."
            )
        header, number = self.header, self.trained[-1]
        shard_header = replace(header, kind=transitions.KIND)
        collected = self.real.rows(slice(self.before, None))
        transitions.write(output, shard_header, collected, self.collector.state())
        kept = [self._path(layout.ROLLOUTS, n) for n in self.trained[-self.retained_updates :]]
        parts = [transitions.read(path, transitions.ROLLOUTS)[1] for path in kept]
        made = transitions.write(
            folder / Path(layout.ROLLOUTS).name,
            replace(header, kind=transitions.ROLLOUTS),
            transitions.concatenate(parts),
            updates=[len(part) for part in parts],
        )
        metrics = {layout.ROLLOUT_METRICS: made}
        mle = self._path(layout.MODEL_MLE, number)
        metrics[layout.PHASE1_METRICS] = self._save_model(layout.MODEL_MLE, mle, folder)
        if "phase2" in self.keys and self.model is not None:
            metrics[layout.PHASE2_METRICS] = self._save_model(layout.MODEL, self.model, folder)
        for template, made_with in metrics.items():
            path = self._path(template, number)
            content = records.read(path)[0] if path.is_file() else {"fine_tuned": False}
            records.write(folder / path.name, header, content, made_with)
        policy = self.learner.agent().save(folder / Path(layout.POLICY).name, replace(header, kind=sac.KIND))
        keys = self.keys["policy"]
        updates, target = keys["updates_per_step"] * len(collected), keys["target_entropy"]
        write_metrics(folder / Path(layout.POLICY_METRICS).name, header, policy, updates, target, self.history)
        content = {"checks": self.found, "state": asdict(self.state)}
        records.write(folder / Path(layout.TRIGGER).name, header, content, policy)
        print(f"{len(self.found)} checks, {len(self.trained)} trainings of the model")

    def _save_model(self, template: str, path: Path, folder: Path) -> str:
        """Copy a checkpoint of a training in this cycle to where the cycle's model lies; returns its digest."""
        found, model = ensemble.load(path)
        return model.save(folder / Path(template).name, replace(found, inputs=self.header.inputs))


def read_state(path: Path, header: Header) -> Trigger:
    """The state that the cycle before left for the cycle of `header`.

    Raises:
        UsbpoError: the file is missing, damaged, or not that of the cycle before.
    """
    content, digest = records.read(path)
    expected = {**header.identity, "cycle": header.cycle - 1}
    for name, value in expected.items():
        if content.get(name) != value:
            raise UsbpoError(
                f"{path}: its {name} is {content.get(name)}, but {value} is asked for; give files of one run."
            )
    header.inputs["previous_trigger"] = [digest]
    try:
        return TypeAdapter(Trigger).validate_python(content["state"])
    except (KeyError, ValidationError) as error:
        raise UsbpoError(f"{path}: it holds no state of a trigger; delete it and run again.") from error
