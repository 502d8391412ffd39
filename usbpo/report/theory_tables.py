"""The tables of the theory, measured: the numbers behind its figures."""

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import numpy as np

from usbpo.report.records import Measured, Run, Terms, Theory
from usbpo.report.tabular import Cell, Table

Place = Literal["holdout", "rollout"]
Phase = Literal["before", "after"]
PLACES: tuple[Place, ...] = get_args(Place)
"""Held-out real transitions, and model rollouts: samples of d_M1^π1, over which the expectations of eq 1 are."""
PHASES: tuple[Phase, ...] = get_args(Phase)
"""M2 before and after phase 2; a method without one has the second alone."""
WHERE = ("task", "method", "seed", "cycle", "on_policy_steps")


def bracket(runs: Iterable[Run]) -> Table:
    """`theory_bracket.csv`: the bracket of eq 1 and its distances, one row for every model, place and phase."""
    names = ("previous_bias", "shift", "true_bias", "bracket")
    columns = (*WHERE, "place", "phase", "rows", *names)
    rows: list[tuple[Cell, ...]] = [
        (*_where(run, theory.cycle), place, phase, measured.rows, *[getattr(terms, name) for name in names])
        for run, theory, place, phase, measured, terms in _measured(runs)
    ]
    return Table(columns, rows)


def bias(runs: Iterable[Run]) -> Table:
    """`theory_bias.csv`: surrogate and true bias of M2, one row for every model, place and phase.

    The surrogate bias is to M2's other members, the fixed one to the other members as phase 1 left them.
    The floor is the W2 by which a simulator whose state was set from an observation misses what really followed.
    """
    surrogates = ("surrogate_bias", "surrogate_bias_fixed")
    names = (*surrogates, "true_bias", "error", "spread", "rank_correlation", "rank_correlation_fixed")
    columns = (*WHERE, "place", "phase", "rows", *names, "floor_median", "floor_max", "undetermined")
    rows: list[tuple[Cell, ...]] = []
    for run, theory, place, phase, measured, terms in _measured(runs):
        floor = theory.reconstruction
        of_floor = (floor.median, floor.max, floor.undetermined) if floor else (None, None, None)
        numbers = [getattr(terms, name) for name in names]
        rows.append((*_where(run, theory.cycle), place, phase, measured.rows, *numbers, *of_floor))
    return Table(columns, rows)


def bound(runs: Iterable[Run]) -> Table:
    """`theory_bound.csv`: the bound on |Δ| of eq 4 and what it is made of, beside the bracket of eq 1."""
    names = ("shift", "true_bias_max", "bound_shift_term", "bound_policy_term", "bound", "bracket")
    columns = (*WHERE, "place", "phase", "discount", "policy_shift", *names)
    rows: list[tuple[Cell, ...]] = [
        (
            *_where(run, theory.cycle),
            *(place, phase, theory.discount, measured.policy_shift),
            *[getattr(terms, name) for name in names],
        )
        for run, theory, place, phase, measured, terms in _measured(runs)
    ]
    return Table(columns, rows)


def surrogate(runs: Iterable[Run]) -> Table:
    """`theory_surrogate.csv`: surrogate and true bias of each row, after the last model update of the first seed."""
    columns = (*WHERE, "place", "phase", "row", "surrogate_bias", "surrogate_bias_fixed", "true_bias")
    rows: list[tuple[Cell, ...]] = []
    for run in first_seeds(runs):
        for (place, phase), of_rows in (run.rows.biases if run.rows else {}).items():
            where = _where(run, run.rows.cycle if run.rows else 0)
            fixed = [None] * len(of_rows.true) if of_rows.fixed is None else list(map(_shortest, of_rows.fixed))
            columns_of_rows = zip(map(_shortest, of_rows.surrogate), fixed, map(_shortest, of_rows.true), strict=True)
            rows += [(*where, place, phase, row, *numbers) for row, numbers in enumerate(columns_of_rows)]
    return Table(columns, rows)


def _shortest(number: np.float32) -> float:
    """The shortest digits that tell a 32-bit number from its neighbours."""
    return float(str(number))


def depth(runs: Iterable[Run]) -> Table:
    """`theory_depth.csv`: how far model and simulator are apart after so many equal actions, for every model."""
    names = ("depth", "branches", "error_mean", "error_q25", "error_q50", "error_q75", "moved", "one_step")
    rows: list[tuple[Cell, ...]] = [
        (*_where(run, theory.cycle), *[getattr(line, name) for name in names])
        for run in runs
        for theory in run.theory
        for line in theory.depth or ()
    ]
    return Table((*WHERE, *names), rows)


def first_seeds(runs: Iterable[Run]) -> list[Run]:
    """The first seed of each task and method whose theory was measured."""
    found: dict[tuple[str, str], Run] = {}
    for run in runs:
        if run.theory:
            found.setdefault((run.files.task, run.files.method), run)
    return list(found.values())


def _measured(runs: Iterable[Run]) -> Iterator[tuple[Run, Theory, Place, Phase, Measured, Terms]]:
    for run in runs:
        for theory in run.theory:
            for place in PLACES:
                measured: Measured | None = getattr(theory, place)
                for phase in PHASES:
                    terms: Terms | None = getattr(measured, phase) if measured else None
                    if measured and terms:
                        yield run, theory, place, phase, measured, terms


def _where(run: Run, cycle: int) -> tuple[str, str, int, int, int]:
    return run.files.task, run.files.method, run.files.seed, cycle, run.files.steps(cycle)
