"""The command line: one verb for each stage, and the user's verbs."""

import inspect as introspection
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from usbpo import __version__, stages
from usbpo.artifacts.header import versions
from usbpo.commands.exchange import exports, imports
from usbpo.errors import UsbpoError
from usbpo.experiment import config

SECTIONS: dict[str, tuple[type[config.Section], ...]] = {
    "initialise": (config.PolicyKeys,),
    "collect": (),
    "block": (),
    "triggered": (config.ModelDeviceKeys,),
    "phase1": (config.ModelKeys, config.Phase1Keys, config.ModelDeviceKeys),
    "phase2": (config.Phase2Keys, config.Phase1Keys, config.ModelDeviceKeys),
    "rollout": (config.RolloutKeys, config.ModelDeviceKeys),
    "policy": (config.PolicyKeys, config.DeviceKeys),
    "evaluate": (config.EvaluateKeys,),
    "theory": (config.TheoryKeys, config.Phase1Keys, config.PolicyKeys),
}
"""The stages, and the parts of the configuration that their parameters come from."""

WHOLE_SECTIONS = ("trigger", "model", "phase1", "phase2", "rollout", "policy")
"""The sections that the stage `triggered` takes as JSON."""

PANEL_STAGES, PANEL_USER = "Stages", "Looking at runs"


def warm_up() -> None:
    """Import everything that a stage needs, and parse a command; the warm worker does it once for all its children."""
    for stage in SECTIONS:
        _command(stage)
    versions()
    with suppress(SystemExit), redirect_stdout(StringIO()):
        _command("block").main(["block", "--help"], prog_name="usbpo")


def main(argv: list[str], also: Sequence[Callable[..., None]] = ()) -> int:
    """Run one command.

    Args:
        also: verbs of rooms above this one.

    Returns:
        The exit code: 0, 1 for bad input (one sentence on standard error), 2 for a wrong call.
    """
    name = next((argument for argument in argv if not argument.startswith("-")), "")
    command = _command(name, *also)
    try:
        command.main(_with_repeated_options(name, argv), prog_name="usbpo", standalone_mode=True)
    except UsbpoError as error:
        print(f"usbpo {name}: {error}", file=sys.stderr)
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@cache
def _command(chosen: str, *also: Callable[..., None]) -> Any:
    """The verbs, ready to parse a command line; it takes milliseconds, so the warm worker does it once."""
    return typer.main.get_command(_application(chosen, *also))


def _application(chosen: str, *also: Callable[..., None]) -> typer.Typer:
    """The verbs; only the chosen stage is imported, the others are named for the help."""
    app = typer.Typer(
        name="usbpo",
        help="USB-PO and its relatives as stages that hand each other files. See README.md.",
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        add_completion=False,
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            print(__version__)
            raise typer.Exit

    @app.callback()
    def about(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
        ] = False,
    ) -> None:
        pass

    for stage in SECTIONS:
        if stage == chosen:
            app.command(stage, rich_help_panel=PANEL_STAGES)(_verb(stage))
        else:
            app.command(stage, rich_help_panel=PANEL_STAGES, help=_first_line(stage))(lambda: None)
    for verb in (status, inspect, verify, results, plan, submit, publish, gc, check_task, tensorboard, video, schema):
        app.command(verb.__name__.replace("_", "-"), rich_help_panel=PANEL_USER)(verb)
    for verb_above in also:
        app.command(verb_above.__name__, rich_help_panel=PANEL_USER)(verb_above)
    for name, verbs in (("export", exports), ("import", imports)):
        app.add_typer(verbs, name=name, rich_help_panel=PANEL_USER)
    return app


def _stage_function(stage: str) -> Callable[..., None]:
    function: Callable[..., None] = getattr(import_module(f"usbpo.stages.{stage}"), stage)
    return function


def _first_line(stage: str) -> str:
    """What a stage is, from its file's first line, without importing it."""
    path = Path(stages.__file__).parent / f"{stage}.py"
    text = path.read_text(encoding="utf-8").split("\n", 1)[0].strip('"').split(": ", 1)[1]
    return text[0].upper() + text[1:]


