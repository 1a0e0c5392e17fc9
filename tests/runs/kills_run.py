"""Runs of a script that are killed at a chosen change of a file, or find the disk full, and are then started again.

    python kills_run.py JOB.json

PyTorch and the libraries are imported once, by a run with --check; every other run is a fork. The library of kills.c is preloaded: its `arm` makes it
count the changes in the output folder of a fork. `JOB.json` holds an object:

    script      run_qa or run_seq2seq_qa
    flags       of the script, without --output_dir
    ranks       number of processes of a run
    folder      to work in
    kills       what happens and how often, or at which changes, or "all" for each of them:
                {"before": 10, "half": [3, 17], "full": "all"}
                before: a kill at a change of a file; half: within a write; full: no room from a change on;
                any: a kill of all ranks at any time

`result.json` in the folder then holds the changes of an undisturbed run, the numbers of kills, and what was wrong.
"""

import ctypes
import gc
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from accelerate.state import AcceleratorState  # noqa: E402

import run_qa  # noqa: E402  before anything that imports PyTorch
import run_seq2seq_qa  # noqa: E402
from qa.checkpoint_files import damage  # noqa: E402
from qa.errors import run_or_exit  # noqa: E402
from qa.saving import UNFINISHED, checkpoints_of  # noqa: E402
from qa.upstream import skip_unused_libraries  # noqa: E402


SCRIPTS = {"run_qa": run_qa, "run_seq2seq_qa": run_seq2seq_qa}
HOW = {"count": 0, "before": 1, "half": 2, "full": 3}  # as in kills.c
OF_A_RUN = re.compile(r"epoch|.*(runtime|_time|per_second)")  # what differs from run to run, and no score
GIVE_UP_SECONDS = 300


