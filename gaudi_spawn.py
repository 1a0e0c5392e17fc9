"""Run a script on several cards, one process (rank) for each, with torchrun, OpenMPI or DeepSpeed.

    python gaudi_spawn.py --world_size 8 run_qa.py --model_name_or_path ... --do_train ...
    python gaudi_spawn.py --world_size 8 --use_mpi run_qa.py ...
    python gaudi_spawn.py --world_size 8 --use_deepspeed run_qa.py --deepspeed tests/configs/deepspeed_zero_2.json ...
    python gaudi_spawn.py --hostfile hosts.txt --use_mpi run_qa.py ...          several nodes, started from the first
    python gaudi_spawn.py --world_size 16 --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 run_qa.py ...   on each node

All words after the script go to the script, byte for byte. One rank without an engine is `python run_qa.py ...`.

    flag             ranks are started by                            cores
    ---------------  ----------------------------------------------  ---------------------------
    (none)           torch.distributed.run (torchrun)                shared by all ranks
    --use_deepspeed  torch.distributed.run; with other nodes mpirun  as in the other rows
    --use_mpi        OpenMPI's mpirun, which uses ssh                each rank is bound to its own

Every engine: lines of output are whole and begin with `[rank 3]`, except those of rank 0. When a rank fails, the
others end, and the exit status is that rank's; 2 is a mistake in the command line or the data, printed once. SIGTERM,
SIGINT, SIGHUP and SIGUSR1 reach every rank as SIGTERM or SIGINT; it then has --grace_seconds to write a checkpoint, and
the exit status is 143, or 130 for SIGINT. A second signal ends all ranks at once. No process outlives the launcher.
"""

import glob
import json
import os
import re
import shlex
import sys
from difflib import get_close_matches
from pathlib import Path

from qa.errors import UserError, run_or_exit
from qa.launch.engines import Job, command_of, environment_of, host_name, missing_programs
from qa.launch.hosts import free_port, is_this_machine, port_trouble, read_hostfile
from qa.launch.supervisor import supervise, write_all
from qa.secret_flags import hide_secrets, without_secrets, without_tokens


FLAGS = {  # name: (its value, or None for a switch; help)
    "--world_size": ("N", "ranks on all nodes together, one for each card (default 1)"),
    "--use_mpi": (None, "start the ranks with OpenMPI's mpirun, version 4 or 5"),
    "--use_deepspeed": (None, "start ranks that use DeepSpeed, here or on the nodes of a hostfile"),
    "--hostfile": ("FILE", "nodes to run on, a line `name slots=8` for each, for --use_mpi and --use_deepspeed"),
    "--master_port": ("PORT", "TCP port where the ranks meet (default: a free one; on several nodes 29500)"),
    "--nnodes": ("N", "nodes, where the launcher is started on each of them (default 1)"),
    "--node_rank": ("R", "which of these nodes this one is, from 0"),
    "--master_addr": ("ADDRESS", "name or address of node 0"),
    "--grace_seconds": ("S", "seconds that ranks have to end after a signal, then they are killed (default 60)"),
    "--dry_run": (None, "print the command and the environment it gets, start nothing"),
    "--help": (None, "print this"),
}
NUMBERS = {  # flag: default, least and largest value
    "--world_size": (1, 1, 1 << 20),
    "--nnodes": (1, 1, 1 << 20),
    "--node_rank": (0, 0, 1 << 20),
    "--master_port": (29500, 1, 65535),
    "--grace_seconds": (60, 0, 1 << 20),
}
LONGEST = 1 << 17  # bytes that Linux allows for an environment variable


def main(argv: list[str] | None = None) -> None:
    """Run a command line (without the program's name) and exit with the status of the job.

    Raises:
        UserError: every problem that can be known before anything is started.
    """
    hide_secrets()
    argv = sys.argv[1:] if argv is None else argv
    flags, script, problems = read_flags(argv)
    if "--help" in flags:
        print(__doc__, "\nFlags, before the script:", *map(help_line, FLAGS), sep="\n")
        return
    job = make_job(flags, script, problems)
    if "--dry_run" in flags:
        job.script = without_secrets(job.script)
    added = environment_of(job)
    command, environment = command_of(job, os.environ | added), os.environ | added
    if "--dry_run" in flags:
        line = shlex.join(["env", *(f"{name}={value}" for name, value in added.items()), *command])
        write_all(1, os.fsencode(line) + b"\n")
    elif not job.engine:
        print("one rank: running the script directly (--world_size N for more)", file=sys.stderr, flush=True)
        os.execve(command[0], command, environment)
    else:
        sys.exit(supervise(command, environment, job.runs_mpirun, job.grace_seconds))