def _verb(stage: str) -> Callable[..., None]:
    """A stage as a command: every argument is an option, described by the configuration or by the docstring.

    A parameter that the configuration has a default for keeps it, so that a stage is easily run by hand; the rules
    always give all of them. One whose default follows from other keys must be given.
    """
    function = _stage_function(stage)
    signature = introspection.signature(function)
    keys = {name: field for section in reversed(SECTIONS[stage]) for name, field in section.model_fields.items()}
    described = _described_arguments(function)
    bounds = {name: _bounds(keys[name]) for name in signature.parameters if name in keys}

    def run(**arguments: Any) -> None:
        for name, value in arguments.items():
            if name in bounds and value is not None:
                _check(name, value, bounds[name])
            elif name in WHOLE_SECTIONS and isinstance(value, str):
                arguments[name] = _whole_section(name, value)
        for section in SECTIONS[stage]:
            if section.model_fields.keys() <= arguments.keys():
                _check_together(section, arguments)
        import torch

        torch.set_num_threads(1)
        started, cpu_started = time.perf_counter(), time.process_time()
        function(**arguments)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{stage}: took {wall:.2f} s, {cpu:.2f} s of CPU, at most {peak:.0f} MiB of memory")

    parameters = []
    for name, parameter in signature.parameters.items():
        text = keys[name].description if name in keys else described.get(name, "")
        from_zero = name in ("seed", "cycle", "on_policy_steps") or (stage, name) == ("policy", "model_every")
        lowest = {int: 0 if from_zero else 1}.get(parameter.annotation)
        option = typer.Option(f"--{name.replace('_', '-')}", help=text, min=lowest if name not in keys else None)
        default = parameter.default
        if name in keys and not keys[name].is_required():
            # Null, where the stage must have a value, is what the configuration works out from other keys.
            worked_out = keys[name].default is None and "None" not in str(parameter.annotation)
            default = parameter.default if worked_out else keys[name].default
        parameters.append(parameter.replace(annotation=Annotated[parameter.annotation, option], default=default))
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = (function.__doc__ or "").split("\n\n")[0]
    return run


def _bounds(field: Any) -> Any:
    """What tells whether a value is within the bounds of a configuration key."""
    return TypeAdapter(Annotated[field.annotation, field])


def _check(name: str, value: Any, bounds: Any) -> None:
    """Hold an option to the bounds of the configuration key of its name."""
    try:
        bounds.validate_python(value)
    except ValidationError as error:
        detail = error.errors()[0] | {"loc": (f"--{name.replace('_', '-')}", *error.errors()[0]["loc"])}
        raise UsbpoError(config.sentence(detail)) from error


def _check_together(section: type[config.Section], arguments: dict[str, Any]) -> None:
    """Hold options to what the configuration asks of several keys at once."""
    try:
        section.model_validate({name: arguments[name] for name in section.model_fields})
    except ValidationError as error:
        raise UsbpoError(config.sentence(error.errors()[0])) from error


def _whole_section(name: str, text: str) -> str:
    """A section of the configuration that is given as JSON, held to the bounds of its keys, with all defaults."""
    kind: Any = config.RunConfig.model_fields[name].annotation
    try:
        section = TypeAdapter(kind).validate_json(text)
        return json.dumps(section.model_dump(), sort_keys=True)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "json_invalid":
            raise UsbpoError(f"--{name} is no JSON; give the section as the configuration has it.") from error
        raise UsbpoError(config.sentence(detail | {"loc": (f"--{name}", *detail["loc"])})) from error


