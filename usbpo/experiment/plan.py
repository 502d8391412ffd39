"""An experiment's runs: how long each is, what stays of it, and what the experiment's results are made from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from usbpo.artifacts import layout, pulled
from usbpo.artifacts.fingerprint import data_fingerprint, fingerprint
from usbpo.errors import UsbpoError
from usbpo.experiment.checks import check_files
from usbpo.experiment.experiment_config import Experiment
from usbpo.experiment.layers import FOLDERS, experiment_file, find
from usbpo.experiment.loading import load_experiment, load_run
from usbpo.experiment.run import Run
from usbpo.experiment.run_files import FILES, returns_option
from usbpo.experiment.yaml_files import read_yaml


class Plan:
    """The runs of an experiment and how long each is.

    Args:
        content: the experiment's keys.
        source: names the experiment's file in errors.
        folders: configuration folders, searched in order for task and method files.

    Raises:
        UsbpoError: a file or key is unknown, missing or wrong, or the steps are no whole number of cycles.
    """

    def __init__(self, content: Mapping[str, Any], source: str, folders: Iterable[Path]) -> None:
        self.experiment: Experiment = load_experiment(content, source)
        self.source = source
        self.folders = tuple(folders)
        self._check_returns(source)
        self.cycles: dict[Run, int] = {}
        for task in self.experiment.tasks:
            for method in self.experiment.methods:
                for seed in self.experiment.scaled_seeds:
                    run = self.run(task, method, seed)
                    self.cycles[run] = self._cycles(run, source)
        self._cut_down(source)

    @classmethod
    def named(cls, name: str | None, changed: Mapping[str, Any] | None = None) -> "Plan":
        """The plan of an experiment: a file, the name of one in config/experiments, or None for the default one.

        Args:
            name: of the experiment.
            changed: keys in place of the file's.

        Raises:
            UsbpoError: there is no such experiment, or it is at fault.
        """
        path = experiment_file(name)
        return cls({**read_yaml(path), **(changed or {})}, source=str(path), folders=FOLDERS)

    def run(self, task: str, method: str, seed: int) -> Run:
        """Any run, of this experiment or not."""
        return Run(task, method, seed, load_run(task, method, self.folders))

    def check_files(self, root: Path = Path()) -> None:
        """Check, before anything is computed, that the files which the runs' configurations name are there and fit.

        Args:
            root: folder that holds data/.

        Raises:
            UsbpoError: a file that an environment's argument names is missing or cannot be read, or what a run begins
                with is not an import for its environment with as many rows as are asked for.
        """
        for run in {(run.task, run.method): run for run in self.cycles}.values():
            check_files(run, root)

    def _cut_down(self, source: str) -> None:
        """Keep the runs that `only` names."""
        names = {run.name for run in self.cycles}
        for name in self.experiment.only:
            if name not in names:
                raise UsbpoError(
                    f"{source}: only: {name} is no run of the experiment; name TASK/METHOD/seed-N of its tasks, "
                    "methods and seeds."
                )
        if self.experiment.only:
            self.cycles = {run: cycles for run, cycles in self.cycles.items() if run.name in self.experiment.only}

    def _check_returns(self, source: str) -> None:
        """Refuse returns of a task that does not exist; a part of an experiment may leave out tasks that do."""
        for task in self.experiment.returns:
            if task not in self.experiment.tasks:
                try:
                    find("tasks", task, self.folders)
                except UsbpoError as error:
                    raise UsbpoError(f"{source}: returns: {error}") from error

    def _cycles(self, run: Run, source: str) -> int:
        cycle_steps = run.schedule.cycle_steps
        steps = self.experiment.steps_of(run.task, run.schedule.epoch_steps, cycle_steps)
        if steps % cycle_steps:
            raise UsbpoError(
                f"{source}: steps ({steps}) must be a multiple of the {cycle_steps} steps of a cycle of "
                f"{run.task} with {run.method}; take {max(steps // cycle_steps, 1) * cycle_steps}."
            )
        cycles = run.schedule.cycles(steps)
        if cycles > layout.MOST_CYCLES:
            raise UsbpoError(
                f"{source}: steps ({steps}) are {cycles:,} cycles of {run.task} with {run.method}, but "
                f"{layout.MOST_CYCLES:,} are the most; take {layout.MOST_CYCLES * cycle_steps} or fewer."
            )
        return cycles

    def configurations(self) -> list[dict[str, Any]]:
        """The whole configuration of each task with each method."""
        return [
            self.run(task, method, 0).config.model_dump()
            for task in self.experiment.tasks
            for method in self.experiment.methods
        ]

    def artifacts(self, root: Path = Path()) -> list[str]:
        """What stays of every run, as `kept`, in ascending order of cycle."""
        longest, large = max(self.cycles.values()), {run: self.kept_checkpoints(run, root) for run in self.cycles}
        left = {run.path(layout.CYCLE, cycle) for run, cycles in self.left_behind(root).items() for cycle in cycles}
        return [
            path
            for cycle in range(longest + 1)
            for run, cycles in self.cycles.items()
            if cycle <= cycles
            for path in run.artifacts(cycle)
            if not layout.is_large(path) or path in large[run]
            if path.rpartition("/")[0] not in left
        ]

    def left_behind(self, root: Path = Path()) -> dict[Run, list[int]]:
        """The cycles of this experiment's runs that are published and were not pulled into `root`, in order."""
        return {run: cycles for run in self.cycles if (cycles := self._left_of(run, root))}

    def _left_of(self, run: Run, root: Path) -> list[int]:
        """The cycles of a run that were not pulled, in order."""
        return [cycle for cycle in pulled.left_behind(root, run.folder) if cycle <= self.cycles[run]]

    def left_out(self, root: Path = Path()) -> list[str]:
        """A sentence for each run of which cycles were not pulled."""
        return [
            f"{run.name}: {ranges(cycles)} published and not pulled; not made again, and without them no results "
            f"are drawn (`dvc pull {run.folder}` brings them)."
            for run, cycles in self.left_behind(root).items()
        ]

    def kept(self, run: Run, root: Path = Path()) -> list[str]:
        """The artifacts of a run that stay once it is done, in ascending order of cycle: its final targets.

        All real data, evaluations, metrics and rows of the theory, and `kept_checkpoints`; but for the cycles that were
        not pulled.
        """
        large, left = self.kept_checkpoints(run, root), {run.path(layout.CYCLE, c) for c in self._left_of(run, root)}
        return [
            path
            for cycle in range(self.cycles[run] + 1)
            for path in run.artifacts(cycle)
            if not layout.is_large(path) or path in large
            if path.rpartition("/")[0] not in left
        ]

    def kept_checkpoints(self, run: Run, root: Path = Path()) -> set[str]:
        """The models, policies and rollouts of a run that stay.

        Of a run that is longer already below `root` the last of those that are asked for may be gone, and stay only if
        theirs is a cycle that is kept for its number.
        """
        cycles = self.cycles[run]
        if self.experiment.artifacts.keep == "all":
            return {path for cycle in range(cycles + 1) for path in run.artifacts(cycle) if layout.is_large(path)}
        every = self.experiment.artifacts.every
        kept = set(range(0, cycles + 1, every)) if every else set()
        if not (root / run.path(layout.SHARD, cycles + 1)).is_file():
            kept.add(cycles)
        return {path for cycle in sorted(kept) for path in run.checkpoints(cycle)}

    def targets(self) -> dict[str, dict[str, int]]:
        """For each run by name: how many cycles it shall have, of how many steps, and the last with an evaluation."""
        return {
            run.name: {
                "cycles": cycles,
                "cycle_steps": run.schedule.cycle_steps,
                "evaluated": run.schedule.last_evaluation(cycles),
            }
            for run, cycles in self.cycles.items()
        }

    def result_inputs(self, root: Path = Path()) -> list[str]:
        """What the figures and tables are drawn from: evaluations, metrics and the rows of the theory, of all runs."""
        return [path for path in self.artifacts(root) if path.endswith((".json", "evaluation.h5", "theory.h5"))]

    @property
    def results_folder(self) -> str:
        """Where the figures and tables lie."""
        return layout.RESULTS.format(experiment=self.experiment.experiment)

    def result_files(self) -> list[str]:
        """The figures and tables."""
        return [f"{self.results_folder}/{name}" for name in FILES]

    def result_params(self) -> dict[str, Any]:
        """What the figures and tables depend on beside their inputs.

        The code, the published curves, and the options of `usbpo results`: the runs, and the returns whose first
        reaching is timed, as its `--runs` and `--returns` take them.
        """
        asked = self.experiment.returns
        return {
            "code": fingerprint("report.results"),
            "published": data_fingerprint("report/published_curves.csv"),
            "experiment": self.experiment.experiment,
            "runs": [str(run.files(cycles)) for run, cycles in self.cycles.items()],
            "returns": [returns_option(task, asked[task]) for task in self.experiment.tasks if task in asked],
        }

    def event_files(self) -> list[str]:
        """TensorBoard's file of each run."""
        return [run.path(layout.TENSORBOARD, cycles) for run, cycles in self.cycles.items()]

    def event_inputs(self, run: Run) -> list[str]:
        """What TensorBoard's file of a run is made from: its real data, evaluations and metrics.

        Raises:
            UsbpoError: the run is not of this experiment, which alone says how many cycles it has.
        """
        if run not in self.cycles:
            raise UsbpoError(f"{run.name} is no run of the experiment {self.experiment.experiment}; add it there.")
        shown = (".json", "evaluation.h5")
        paths = [path for cycle in range(self.cycles[run] + 1) for path in run.artifacts(cycle)]
        shards = [run.path(layout.SHARD, cycle) for cycle in range(self.cycles[run] + 1)]
        return [*shards, *(path for path in paths if path.endswith(shown))]

    def videos(self) -> list[str]:
        """A video of the final policy of each run."""
        return [run.path(layout.VIDEO, cycles) for run, cycles in self.cycles.items()]

    def of_runs(self, targets: Iterable[str]) -> list[str]:
        """The artifacts of runs among Snakemake's targets, and the policies that the videos among them show."""
        targets = list(targets)
        runs, videos = (template.partition("{")[0] for template in (layout.RUN, layout.VIDEO))
        films = [*targets, *(self.videos() if "videos" in targets else [])]
        policies = [
            f"{runs}{film.removeprefix(videos).removesuffix('.gif')}/{Path(layout.POLICY).name}"
            for film in films
            if film.startswith(videos)
        ]
        return [target for target in targets if target.startswith(runs)] + policies


def ranges(cycles: Iterable[int]) -> str:
    """Ascending cycles in words: `cycles 0 to 8 and 10 are`."""
    bounds: list[list[int]] = []
    for cycle in cycles:
        if bounds and cycle == bounds[-1][1] + 1:
            bounds[-1][1] = cycle
        else:
            bounds.append([cycle, cycle])
    *parts, last = [str(low) if low == high else f"{low} to {high}" for low, high in bounds]
    single = len(bounds) == 1 and bounds[0][0] == bounds[0][1]
    before = f"{', '.join(parts)} and " if parts else ""
    return f"cycle {last} is" if single else f"cycles {before}{last} are"
