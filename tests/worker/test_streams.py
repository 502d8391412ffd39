"""What the commands say on streams that are full, closed by their reader, or of a terminal that knows ASCII alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.worker import Room

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")

EVERY_VERB = """
import json, os, sys
from usbpo.commands import cli
from usbpo.worker import client

def verbs(command, words):
    for name, below in command.commands.items():
        if hasattr(below, "commands"):
            yield from verbs(below, [*words, name])
        else:
            yield [*words, name]

cli.warm_up()  # every stage's imports once for all
told = {}
for words in [[], *verbs(cli._command("", client._worker_verb()), [])]:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stdout, sys.stderr = (open(n, "w", encoding=sys.argv[1], closefd=False) for n in (1, 2))
        status = client._direct([*words, "--help"])
        sys.stdout.flush(), sys.stderr.flush()  # as Python does at its end, which takes long with all these imports
        os._exit(status)
    told[" ".join(words)] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(told))
"""
"""Has every verb of the command line print its help on such streams, each in a process of its own."""


def every_verb(encoding: str, output: Path, errors: Path) -> dict[str, int]:
    """The exit status of each verb."""
    words = [sys.executable, "-c", EVERY_VERB, encoding, str(output), str(errors)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    told = dict(json.loads(done.stdout))
    assert {"", "status", "phase1", "export policy", "worker"} <= set(told)
    return told


@needs_full
def test_on_a_full_disk_every_verb_says_so_in_a_sentence(tmp_path: Path) -> None:
    told = every_verb("utf-8", FULL, tmp_path / "errors")
    assert set(told.values()) == {1}
    lines = (tmp_path / "errors").read_text().splitlines()
    assert len(lines) == len(told)
    sentence = ": standard output cannot be written (No space left on device); send it to where there is room."
    assert all(line.endswith(sentence) for line in lines)


@needs_full
def test_without_room_for_errors_either_the_status_tells(tmp_path: Path) -> None:
    assert set(every_verb("utf-8", FULL, FULL).values()) == {1}


def test_on_an_ascii_terminal_every_verb_replaces_letters(tmp_path: Path) -> None:
    told = every_verb("ascii", tmp_path / "output", tmp_path / "errors")
    assert set(told.values()) == {0}
    assert (tmp_path / "errors").read_text() == ""
    assert (tmp_path / "output").read_text(encoding="ascii").count("--help") >= len(told)


def test_a_reader_that_has_enough_is_no_error_to_speak_of() -> None:
    code = "import sys; from usbpo.worker import client; sys.argv[1:] = ['--help']; sys.exit(client.main())"
    ours, theirs = os.pipe()
    os.close(ours)
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        assert process.communicate()[1] == ""
    assert process.returncode == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("verb", ["status", "inspect FILE"])
def test_closed_streams_change_nothing_but_what_is_said(tmp_path: Path, verb: str, closed: str) -> None:
    (tmp_path / "FILE").write_text("no artifact")
    code = "import sys; from usbpo.worker import client; sys.exit(client.main())"
    command = f'{sys.executable} -c "{code}" {verb}'
    plain, without = (
        subprocess.run(["sh", "-c", f"{command} {streams}"], cwd=tmp_path, capture_output=True, text=True)
        for streams in ("", closed)
    )
    assert without.returncode == plain.returncode
    assert without.stdout == ("" if ">&-" in closed.split() else plain.stdout)
    assert without.stderr == ("" if "2>" in closed else plain.stderr)


@needs_full
@pytest.mark.parametrize("end", ["", "raise ValueError('odd')", "sys.exit('a reason')"])
def test_a_stage_of_the_worker_says_that_its_output_cannot_be_written(served: Room, end: str) -> None:
    code = f"import sys; print('α'); {end}"
    process = served.spawn("sh", "-c", f'exec {sys.executable} client.py phase1 "$0" > {FULL}', code)
    err = process.communicate()[1]
    assert process.returncode == 1
    assert "usbpo phase1: standard output cannot be written (No space left on device)" in err
    assert ("Traceback" in err) == ("ValueError" in end)


def test_what_a_stage_has_said_before_it_fails_is_not_lost(served: Room) -> None:
    assert served.run("phase1", "print('so far'); raise ValueError('odd')")[1] == "so far\n"
    assert served.run("phase1", "import sys; print('so far'); sys.exit('a reason')")[1] == "so far\n"
