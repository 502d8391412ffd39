"""However many threads a stage has, it computes the same bits."""

from collections.abc import Callable, Iterable
from dataclasses import fields

import numpy as np
import pytest
import torch
from helpers.strategies import architectures
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from usbpo.agent import sac
from usbpo.agent.learner import Learner
from usbpo.environments.terminations import never
from usbpo.model import passes
from usbpo.model.ensemble import Architecture, Ensemble, holdout_mse, new_ensemble, predict, predict_one_member
from usbpo.model.fine_tuning import FineTuning, fine_tune
from usbpo.model.likelihood import LikelihoodStep, decay_by_name
from usbpo.model.wasserstein import Rows, draw_members
from usbpo.numerics.optimizer import Adam, copied
from usbpo.numerics.threads import using
from usbpo.stages.rollout import roll_out

NUMBERS = (1, 2, 3)
"""Of threads"""
precisions = st.sampled_from([None, torch.bfloat16])
seeds = st.integers(0, 1000)


def same(compute: Callable[[], Iterable[Tensor]]) -> None:
    """Assert that what `compute` returns has the same bits whatever the number of threads."""
    found = []
    for number in NUMBERS:
        with using(number):
            found.append([tensor.clone() for tensor in compute()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def model_of(architecture: Architecture, seed: int, products: torch.dtype | None) -> Ensemble:
    model = new_ensemble(architecture, torch.Generator().manual_seed(seed))
    model.products = products
    return model


@given(architectures(24), st.integers(1, 70), precisions, seeds)
def test_minibatches_of_phase_1(architecture: Architecture, rows: int, products: torch.dtype | None, seed: int) -> None:
    def compute() -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        params = copied(model_of(architecture, seed, products).params)
        adam = Adam(params, 1e-2, weight_decay=decay_by_name([1e-4] * (architecture.hidden_layers + 1)))
        inputs = torch.randn(50, architecture.obs_dim + architecture.act_dim, generator=generator)
        targets = torch.randn(50, architecture.obs_dim + 1, generator=generator)
        step = LikelihoodStep(params, adam, inputs, targets, rows, 0.01, products)
        for _ in range(3):
            step.take(torch.randint(50, (architecture.members, rows), generator=generator))
        return [*params.values(), *adam.moments().values()]

    same(compute)


@given(architectures(24), st.integers(1, 60), st.integers(1, 70), precisions, seeds)
def test_predictions_and_holdout_errors(
    architecture: Architecture, rows: int, chunk: int, products: torch.dtype | None, seed: int
) -> None:
    model, generator = model_of(architecture, seed, products), torch.Generator().manual_seed(seed)
    observations, actions = (
        torch.randn(rows, n, generator=generator) for n in (architecture.obs_dim, architecture.act_dim)
    )
    members = torch.randint(architecture.members, (rows,), generator=generator)
    targets = torch.randn(rows, architecture.obs_dim + 1, generator=generator)

    def compute() -> Iterable[Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "CHUNK_ROWS", chunk)
            return [
                *predict(model, model.params, observations, actions),
                *predict_one_member(model, members, observations, actions),
                holdout_mse(model, model.params, torch.cat([observations, actions], dim=1), targets),
            ]

    same(compute)


@given(
    architectures(16).filter(lambda sizes: sizes.members > 1),
    st.integers(1, 60),
    st.integers(1, 70),
    precisions,
    st.sampled_from([("as_written", "fixed"), ("as_written", "moving"), ("as_released", "moving")]),
    seeds,
)
def test_steps_of_phase_2(
    architecture: Architecture,
    rows: int,
    chunk: int,
    products: torch.dtype | None,
    form: tuple[str, str],
    seed: int,
) -> None:
    def compute() -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        m1, m2 = (model_of(architecture, seed + n, products) for n in (1, 2))

        def draw() -> Rows:
            numbers = [torch.randn(rows, n, generator=generator) for n in (architecture.obs_dim, architecture.act_dim)]
            return Rows(numbers[0], numbers[1], *draw_members(architecture.members, rows, generator))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "CHUNK_ROWS", chunk)
            tuning = FineTuning(m1, m2, *form)
            values, *_ = fine_tune(
                tuning, draw, tuning.compared(draw()), learning_rate=1e-2, batch_size=rows, max_steps=3,
                min_improvement=0.01, patience=5, terms="shift+bias",
            )  # fmt: skip
        return [*m2.params.values(), *m2.finetune.values(), torch.tensor(values)]

    same(compute)


@given(architectures(16), st.integers(1, 60), st.integers(1, 70), precisions, seeds)
def test_model_rollouts(
    architecture: Architecture, rows: int, chunk: int, products: torch.dtype | None, seed: int
) -> None:
    model = model_of(architecture, seed, products)
    sizes = sac.Architecture(architecture.obs_dim, architecture.act_dim, 2, 16)

    def compute() -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        actor = sac.new_agent(sizes, generator).actor
        starts = torch.randn(rows, architecture.obs_dim, generator=generator)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "CHUNK_ROWS", chunk)
            made, _ = roll_out(model, actor, starts, 2, never, generator)
        return [torch.from_numpy(np.asarray(getattr(made, part.name))) for part in fields(made)]

    same(compute)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), seeds)
def test_updates_of_the_policy(obs_dim: int, act_dim: int, layers: int, rows: int, seed: int) -> None:
    def compute() -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        agent = sac.new_agent(sac.Architecture(obs_dim, act_dim, layers, 16), generator)
        learner = Learner(agent, rows=rows, real=1, learning_rate=1e-2, discount=0.9, polyak=0.1, target_entropy=-1.0)
        for _ in range(3):
            learner.batch.normal_(generator=generator)
            learner.noise.normal_(generator=generator)
            learner.update()
        made = learner.agent()
        groups = made.actor, made.critics, made.targets, made.temperature, *made.moments.values(), learner.seen()
        return [tensor.nan_to_num() for group in groups for tensor in group.values()]

    same(compute)
