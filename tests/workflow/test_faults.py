"""Faults of single stages: what was there stays, nothing is half-written, and the next run gives the same bytes.

How many for all stages together is USBPO_FAULTS. docs/reliability.md quotes what this prints with `-s`.
"""

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.stage_commands import STAGES, command_of
from helpers.workflow import copied, environment, finished_workspace

FAULTS = int(os.environ.get("USBPO_FAULTS", "180"))

CHILD = """
import contextlib, hashlib, io, json, os, random, resource, shutil, signal, sys, time
from pathlib import Path
import torch
from usbpo.commands import cli
from usbpo.stages import STAGES
import usbpo.worker.warm
usbpo.worker.warm.prepare()
torch.set_num_threads(1)

words, options, first, count = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
out = Path("out")


def digests():
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def forked(fault, seconds=None):
    # The stage in a fork, with a fault; how it ended and what it said.
    reading, writing = os.pipe()
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 1), os.dup2(writing, 2)
        os.close(reading), os.close(writing)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fault()
        code = 70
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            import traceback
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, 90 if seconds is None else seconds)
    with open(reading, errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status), said, time.monotonic() - begin


def fresh():
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()


def files_below(option):
    start = words.index(option) + 1
    end = next((n for n in range(start, len(words)) if words[n].startswith("--")), len(words))
    return [Path(word) for word in words[start:end]]


fresh()
code, said, usual = forked(lambda: None)
assert code == 0, said
whole = digests()
largest = max(path.stat().st_size for path in out.rglob("*") if path.is_file())
outputs = sorted(Path(name) for name in whole)
inputs = sorted({path for option in options for path in files_below(option)})

KINDS = ["no space", "no space, another file there", "killed", "killed, another file there", "few open files",
         "a folder in its place", "input cut", "input flipped", "input of zeros", "input missing", "input a folder",
         "input a link to nothing", "input backwards"]


def damage(kind, path, rng):
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "input cut":
            path.write_bytes(content[: rng.randrange(len(content))])
        case "input flipped":
            place = rng.randrange(len(content))
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        case "input of zeros":
            place = rng.randrange(len(content))
            zeros = bytes(min(512, len(content) - place))
            other = content[:place] + zeros + content[place + len(zeros) :]
            path.write_bytes(other if other != content else content[1:])
        case "input a folder":
            path.mkdir()
        case "input a link to nothing":
            path.symlink_to("nowhere")
        case "input backwards":
            path.write_bytes(content[::-1])
    return content


def restore(path, content):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(content)


for number in range(first, first + count):
    rng = random.Random(number)
    kind = rng.choice(KINDS)
    fresh()
    before, fault, seconds, touched = {}, lambda: None, None, None
    if "another file there" in kind:
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"what was there before")
        before = digests()
    if kind.startswith("no space"):
        limit = rng.randrange(largest)
        fault = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    elif kind.startswith("killed"):
        seconds = rng.uniform(0.001, usual * 1.05)
    elif kind == "few open files":
        limit = len(os.listdir("/proc/self/fd")) + rng.randrange(-2, 3)
        fault = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    elif kind == "a folder in its place":
        place = rng.choice(outputs)
        place.mkdir(parents=True)
    elif inputs:
        touched = rng.choice(inputs)
        content = damage(kind, touched, rng)
    code, said, took = forked(fault, seconds)
    after = digests()
    wrong = []
    died = kind.startswith("killed")
    if code == 0:
        if after != whole:
            wrong.append("SILENTLY DIFFERENT")
        outcome = "did not matter"
    elif died and code == -9:
        outcome = "killed"
    elif code in (1, 2):
        outcome = "a sentence"
        lines = [line for line in said.splitlines() if line.strip()]
        if "Traceback" in said or len(lines) != 1 or not lines[0].startswith("usbpo ") or not lines[0].endswith("."):
            wrong.append(f"NO SENTENCE {said[-700:]!r}")
    else:
        outcome = f"code {code}"
        wrong.append(f"CRASH OR HANG, code {code} after {took:.1f} s {said[-700:]!r}")
    for name, digest in after.items():
        if name.endswith(".partial"):
            if not died:
                wrong.append(f"LEFT {name}")
        elif digest not in (whole.get(name), before.get(name)):
            wrong.append(f"HALF-WRITTEN {name}")
    if lost := set(before) - set(after):
        wrong.append(f"LOST {sorted(lost)}")
    if touched is not None:
        restore(touched, content)
    if kind == "a folder in its place":
        place.rmdir()
    code, said, _ = forked(lambda: None)
    if code or digests() != whole:
        wrong.append(f"THE NEXT RUN IS ANOTHER, code {code} {said[-300:]!r}")
    print(json.dumps({"number": number, "kind": kind, "outcome": outcome, "wrong": wrong}), flush=True)
"""

INPUTS = {
    "block": ("--parts",),
    "initialise": ("--data",),
    "collect": ("--policy", "--previous"),
    "triggered": ("--data", "--previous-policy", "--previous-model", "--rollouts"),
    "phase1": ("--data", "--previous-model"),
    "phase2": ("--data", "--rollouts", "--previous-model", "--model-mle"),
    "rollout": ("--data", "--model", "--policy"),
    "policy": ("--data", "--rollouts", "--previous-policy"),
    "evaluate": ("--policy",),
    "theory": ("--data", "--rollouts", "--previous-model", "--model-mle", "--model", "--policy"),
}
BY_HAND = [stage for stage in STAGES if stage != "triggered"]
"""Those whose inputs the finished test experiment has"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", BY_HAND)
def test_a_fault_of_a_stage_costs_nothing(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, stage: str) -> None:
    workspace = copied(finished_workspace(tmp_path_factory), tmp_path / "workspace")
    count = -(-FAULTS // len(BY_HAND))
    given = [json.dumps(command_of(stage)), json.dumps(INPUTS[stage]), str(BY_HAND.index(stage) * 100_000), str(count)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *given], cwd=workspace, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tried) == count
    assert not [one for one in tried if one["wrong"]]
    kinds = collections.Counter(f"{one['kind']}: {one['outcome']}" for one in tried)
    print(f"\n{stage}, {count} faults:", *(f"  {number:4} {kind}" for kind, number in sorted(kinds.items())), sep="\n")
    shutil.rmtree(workspace)