# The command line


def help_line(name: str) -> str:
    value, text = FLAGS[name]
    return f"  {name + ' ' + (value or ''):24}{text}"


def read_flags(argv: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the launcher's flags with their values, the script with its arguments, and what is wrong with the flags.

    argparse is not used: it drops a `--` directly after the script.

    >>> read_flags(["--world-size=2", "--use_mpi", "run_qa.py", "--", "--world_size", "3"])
    ({'--world_size': '2', '--use_mpi': ''}, ['run_qa.py', '--', '--world_size', '3'], [])
    """
    flags, problems, rest = {}, [], list(argv)
    while rest and rest[0].startswith("-"):
        (shown,) = without_secrets(rest[:1])
        word, equals, value = rest.pop(0).partition("=")
        if word == "--" and not equals:
            break
        name = {"-h": "--help"}.get(word, "--" + word.lstrip("-").replace("-", "_"))
        takes_value = name in FLAGS and FLAGS[name][0] is not None
        if name not in FLAGS:
            nearest = get_close_matches(name, FLAGS, n=1, cutoff=0.7)
            hint = f"did you mean {nearest[0]}?" if nearest else "write flags of the script after the script"
            problems.append(f"unknown argument {shown.partition('=')[0]} ({hint})")
            if rest and not equals and not rest[0].startswith("-") and not rest[0].endswith(".py"):
                rest.pop(0)  # its value, most likely
        elif equals and not takes_value:
            problems.append(f"{name} takes no value, {shown.partition('=')[2]!r} was given")
        elif takes_value and not equals and not rest:
            problems.append(f"{name} lacks its value ({FLAGS[name][0]})")
        else:
            flags[name] = rest.pop(0) if takes_value and not equals else value
    return flags, rest, problems


def make_job(flags: dict[str, str], script: list[str], problems: list[str]) -> Job:
    """Return the job that a command line asks for; `problems` are those that are known already.

    Raises:
        UserError: every problem that can be seen before anything is started.
    """
    problems = [*problems, *script_problems(script)]
    engine = "mpi" if "--use_mpi" in flags else "deepspeed" if "--use_deepspeed" in flags else "torchrun"
    if "--use_mpi" in flags and "--use_deepspeed" in flags:
        problems.append("--use_mpi and --use_deepspeed exclude each other; give one of them")
    hosts = {}
    try:
        hosts = read_hostfile(Path(flags["--hostfile"])) if "--hostfile" in flags else {}
    except UserError as error:
        problems += error.problems
    numbers, wrong = numbers_of(flags, sum(hosts.values()))
    job = Job(script, engine, **numbers, hosts=hosts)
    if hosts:
        job.master_addr = host_name(next(iter(hosts)))
    problems += wrong or [*size_problems(job, flags), *node_problems(job, flags)]
    problems += missing_programs(job)
    if not problems:
        problems = [*port_problems(job, "--master_port" in flags), *card_problems(job)]
    if problems:
        raise UserError(*problems)
    if engine == "torchrun" and job.world_size == job.nnodes == 1:
        job.engine = ""
    return job


def script_problems(script: list[str]) -> list[str]:
    if not script:
        return ["no script; give one after the launcher's flags, as in `gaudi_spawn.py --world_size 8 run_qa.py ...`"]
    if os.path.isfile(script[0]):
        size = len(json.dumps(script)) + len("SPAWN_SCRIPT=")
        too_long = f"the script's arguments are too long: {size} bytes, {LONGEST} at most; write them into a file"
        return [too_long] * (size >= LONGEST)
    path = Path(*without_secrets(script[:1]))
    nearest = get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], n=1)
    return [f"{path}: there is no such script" + (f" (did you mean {path.parent / nearest[0]}?)" if nearest else "")]


def numbers_of(flags: dict[str, str], slots: int) -> tuple[dict[str, int], list[str]]:
    """Return the values of the flags that are numbers, with the defaults of those not given, and what is wrong."""
    numbers, problems = {}, []
    for name, (default, least, largest) in NUMBERS.items():
        default = slots or default if name == "--world_size" else default
        text = flags.get(name, str(default))
        good = re.fullmatch(r"\+?[0-9]{1,9}", text) and least <= int(text) <= largest
        numbers[name[2:]] = int(text) if good else default
        if not good:
            bounds = f"{least} or more" if largest > 65535 else f"{least} to {largest}"
            problems.append(f"{name} is {without_tokens(text) or repr(text)}, it must be a whole number, {bounds}")
    return numbers, problems


def size_problems(job: Job, flags: dict[str, str]) -> list[str]:
    """Compare `--world_size` with the number of nodes and the hostfile."""
    if job.world_size % job.nnodes:
        return [f"--world_size {job.world_size} is for all nodes, and --nnodes {job.nnodes} does not divide it"]
    total = sum(job.hosts.values())
    if job.hosts and job.world_size != total:
        # The reference ignored it next to a hostfile, and there it often means the ranks of one node.
        if set(job.hosts.values()) != {job.world_size}:
            hostfile = flags["--hostfile"]
            return [
                f"--world_size {job.world_size} does not match {hostfile} ({total} slots in total); omit --world_size"
            ]
        job.world_size = total
    return []


def node_problems(job: Job, flags: dict[str, str]) -> list[str]:
    """Compare `--nnodes`, `--node_rank` and `--master_addr` with each other and the engine."""
    given = [name for name in ("--nnodes", "--node_rank", "--master_addr") if name in flags]
    problems = []
    if "--hostfile" in flags and job.engine == "torchrun":
        problems.append(
            "--hostfile needs --use_mpi or --use_deepspeed; without them, start the launcher on every node with "
            "--nnodes, --node_rank and --master_addr"
        )
    elif given and ("--hostfile" in flags or job.engine == "mpi"):
        other = "--hostfile" if "--hostfile" in flags else "--use_mpi"
        problems.append(f"{', '.join(given)}: not with {other}, which starts all nodes; name them in the --hostfile")
    elif job.nnodes > 1 and len(given) < 3:
        missing = [name for name in ("--node_rank", "--master_addr") if name not in flags]
        problems.append(f"--nnodes {job.nnodes} needs {' and '.join(missing)} too, on every node")
    elif "--master_addr" in flags:
        job.master_addr = flags["--master_addr"]
    if job.node_rank >= job.nnodes:
        problems.append(f"--node_rank is {job.node_rank}, with --nnodes {job.nnodes} it ends at {job.nnodes - 1}")
    return problems


def port_problems(job: Job, given: bool) -> list[str]:
    """Check the port where rank 0 will listen; on one node choose a fresh one if none is given."""
    if job.node_rank or not is_this_machine(job.master_addr):
        return []  # It will be opened on another machine.
    if not given and job.nnodes == 1 and not job.has_other_nodes:
        job.master_port = free_port()
        return []
    trouble = port_trouble(job.master_port)
    return [f"--master_port {job.master_port}: {trouble}; give another one"] if trouble else []


def card_problems(job: Job) -> list[str]:
    """Compare the ranks with the Gaudi cards, where the script will use them and they can be counted without opening one."""
    if not re.search(r"\n--?use[-_]habana(?![\n=](false|f|no|n|0)\n|\w)", "\n".join([*job.script, ""]), re.IGNORECASE):
        return []
    modules = os.environ.get("HABANA_VISIBLE_MODULES", "")
    cards = len(modules.split(",")) if modules else len(glob.glob("/dev/accel/accel[0-9]*"))
    if 0 < cards < job.ranks_here and (not job.hosts or any(map(is_this_machine, job.hosts))):
        source = f"HABANA_VISIBLE_MODULES={modules}" if modules else "/dev/accel"
        return [f"{job.ranks_here} ranks on this node need as many Gaudi cards, it has {cards} ({source})"]
    return []


if __name__ == "__main__":
    run_or_exit(main)
