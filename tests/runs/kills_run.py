"""Runs of a script that are killed at a chosen change of a file, or find the disk full, and are then started again.

    python kills_run.py JOB.json

PyTorch and the libraries are imported once; every run is a fork. Where the library of kills.c is preloaded, `arm` makes it
count the changes in the output folder of a fork. `JOB.json` holds an object:

    script      run_qa or run_seq2seq_qa
    flags       of the script, without --output_dir
    ranks       number of processes of a run
    folder      to work in
    kills       pairs of what happens and how often, or "all": [["before", 10], ["half", "all"], ["full", 5], ["any", 25]]
                before: a kill at a change of a file; half: within a write; full: no room from a change on;
                any: a kill at any time

The result is `result.json` in the folder: the changes of an undisturbed run, and for each kill its problems.
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
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import run_qa  # noqa: E402
import run_seq2seq_qa  # noqa: E402
from qa.errors import run_or_exit  # noqa: E402


SCRIPTS = {"run_qa": run_qa, "run_seq2seq_qa": run_seq2seq_qa}
HOW = {"count": 0, "before": 1, "half": 2, "full": 3}  # as in kills.c
OF_A_RUN = re.compile(r".*(runtime|per_second|_time|memory.*|speed.*)")  # metrics that differ from run to run
GIVE_UP_SECONDS = 300


class Runs:
    """Runs of one command, each in a fork."""

    def __init__(self, job: dict):
        self.job, self.folder = job, Path(job["folder"])
        self.seconds = 0.0

    def start(self, output: Path, how: str | None = None, at: int = 0) -> list[int]:
        """Start the ranks of a run; the last one is armed."""
        ranks, processes = self.job["ranks"], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(ranks):
            process = os.fork()
            if process == 0:
                self.be_rank(rank, ranks, port, output, how if rank == at % ranks else None, at)
            processes.append(process)
        return processes

    def be_rank(self, rank: int, ranks: int, port: int, output: Path, how: str | None, at: int) -> None:
        log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if ranks > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in places.items()})
        if how in HOW:
            trace = os.open(f"{output}.trace", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) if how == "count" else -1
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

    def wait(self, processes: list[int], give_up: float = GIVE_UP_SECONDS) -> list[int]:
        """Return the exit statuses; -9 of all ranks that are alive after one was killed, as the launcher ends them."""
        waiting, statuses, end = set(processes), {}, time.time() + give_up
        while waiting:
            for process in list(waiting):
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    waiting.discard(process)
                    statuses[process] = os.waitstatus_to_exitcode(status)
                    if statuses[process] != 0 or time.time() > end:
                        for other in waiting:
                            os.kill(other, signal.SIGKILL)
            if time.time() > end:
                for other in waiting:
                    os.kill(other, signal.SIGKILL)
            time.sleep(0.01)
        return [statuses[process] for process in processes]

    def run(self, output: Path, how: str | None = None, at: int = 0) -> list[int]:
        return self.wait(self.start(output, how, at))

    def undisturbed(self) -> tuple[dict, list[str]]:
        """Return results of the first run, and its changes of files."""
        output = self.folder / "undisturbed"
        start = time.time()
        statuses = self.run(output, "count")
        assert not any(statuses), Path(f"{output}.log").read_text()[-6000:]
        self.seconds = time.time() - start
        return results_of(output), Path(f"{output}.trace").read_text().splitlines()

    def disturbed(self, how: str, at: int, expected: dict) -> list[str]:
        """Disturb a run, start it again, and return what is wrong."""
        output, problems = self.folder / f"{how}_{at}", []
        log = Path(f"{output}.log")
        processes = self.start(output, how, at)
        if how == "any":
            time.sleep(random.Random(at).uniform(0, self.seconds))
            for process in processes:
                os.kill(process, signal.SIGKILL)
        statuses = self.wait(processes)
        if how == "full" and (1 not in statuses or not re.search("^error: the disk is full", log.read_text(), re.M)):
            problems.append(f"a full disk: status {statuses}")
        if how in ("before", "half") and -signal.SIGKILL not in statuses:
            problems.append(f"it was not killed: status {statuses}")
        user_folder = output.is_dir() and any(output.iterdir())
        if user_folder:
            (output / "checkpoint-precious").mkdir()
        statuses = self.run(output)
        if any(statuses):
            problems.append(f"the same command again: status {statuses}")
        else:
            found = results_of(output)
            problems += [f"other {name}" for name in expected if found[name] != expected[name]]
            if (output / "checkpoint-precious").is_dir() != user_folder:
                problems.append("a folder of the user's is gone")
        if problems:
            problems.append(log.read_text()[-2000:])
        else:
            shutil.rmtree(output)
            log.unlink()
        return problems


def results_of(output: Path) -> dict:
    """Return the weights, scores and answers of a run, and the names of its files."""
    results = {name: (output / name).read_bytes().hex() for name in ("model.safetensors", "eval_predictions.json")}
    scores = json.loads((output / "eval_results.json").read_text())
    results["scores"] = {name: value for name, value in scores.items() if not OF_A_RUN.fullmatch(name)}
    state = json.loads((output / "trainer_state.json").read_text())
    results["state"] = [state["global_step"], state["best_metric"], Path(state["best_model_checkpoint"] or "").name]
    results["files"] = sorted(path.name for path in output.iterdir() if path.name != "checkpoint-precious")
    return results


def places(changes: int, often: int | str) -> list[int]:
    """Return which of the changes are disturbed, spread evenly."""
    if often == "all" or often > changes:
        return list(range(1, changes + 1))
    return [round(1 + (changes - 1) * number / max(1, often - 1)) for number in range(often)]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    gc.freeze()
    runs = Runs(job)
    expected, trace = runs.undisturbed()
    changes = [line.split()[0] for line in trace]
    counts = {
        "before": sum(kind not in ("fsync", "from") for kind in changes),
        "half": changes.count("write"),
        "full": sum(kind in ("write", "open", "mkdir") for kind in changes),
    }
    problems, done = {}, {}
    for how, often in job["kills"]:
        chosen = places(counts.get(how, often), often)
        done[how] = len(chosen)
        for at in chosen:
            if found := runs.disturbed(how, at, expected):
                problems[f"{how} {at}"] = found
                print(how, at, *found, sep="\n", flush=True)
    result = {"trace": trace, "counts": counts, "done": done, "seconds": runs.seconds, "problems": problems}
    (runs.folder / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
