"""Run a script on several cards, one process (rank) for each.

    python gaudi_spawn.py --world_size 8 run_qa.py --model_name_or_path ... --do_train ...
    python gaudi_spawn.py --world_size 8 --use_mpi run_qa.py ...
    python gaudi_spawn.py --world_size 8 --use_deepspeed run_qa.py --deepspeed tests/configs/deepspeed_zero_2.json ...
    python gaudi_spawn.py --hostfile hosts.txt --use_mpi run_qa.py ...          several nodes, started from the first
    python gaudi_spawn.py --world_size 16 --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 run_qa.py ...   on each node

All words after the script go to the script, byte for byte. One rank without a flag is `python run_qa.py ...`.

    flag             ranks are started by                                      cores
    ---------------  --------------------------------------------------------  ---------------------------
    (none)           this launcher, on its own node                            shared by all ranks
    --use_deepspeed  this launcher                                             shared by all ranks
    --use_mpi        OpenMPI's mpirun; also without this flag if a hostfile    each rank is bound to its own
                     names other nodes, which mpirun reaches through ssh

Lines of output are whole and begin with `[rank 3]`, except those of rank 0. When a rank fails, the others end, and the
exit status is that rank's; 2 is a mistake in the command line or the data, printed once. SIGTERM, SIGINT, SIGHUP and
SIGUSR1 reach every rank as SIGTERM or SIGINT; it then has --grace_seconds to write a checkpoint, and the exit status is
143, or 130 for SIGINT. A second signal ends all ranks at once. No process outlives the launcher.
"""

import os
import re
import shlex
import sys
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path

from qa.errors import UserError, run_or_exit
from qa.launch.hosts import hold_port, is_this_machine, read_hostfile
from qa.launch.job import Job, children_of, missing_programs, mpirun_folder
from qa.launch.supervisor import run_guarded
from qa.ranks import DEFAULT_PORT, is_this_node, place_of
from qa.secret_flags import hide_secrets, without_secrets, without_tokens


FLAGS = {  # name: the name of its value, or "" for a switch; the least number that it may be; help
    "--world_size": ("N", 1, "ranks on all nodes together, one for each card (default 1)"),
    "--use_mpi": ("", None, "start the ranks with OpenMPI's mpirun, version 4 or 5"),
    "--use_deepspeed": ("", None, "check that DeepSpeed is installed; --deepspeed after the script uses it"),
    "--hostfile": ("FILE", None, "nodes where mpirun starts the ranks, a line `name slots=8` for each"),
    "--master_port": (
        "PORT",
        1,
        f"TCP port where the ranks meet (default: a free one; on several nodes {DEFAULT_PORT})",
    ),
    "--nnodes": ("N", 1, "nodes, where the launcher is started on each of them (default 1)"),
    "--node_rank": ("R", 0, "which of these nodes this one is, from 0"),
    "--master_addr": ("ADDRESS", None, "name or address of node 0"),
    "--grace_seconds": ("S", 0, "seconds that ranks have to end after a signal, then they are killed (default 60)"),
    "--dry_run": ("", None, "print the command of rank 0, or mpirun's, with its variables; start nothing"),
    "--help": ("", None, "print this"),
}
# Variables in which mpi-operator names the hostfile of a job.
DEFAULT_HOSTFILES = ("PRTE_MCA_prte_default_hostfile", "OMPI_MCA_orte_default_hostfile")
SEVERAL = (
    "start one launcher with the nodes in a --hostfile (in SLURM: `scontrol show hostnames | sed 's/$/ slots=8/' > hosts.txt`), "
    "or one on each node with --nnodes"
)