class Runs:
    """Runs of one command, each in a fork for each rank."""

    def __init__(self, job: dict):
        self.job, self.folder = job, Path(job["folder"])

    def start(self, output: Path, how: str | None = None, at: int = 0, armed: int | None = None) -> list[int]:
        """Start the ranks of a run, of which one is armed, or all if `armed` is None."""
        ranks, processes = self.job["ranks"], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(ranks):
            process = os.fork()
            if process == 0:
                self.be_rank(rank, port, output, how if armed in (None, rank) else None, at)
            processes.append(process)
        return processes

    def be_rank(self, rank: int, port: int, output: Path, how: str | None, at: int) -> None:
        """Run the script and end this process."""
        log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if self.job["ranks"] > 1:
            size = self.job["ranks"]
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in places.items()})
        if how in HOW:
            trace = os.open(f"{output}.trace_{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
            ctypes.CDLL(None).arm(str(output).encode(), ctypes.c_long(at), HOW[how], trace)
        status = 1
        try:
            run_or_exit(lambda: SCRIPTS[self.job["script"]].main([*self.job["flags"], "--output_dir", str(output)]))
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def wait(self, processes: list[int], seconds: float = GIVE_UP_SECONDS) -> list[int]:
        """Return the exit statuses. When a rank fails, and after these seconds, all are killed, as the launcher does."""
        waiting, statuses, end = set(processes), {}, time.time() + seconds
        while waiting:
            for process in list(waiting):
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    waiting.discard(process)
                    statuses[process] = os.waitstatus_to_exitcode(status)
            if any(statuses.values()) or time.time() > end:
                for other in waiting:
                    os.kill(other, signal.SIGKILL)
            time.sleep(0.01)
        return [statuses[process] for process in processes]

    def undisturbed(self) -> tuple[dict, list[list[str]], float]:
        """Return the results of a whole run, each rank's changes of files, and the seconds that it took."""
        output = self.folder / "undisturbed"
        start = time.time()
        statuses = self.wait(self.start(output, "count"))
        assert not any(statuses), Path(f"{output}.log").read_text()[-6000:]
        traces = [Path(f"{output}.trace_{rank}").read_text().splitlines() for rank in range(self.job["ranks"])]
        self.first = change_of_first_checkpoint(traces[0])
        return results_of(output), traces, time.time() - start

    def disturbed(self, how: str, armed: int, at: float, expected: dict) -> list[str] | None:
        """Disturb a run, start it again, and return what is wrong; None if it ended before its kill or its full disk.

        Ranks race for a folder that both make: the second one has a change less than it may have had undisturbed.
        """
        output = self.folder / f"{how}_{armed}_{at}"
        statuses = self.wait(self.start(output, how, int(at), armed), at if how == "any" else GIVE_UP_SECONDS)
        if not any(statuses) and (how == "any" or changes_of(output, armed, how) < at):
            return None
        log, problems = Path(f"{output}.log").read_text(), []
        if how == "full" and (statuses[armed] != 1 or not re.search("^error: the disk is full", log, re.M)):
            problems.append(f"a full disk: status {statuses}")
        if how in ("before", "half") and statuses[armed] != -signal.SIGKILL:
            problems.append(f"it was not killed: status {statuses}")
        problems += [f"{path.name} is not whole: {why}" for path, why in damages(output)]
        last = max(checkpoints_of(output), default=None) if output.is_dir() else None
        if last is None and how == "before" and armed == 0 and at > self.first:
            problems.append("no checkpoint is left")
        users = output / "checkpoint-precious"
        begun = (output / UNFINISHED).exists()
        if begun:
            users.mkdir()
        statuses = self.wait(self.start(output))
        if any(statuses):
            problems.append(f"the same command again: status {statuses}")
        else:
            found = results_of(output)
            problems += [f"other {name}" for name in expected if found.get(name) != expected[name]]
            problems += ["a folder of the user's is gone"] if begun and not users.exists() else []
            again = Path(f"{output}.log").read_text()[len(log) :]
            if last is not None and not re.search(rf"/checkpoint-{last};|holds the finished training", again):
                problems.append(f"it did not go on from checkpoint-{last}")
        if problems:
            return [*problems, Path(f"{output}.log").read_text()[-2000:]]
        shutil.rmtree(output)
        for path in output.parent.glob(f"{output.name}.*"):  # the log, the trace
            path.unlink()
        return []


def change_of_first_checkpoint(trace: list[str]) -> int:
    """Return the number of the change that names the first checkpoint."""
    changes = [line for line in trace if line.split()[0] not in ("fsync", "from")]
    return 1 + next(
        at for at, line in enumerate(changes) if re.fullmatch(r"rename .*/undisturbed/checkpoint-\d+", line)
    )


def damages(output: Path) -> list[tuple[Path, str]]:
    """Return the checkpoints that are not whole, with the reason."""
    plain = SimpleNamespace(deepspeed=None, fsdp=None, load_best_model_at_end=False)
    found = [(path, damage(path, plain)) for path in checkpoints_of(output).values()] if output.is_dir() else []
    return [(path, why) for path, why in found if why]


def results_of(output: Path) -> dict:
    """Return the weights, scores and answers of a run, and the names of its files."""
    files = [output / "model.safetensors", *sorted(output.glob("*_predictions.json"))]
    results = {file.name: file.read_bytes().hex() for file in files}
    scores = json.loads((output / "eval_results.json").read_text())
    results["scores"] = {name: value for name, value in scores.items() if not OF_A_RUN.fullmatch(name)}
    state = json.loads((output / "trainer_state.json").read_text())
    results["state"] = [state["global_step"], state["best_metric"], Path(state["best_model_checkpoint"] or "").name]
    results["files"] = sorted(path.name for path in output.iterdir() if path.name != "checkpoint-precious")
    return results


def changes_of(output: Path, rank: int, how: str) -> int:
    """Return how many changes of a kind a rank of a disturbed run has made."""
    return count(Path(f"{output}.trace_{rank}").read_text().splitlines(), how)


def places(changes: int, often: int | str | list[int]) -> list[int]:
    """Return which of the changes are disturbed: those of a list, or N, spread evenly."""
    if isinstance(often, list):
        return [at for at in often if at <= changes]
    if often == "all" or often >= changes:
        return list(range(1, changes + 1))
    return [round(1 + (changes - 1) * number / max(1, often - 1)) for number in range(often)]


def count(trace: list[str], how: str) -> int:
    """Return how many changes of a trace kills.c counts."""
    kinds = Counter(line.split()[0] for line in trace)
    if how == "half":
        return kinds["write"]
    if how == "full":
        return kinds["write"] + kinds["open"] + kinds["mkdir"]
    return kinds.total() - kinds["fsync"] - kinds["from"]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    skip_unused_libraries()  # as a script does; each fork would import DeepSpeed
    SCRIPTS[job["script"]].main([*job["flags"], "--check", "--output_dir", str(Path(job["folder"]) / "unused")])
    AcceleratorState._reset_state(reset_partial_state=True)  # a rank of several makes its own
    gc.collect()
    gc.freeze()
    runs = Runs(job)
    expected, traces, seconds = runs.undisturbed()
    problems, done, draw = {}, Counter(), random.Random(0)

    def disturb(how: str, armed: int, at: float) -> None:
        found = runs.disturbed(how, armed, at, expected)
        done[how] += found is not None
        if found:
            problems[f"{how} {armed} {at}"] = found
            print(how, armed, at, *found, sep="\n", flush=True)

    for how, often in job["kills"].items():
        while how == "any" and done[how] < often:
            disturb(how, 0, round(draw.uniform(0, seconds), 3))
        for rank, trace in enumerate(traces) if how != "any" else ():
            for at in places(count(trace, how), often):
                disturb(how, rank, at)
    result = {"trace": traces[0], "kept": expected["state"], "done": done, "problems": problems}
    (runs.folder / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
