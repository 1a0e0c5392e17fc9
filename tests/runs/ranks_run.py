"""Run the scripts several times in one process of a rank, since importing them takes longer than the runs.

    python gaudi_spawn.py --world_size 2 tests/runs/ranks_run.py JOBS_JSON

`JOBS_JSON` is {name: [script, argument, ...]}. The first run that fails ends the process, as it would end the script.
Next to it, `written_by_{rank}.json` holds {name: {file: how often this rank opened it for writing}}.
"""

import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path


os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

OPENED = Counter()


def note_opened(event: str, arguments: tuple) -> None:
    """Count the files that Python opens for writing, by their last names (not what the libraries' C++ and Rust write)."""
    if event == "open" and isinstance(arguments[1], str) and not arguments[1].startswith("r"):
        OPENED[str(arguments[0])] += 1
    elif event == "os.rename":
        source, target = map(str, arguments[:2])
        OPENED[target] += OPENED.pop(source, 0)


def run(script: str, argv: list[str]) -> dict[str, int]:
    """Run a script once, in its own environment: training arguments leave settings for accelerate in it."""
    before = os.environ.copy()
    OPENED.clear()
    importlib.import_module(script).main(argv)
    os.environ.clear()
    os.environ.update(before)
    return dict(OPENED)


def main() -> None:
    jobs = Path(sys.argv[1])
    written = {name: run(script, argv) for name, (script, *argv) in json.loads(jobs.read_text()).items()}
    (jobs.parent / f"written_by_{os.environ['RANK']}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    from qa.errors import run_or_exit
    from qa.script import begin_script

    begin_script()
    sys.addaudithook(note_opened)
    run_or_exit(main)