def main(argv: list[str] | None = None) -> None:
    """Run a command line (without the program's name) and exit with the status of the job.

    Raises:
        UserError: every problem that can be known before anything is started.
    """
    hide_secrets()
    flags, script = read_flags(sys.argv[1:] if argv is None else argv)
    if "--help" in flags:
        lines = (f"  {name + ' ' + value:24}{text}" for name, (value, _, text) in FLAGS.items())
        return print(__doc__, "\nFlags, before the script:", *lines, sep="\n")
    job = make_job(flags, script)
    if job.node_rank == 0 and is_this_machine(job.master_addr):
        holder = hold_port(job.master_port)
        job.master_port = holder.getsockname()[1]
    if "--dry_run" in flags:
        return print_command(job)
    if job.ranks == [1] and not flags.keys() & {"--use_mpi", "--use_deepspeed", "--hostfile"}:
        print("one rank: running the script directly (--world_size N for more)", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *script])
    if max(job.ranks) > 1 and (card := os.environ.pop("HLS_MODULE_ID", None)):
        print(f"HLS_MODULE_ID={card} names one card; it is not passed to the ranks", file=sys.stderr, flush=True)
    with mpirun_folder() if job.runs_mpirun else nullcontext():
        sys.exit(run_guarded(children_of(job), job.grace_seconds))


def print_command(job: Job) -> None:
    job.script = without_secrets(job.script)
    child = children_of(job)[0]
    added = (f"{name}={value}" for name, value in child.environment.items() if os.environ.get(name) != value)
    os.write(1, os.fsencode(shlex.join(["env", *added, *child.command])) + b"\n")


# The command line


def read_flags(argv: list[str]) -> tuple[dict, list[str]]:
    """Return the launcher's flags with their values, and the script with its arguments.

    argparse is not used: it drops a `--` directly after the script.

    >>> read_flags(["--world-size=2", "--use_mpi", "run_qa.py", "--", "--world_size", "3"])
    ({'--world_size': 2, '--use_mpi': ''}, ['run_qa.py', '--', '--world_size', '3'])

    Raises:
        UserError: an unknown flag, a switch with a value, or a value that is no number.
    """
    flags, rest = {}, list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        shown = without_secrets(rest[:1])[0].partition("=")
        word, equals, value = rest.pop(0).partition("=")
        name = {"-h": "--help"}.get(word, "--" + word.lstrip("-").replace("-", "_"))
        if name not in FLAGS:
            nearest = get_close_matches(name, FLAGS, n=1, cutoff=0.7)
            hint = f"did you mean {nearest[0]}?" if nearest else "write flags of the script after the script"
            raise UserError(f"unknown argument {shown[0]} ({hint})")
        if equals and not FLAGS[name][0]:
            raise UserError(f"{name} takes no value, {shown[2]!r} was given; omit it")
        value = rest.pop(0) if FLAGS[name][0] and not equals and rest else value
        flags[name] = value if FLAGS[name][1] is None else read_number(name, value)
    return flags, rest[rest[:1] == ["--"] :]


def read_number(name: str, text: str) -> int:
    least, largest = FLAGS[name][1], 65535 if name == "--master_port" else 1 << 20
    if not re.fullmatch(r"\+?[0-9]{1,9}", text) or not least <= int(text) <= largest:
        shown = without_tokens(text) or repr(text)
        raise UserError(f"{name} is {shown}; give a whole number from {least} to {largest}")
    return int(text)


