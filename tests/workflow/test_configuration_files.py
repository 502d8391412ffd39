"""The files that Snakemake is given, and those that they name: never code, never unnoticed, each fault a sentence."""

import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from helpers.workflow import EXPERIMENT, Job, planned, snakemake, tree

from usbpo.experiment.yaml_files import MOST

TEST = EXPERIMENT.read_text(encoding="utf-8")
MARK = "this-file-is-made-by-code"
CODE = f"__use_yte__: true\nsteps: ?__import__('pathlib').Path('{MARK}').touch() or 30\n"
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
REFUSED = {
    "code": (
        TEST.replace("steps:", "# steps:") + CODE,
        "the key '__use_yte__' would have Python in this file evaluated",
    ),
    "aliases without end": (TEST + ALIASES, f"with what its aliases repeat it has more than {MOST:,} values; mend"),
    "broken": ("experiment: [\n", "this is not valid YAML: "),
    "control characters": (TEST + '\nnote: "\\e[2J"\n', "the text holds the control character U+001B; mend the line."),
    "twice": (TEST + "\nseeds: [1]\n", "the key 'seeds' stands twice; mend the line."),
}


def given(folder: Path, content: str) -> Path | None:
    """As the file of --configfile."""
    (folder / "experiment.yaml").write_text(content)
    return folder / "experiment.yaml"


def of_the_folder(folder: Path, content: str) -> Path | None:
    """As the default experiment of a folder."""
    (folder / "config").mkdir()
    (folder / "config/config.yaml").write_text(content)
    return None


@pytest.mark.parametrize(
    ("case", "laid"), [*((case, given) for case in REFUSED), ("code", of_the_folder), ("broken", of_the_folder)]
)
def test_snakemake_refuses_an_odd_file_in_one_sentence_and_runs_no_code_of_it(
    tmp_path: Path, case: str, laid: Callable[[Path, str], Path | None]
) -> None:
    content, said = REFUSED[case]
    ended = snakemake(tmp_path, "--dry-run", experiment=laid(tmp_path, content))
    assert ended.code == 1
    profile, sentence = ended.said.splitlines()
    assert profile.startswith("Using workflow specific profile")
    assert sentence.startswith("usbpo: ")
    assert said in sentence
    assert not (tmp_path / MARK).exists()


def test_what_an_odd_file_would_do_is_done_where_nothing_prevents_it(tmp_path: Path) -> None:
    """The test above would not notice if the code in it could not run."""
    yte = pytest.importorskip("yte")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        yte.process_yaml(REFUSED["code"][0], require_use_yte=True)
    assert (tmp_path / MARK).exists()


def test_a_changed_file_that_the_environment_reads_makes_its_data_anew(tmp_path: Path) -> None:
    model = tmp_path / "my.xml"
    shutil.copy(str(files("gymnasium") / "envs/mujoco/assets/hopper.xml"), model)
    sound = model.read_text()
    (tmp_path / "config/tasks").mkdir(parents=True)
    task = {
        "base": "test-pendulum",
        "environment": {
            "id": "Hopper-v5",
            "arguments": {"xml_file": "./my.xml", "healthy_z_range": [0.3, 2.0]},
            "termination": "never",
        },
    }
    (tmp_path / "config/tasks/Mine.yaml").write_text(yaml.safe_dump(task))
    experiment = tmp_path / "mine.yaml"
    keys = {"experiment": "mine", "tasks": ["Mine"], "methods": ["test-mbpo"], "seeds": [0], "steps": 30}
    experiment.write_text(yaml.safe_dump(keys))
    shard = "data/runs/Mine/test-mbpo/seed-0/data/00000.h5"
    made = snakemake(tmp_path, shard, experiment=experiment)
    assert made.code == 0, made.said
    before = tree(tmp_path)
    assert planned(tmp_path, shard, experiment=experiment) == set()

    model.write_text(sound.replace("<option", '<option gravity="0 0 -1.62"'))
    assert model.read_text() != sound
    assert planned(tmp_path, shard, experiment=experiment) == {Job("collect", "Mine/test-mbpo/seed-0", 0)}
    assert snakemake(tmp_path, shard, experiment=experiment).code == 0
    assert tree(tmp_path)[shard] != before[shard], "it is another physics"
    model.write_text(sound)
    assert snakemake(tmp_path, shard, experiment=experiment).code == 0
    assert tree(tmp_path) == before

    model.rename(tmp_path / "other.xml")
    ended = snakemake(tmp_path, shard, experiment=experiment)
    assert ended.code == 1
    assert ended.said.splitlines()[-1] == (
        "usbpo: environment.arguments of Mine with test-mbpo: xml_file names ./my.xml, but there is no such file; put "
        "it there, or mend the name."
    )
    assert tree(tmp_path) == before