def _described_arguments(function: Callable[..., None]) -> dict[str, str]:
    """The entries of a docstring's `Args:`."""
    arguments = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", function.__doc__ or "", flags=re.DOTALL)
    entries = re.findall(r"^ +(\w+): (.*(?:\n {12,}.*)*)", arguments.group(1) if arguments else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _with_repeated_options(stage: str, argv: list[str]) -> list[str]:
    """Let file and list options take any number of values: `--data a.h5 b.h5`, and none where none is needed."""
    if stage not in SECTIONS:
        if stage != "results":
            return argv
        many, optional = {"--runs", "--returns"}, set[str]()
    else:
        kinds = {
            f"--{n.replace('_', '-')}": str(p.annotation)
            for n, p in introspection.signature(_stage_function(stage)).parameters.items()
        }
        many = {option for option, kind in kinds.items() if "list" in kind}
        optional = {option for option, kind in kinds.items() if "None" in kind}
    made: list[str] = []
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument not in many | optional:
            made.append(argument)
            continue
        values: list[str] = []
        while position < len(argv) and not argv[position].startswith("--") and (argument in many or not values):
            values.append(argv[position])
            position += 1
        made.extend(part for value in values for part in (argument, value))
    return made


def status(folder: Annotated[Path, typer.Argument(help="Folder that holds data/.")] = Path()) -> None:
    """Show how far every run on disk is, during a run or after it."""
    from usbpo.monitor.status import print_status

    print_status(folder)


def inspect(files: Annotated[list[Path], typer.Argument(help="Artifacts: .h5, .safetensors or .json.")]) -> None:
    """Tell what an artifact is: kind, shapes, ranges, versions, configuration, seed, cycle."""
    from usbpo.artifacts.inspection import print_artifact

    for path in files:
        print_artifact(path)


def verify(
    what: Annotated[
        str, typer.Argument(help="An artifact; TASK/METHOD/seed-N or a folder of runs; an experiment's file or name.")
    ],
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Tell whether artifacts are whole, belong where they lie, and were made from what lies beside them."""
    from usbpo.commands.verify import lines
    from usbpo.commands.verify import verify as look_at

    report = look_at(what, folder)
    for line in lines(report, what):
        print(line)
    if report.findings:
        raise typer.Exit(1)


def results(
    experiment: Annotated[str, typer.Option(help="Name of the experiment.")],
    runs: Annotated[list[str], typer.Option(help="Runs, TASK/METHOD/seed-N:cycles=N:cycle_steps=N…")],
    output: Annotated[Path, typer.Option(help="Folder for figures and tables.")],
    returns: Annotated[
        list[str] | None,
        typer.Option(help="Returns whose first reaching is timed, TASK=RETURN,RETURN…", show_default=False),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Draw the figures and tables of an experiment."""
    from usbpo.experiment.run_files import RunFiles, parse_returns
    from usbpo.report.results import results as make_results

    make_results(
        experiment=experiment,
        runs=[RunFiles.parse(run) for run in runs],
        output=output,
        returns=parse_returns(returns or []),
        root=folder,
    )


def plan(
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment file, or the name of one in config/experiments; or the default.")
    ] = None,
    cores: Annotated[int, typer.Option(help="Cores that Snakemake may use.", min=1)] = os.cpu_count() or 1,
    scale: Annotated[float | None, typer.Option(help="In place of the experiment's scale.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Say what an experiment will take before it runs: runs, jobs, disk, time, and what stands already."""
    from usbpo.experiment.plan import Plan
    from usbpo.monitor.estimate import print_plan

    changed = {} if scale is None else {"scale": scale}
    chosen = Plan.named(experiment, changed)
    chosen.check_initial_data(folder)
    print_plan(chosen, cores, folder)


def publish(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments, TASK/METHOD/seed-N, or folders of runs; without it the default experiment.",
            show_default=False,
        ),
    ] = None,
    push: Annotated[bool, typer.Option(help="Push to DVC's remote, too.")] = True,
    remote: Annotated[str | None, typer.Option(help="Name of DVC's remote; without it the default one.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Add what is finished to DVC and push it; only `git commit` is left to do."""
    from usbpo.commands.publish import publish as add_and_push

    try:
        add_and_push(what or [], folder, push=push, remote=remote)
    except KeyboardInterrupt:
        print("usbpo publish: interrupted; git was handed nothing, so type the same command again.", file=sys.stderr)
        raise SystemExit(130) from None


def gc(
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment file, or the name of one in config/experiments; or the default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Delete what an experiment's runs need no more: models, policies and rollouts not kept, and broken-off files."""
    from usbpo.commands.gc import collect_leftovers
    from usbpo.experiment.plan import experiment_file

    collect_leftovers(experiment_file(experiment), config.FOLDERS, dry_run, folder)


def submit(
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment file, or the name of one in config/experiments; or the default.")
    ] = None,
    runs_per_job: Annotated[int, typer.Option(help="Runs, of one task and method, in a job.", min=1)] = 1,
    cores: Annotated[
        int | None, typer.Option(help="Cores of a job; as many as it has runs without it.", min=1, show_default=False)
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of a job; one for `device: cuda` without it.", min=0, show_default=False)
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition; its default without it.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Time limit of a job as Slurm writes it; twice the estimate without it.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="In place of the experiment's scale.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Finished runs too: their keys or code changed.")] = False,
    results: Annotated[bool, typer.Option(help="Whether a last job draws the results.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch scripts and submit nothing.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Run an experiment on a Slurm cluster: a job for each run, or for some; type it again for what is not finished."""
    from usbpo.commands.submit import Request, Workspace
    from usbpo.commands.submit import submit as submit_jobs
    from usbpo.experiment.plan import Plan, experiment_file

    changed = {} if scale is None else {"scale": scale}
    request = Request(runs_per_job, cores, gpus, partition, time, everything, results)
    workspace = Workspace(folder, experiment_file(experiment), scale)
    chosen = Plan.named(experiment, changed)
    chosen.check_initial_data(folder)
    submit_jobs(chosen, workspace, request, dry_run)


def check_task(
    file: Annotated[str, typer.Argument(help="Task file, or the name of one in config/tasks.")],
) -> None:
    """Test a task before hours are spent on it: its keys, spaces, numbers, termination and exact restore."""
    from usbpo.commands.check_task import print_checks

    if not print_checks(file):
        raise typer.Exit(1)


def tensorboard(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="TASK/METHOD/seed-N, a folder of runs, or data/results/EXPERIMENT; without it every run.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="TensorBoard's log folder; each run has a folder below it.")] = Path(
        "data/tensorboard"
    ),
    cycles: Annotated[int | None, typer.Option(help="Last cycle to read; all without it.", min=0)] = None,
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Write what runs have on disk as TensorBoard event files."""
    from usbpo.experiment.named import named_runs
    from usbpo.formats.tensorboard import write_runs

    write_runs(named_runs(runs or [], folder), output, cycles)


def video(
    run: Annotated[str, typer.Argument(help="TASK/METHOD/seed-N, or the folder of a run.")],
    cycle: Annotated[int | None, typer.Option(help="Cycle of the policy; the last without it.", min=0)] = None,
    output: Annotated[
        Path | None, typer.Option(help=".gif or .mp4; data/videos/TASK/METHOD/seed-N/CYCLE.gif without it.")
    ] = None,
    episode_seed: Annotated[
        int | None, typer.Option(help="Seed of the episode; without it that of the run's first evaluation.", min=0)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Longest video, in seconds of simulated time.", min=0.1)] = 10.0,
    environment: Annotated[
        str | None, typer.Option(help="Gymnasium id; without it the one that the run collected in.")
    ] = None,
    environment_arguments: Annotated[
        str | None,
        typer.Option(help="Its keyword arguments, as JSON; without it the run's, or none with --environment."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder that holds data/.")] = Path(),
) -> None:
    """Film one episode of a run's deterministic policy."""
    from usbpo.experiment.named import named_run
    from usbpo.formats.video import video as film

    film(
        named_run(run, folder),
        cycle=cycle,
        output=output,
        episode_seed=episode_seed,
        seconds=seconds,
        environment=environment,
        environment_arguments=environment_arguments,
    )


def schema(folder: Annotated[Path, typer.Argument(help="Folder to write into.")] = Path("workflow/schemas")) -> None:
    """Write the JSON schemas and the table of keys from the models in usbpo/experiment/config.py."""
    from usbpo.artifacts.files import write_text

    for name in config.SCHEMAS:
        write_text(folder / f"{name}.schema.json", config.json_schema(name))
    write_text(folder / "keys.md", config.keys_table())