def make_job(flags: dict, script: list[str]) -> Job:
    """Return the job that a command line asks for.

    Raises:
        UserError: every problem that can be seen before anything is started.
    """
    hosts, nnodes = read_hosts(flags), flags.get("--nnodes", 1)
    world_size = flags.get("--world_size", sum(hosts.values()) or 1)
    job = Job(script, list(hosts.values()) or [world_size // nnodes] * nnodes)
    job.hosts = [] if len(hosts) == 1 and is_this_machine(*hosts) else list(hosts)
    job.runs_mpirun = "--use_mpi" in flags or bool(job.hosts)
    job.node_rank, job.grace_seconds = flags.get("--node_rank", 0), flags.get("--grace_seconds", 60)
    job.master_addr = flags.get("--master_addr", job.hosts[0].rpartition("@")[2] if job.hosts else "127.0.0.1")
    is_alone = len(job.ranks) == 1 and is_this_machine(job.master_addr)
    job.master_port = flags.get("--master_port", 0 if is_alone else DEFAULT_PORT)  # 0: see main
    problems = [*script_problems(script), *node_problems(job, world_size, flags), *start_problems(flags)]
    if problems := [*problems, *missing_programs(job.runs_mpirun, "--use_deepspeed" in flags)]:
        raise UserError(*problems)
    return job


def script_problems(script: list[str]) -> list[str]:
    if not script:
        return ["no script; give one after the launcher's flags, as in `gaudi_spawn.py --world_size 8 run_qa.py ...`"]
    path = Path(*without_secrets(script[:1]))
    nearest = get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], n=1)
    hint = f" (did you mean {path.parent / nearest[0]}?)" if nearest else ""
    return [] if os.path.isfile(script[0]) else [f"{path}: there is no such script{hint}"]


def read_hosts(flags: dict) -> dict[str, int]:
    """Return ranks by host of the hostfile, if there is one, with this machine first: OpenMPI 4 runs rank 0 here.

    Raises:
        UserError: see `read_hostfile`.
    """
    default = next((name for name in DEFAULT_HOSTFILES if name in os.environ), None)
    if default and not flags.keys() & {"--hostfile", "--nnodes"}:
        flags["--hostfile"] = os.environ[default]
        print(f"{default} is taken as --hostfile {os.environ[default]}", file=sys.stderr, flush=True)
    hosts = read_hostfile(Path(flags["--hostfile"])) if "--hostfile" in flags else {}
    return dict(sorted(hosts.items(), key=lambda item: not is_this_machine(item[0])))


def node_problems(job: Job, world_size: int, flags: dict) -> list[str]:
    """Compare the flags and the hostfile with each other."""
    problems, nodes = [], len(job.ranks)
    by_hand = [name for name in ("--nnodes", "--node_rank", "--master_addr") if name in flags]
    if world_size % nodes and "--hostfile" not in flags:
        problems.append(
            f"--world_size {world_size} is for all nodes, and --nnodes {nodes} does not divide it; give a multiple of {nodes}"
        )
    # The reference ignored it next to a hostfile, and there it often means the ranks of one node.
    if "--hostfile" in flags and world_size != sum(job.ranks) and {*job.ranks} != {world_size}:
        slots = f"{flags['--hostfile']} ({sum(job.ranks)} slots in total)"
        problems.append(f"--world_size {world_size} does not match {slots}; omit --world_size")
    if by_hand and flags.keys() & {"--use_mpi", "--hostfile"} or nodes > 1 and not job.hosts and len(by_hand) < 3:
        names = "--nnodes, --node_rank and --master_addr"
        problems.append(f"give {names} together, on each node, without --use_mpi and --hostfile")
    elif nodes > 1 and is_this_node(job.master_addr):
        problems.append(f"{job.master_addr} is a different machine on each node; give the first one's name or address")
    if job.node_rank >= nodes:
        problems.append(f"--node_rank is {job.node_rank}; with --nnodes {nodes} give at most {nodes - 1}")
    return problems


def start_problems(flags: dict) -> list[str]:
    """Return why there are several launchers, or with `--use_mpi` several nodes without a hostfile, by the variables."""
    problems = [] if "--nnodes" in flags else place_problems()
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1" and "--use_mpi" in flags and "--hostfile" not in flags:
        problems.append(f"SLURM_JOB_NUM_NODES is {nodes}: {SEVERAL}")
    return problems


def place_problems() -> list[str]:
    """Return why this launcher is, or may be, one of several that another launcher started."""
    try:
        place = place_of(os.environ)
    except UserError as error:
        return [*error.problems]
    several = place is not None and place.size > 1
    return [f"{place.launcher.rank}={place.rank} is one of {place.size} launchers: {SEVERAL}"] if several else []


if __name__ == "__main__":
    run_or_exit(main)
