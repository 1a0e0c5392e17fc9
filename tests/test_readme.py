"""Every command of README.md that runs a script, byte for byte, in a folder where its names are small stand-ins."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import data_qa


def readme_commands() -> list[str]:
    """The shell blocks of README.md that run a script."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [block for block in blocks if "python run_" in block]


def make_dataset(folder: Path, files: dict[str, Path]) -> None:
    """A dataset folder: the first 24 questions of each file, by split, as `load_dataset` gives the hub's."""
    folder.mkdir()
    for split, path in files.items():
        rows = data_qa.flatten_squad(json.loads(path.read_text())["data"])[:24]
        shaped = data_qa.checked_rows(rows, split, data_qa.DataArguments(version_2_with_negative=True), True)
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, shaped)))


@pytest.fixture(scope="module")
def stand_ins(tiny_model, tiny_writers, squad_files, negatives, tmp_path_factory):
    """A folder where the README's names are small stand-ins: model and dataset folders, a file of arguments."""
    folder = tmp_path_factory.mktemp("readme")
    for path in [*ROOT.glob("*.py")]:
        (folder / path.name).symlink_to(path)
    shutil.copytree(tiny_model, folder / "bert-large-uncased-whole-word-masking")
    shutil.copytree(tiny_writers["t5"], folder / "t5-small")
    make_dataset(folder / "squad", {"train": squad_files / "train.json", "validation": squad_files / "dev.json"})
    make_dataset(folder / "squad_v2", {"train": negatives, "validation": negatives})
    settings = {
        "model_name_or_path": "bert-large-uncased-whole-word-masking",
        "dataset_name": "squad",
        "do_train": True,
    }
    (folder / "my_run.yaml").write_text(json.dumps(settings | {"max_steps": 1, "output_dir": "my_run"}))
    return folder


@pytest.mark.parametrize("number", range(len(readme_commands())))
def test_the_readmes_commands_run(stand_ins, number):
    """In a shell, with this Python first on the path."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = readme_commands()[number]
    done = subprocess.run(["bash", "-c", command], cwd=stand_ins, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if "--do_eval" in command:
        assert "eval_f1" in done.stdout
