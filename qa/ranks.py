"""Which rank of a run this process is, whatever started it.

PyTorch and accelerate read RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. `place_process` sets
them from the variables of these launchers; the first one of which rank and size are there decides:

    started by                      rank, size                    local rank, ranks on the node        the rest
    ------------------------------  ----------------------------  -----------------------------------  ----------------------
    gaudi_spawn.py, torchrun,       RANK, WORLD_SIZE              LOCAL_RANK, LOCAL_WORLD_SIZE or      MASTER_ADDR and _PORT
    accelerate, deepspeed                                         LOCAL_SIZE                           are there
    Kubeflow's PyTorchJob           RANK, WORLD_SIZE              0: one process in each pod           MASTER_ADDR and _PORT
                                                                                                       are there, or localhost
                                                                                                       for rank 0
    OpenMPI's mpirun                OMPI_COMM_WORLD_RANK, _SIZE   OMPI_COMM_WORLD_LOCAL_RANK, _SIZE    port from the name of
                                                                                                       the job: PMIX_NAMESPACE
    MVAPICH's mpirun                MV2_COMM_WORLD_RANK, _SIZE    MV2_COMM_WORLD_LOCAL_RANK, _SIZE
    mpiexec of MPICH, Intel MPI     PMI_RANK, PMI_SIZE            MPI_LOCALRANKID, MPI_LOCALNRANKS
    srun                            SLURM_PROCID,                 SLURM_LOCALID,                       address: the first node
                                    SLURM_STEP_NUM_TASKS          SLURM_STEP_TASKS_PER_NODE            of SLURM_STEP_NODELIST,
                                                                                                       port: job and step
    other launchers over PMI        PMI_RANK, PMI_SIZE            PMI_LOCAL_RANK, PMI_LOCAL_SIZE

The address is 127.0.0.1 where all ranks are on one node, the port 29500 where no other is known. A batch script of SLURM, or a
shell of salloc, has variables of the whole allocation, but is no task: there is no SLURM_STEP_ID. WORLD_SIZE=1 makes each
process a run of its own. The standard library alone is used, since this comes before all other imports.
"""

import os
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from qa.errors import UserError


class Launcher(NamedTuple):
    """The variables of a launcher: of this process's rank, of the number of ranks, and of both on its node."""

    rank: str
    size: str
    local_rank: str
    local_size: str


class Place(NamedTuple):
    """A process among the ranks of a run; what is unknown of its node is None."""

    rank: int
    size: int
    local_rank: int | None
    local_size: int | None
    launcher: Launcher


GENERIC = Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
HYDRA = Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
SRUN = Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
MPI = [
    Launcher(*(f"{prefix}_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")))
    for prefix in ("OMPI_COMM_WORLD", "MV2_COMM_WORLD")
]
LAUNCHERS = [GENERIC, *MPI, HYDRA, SRUN, Launcher("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE")]
DEFAULT_PORT = 29500
PORTS = range(10000, 30000)  # below those that Linux hands out to connections


def place_process() -> None:
    """Set the variables by which the ranks of this process's run find each other; none for a run of one process.

    Raises:
        UserError: a variable is missing or wrong.
    """
    os.environ.update(rank_variables(os.environ))
    if os.environ.get("WORLD_SIZE") == "1":  # accelerate looks at the others first
        for launcher in LAUNCHERS[1:]:
            os.environ.pop(launcher.size, None)


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set; empty for a process that is alone.

    >>> mpi = {"RANK": "1", "SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    >>> rank_variables({f"OMPI_COMM_WORLD_{name}": value for name, value in mpi.items()} | {"MASTER_PORT": "29501"})
    {'RANK': '1', 'WORLD_SIZE': '2', 'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29501'}

    Raises:
        UserError: a variable is missing or wrong.
    """
    place = place_of(environment)
    if place is None or place.size == 1:
        return {}
    address = address_of(place, environment)
    place = on_its_node(place, address)
    found = {"RANK": place.rank, "WORLD_SIZE": place.size, "LOCAL_RANK": place.local_rank}
    found |= {"LOCAL_WORLD_SIZE": place.local_size} if place.local_size else {}
    found |= {"MASTER_ADDR": address, "MASTER_PORT": port_of(place.launcher, environment)}
    return {name: str(value) for name, value in found.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Which process this is


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Return the place of this process by the first launcher that has a rank and a size; None where it is alone."""
    places = [read_place(launcher, environment) for launcher in LAUNCHERS if started_by(launcher, environment)]
    if not places:
        refuse_half_a_launcher(environment)
        return None
    place, *outer = places
    same = [other for other in places if (other.rank, other.size) == (place.rank, place.size)]
    for other in outer:
        if other.size == place.size and other.rank != place.rank and other.launcher in MPI:
            wrong = f"{place.launcher.rank}={place.rank} contradicts {other.launcher.rank}={other.rank}"
            raise UserError(f"{wrong}; unset {place.launcher.rank} and {place.launcher.size}")
    local_ranks, local_sizes = ([getattr(other, name) for other in same] for name in ("local_rank", "local_size"))
    return place._replace(local_rank=first_known(local_ranks), local_size=first_known(local_sizes))


def first_known(values: list[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)


def started_by(launcher: Launcher, environment: Mapping[str, str]) -> bool:
    """Return whether a launcher started this process, or one above it."""
    if launcher is GENERIC and environment.get("WORLD_SIZE") == "1":
        return True
    if launcher is SRUN:
        return (
            "SLURM_PROCID" in environment and not is_batch_script(environment) and slurm_size(environment) is not None
        )
    if launcher is HYDRA and launcher.local_rank not in environment:
        return False  # srun and others set PMI_RANK too
    return launcher.rank in environment and launcher.size in environment


def is_batch_script(environment: Mapping[str, str]) -> bool:
    """Return whether this is within a job of SLURM, but no task of a step: started directly, not by srun."""
    in_job = any(name in environment for name in ("SLURM_JOB_ID", "SLURM_JOBID"))
    in_step = any(name in environment for name in ("SLURM_STEP_ID", "SLURM_STEPID"))
    return in_job and not in_step and environment["SLURM_PROCID"] == "0"


def slurm_size(environment: Mapping[str, str]) -> str | None:
    """Return the name of the variable with the number of a step's tasks."""
    return next((name for name in (SRUN.size, "SLURM_NTASKS", "SLURM_NPROCS") if name in environment), None)


def read_place(launcher: Launcher, environment: Mapping[str, str]) -> Place:
    """Return the place that a launcher's variables name."""
    size_name = slurm_size(environment) if launcher is SRUN else launcher.size
    size = read_number(size_name, environment, least=1)
    rank = read_number(launcher.rank, environment) if launcher.rank in environment else 0
    if rank >= size:
        raise UserError(f"{launcher.rank}={rank}, but {size_name}={size}: ranks count from 0; set both again")
    local_rank = local_size = None
    if environment.get(launcher.local_rank, "-1") != "-1":
        local_rank = read_number(launcher.local_rank, environment)
    if launcher is SRUN:
        local_size = tasks_on_node(environment, size)
    elif name := next((name for name in local_size_names(launcher) if name in environment), None):
        local_size = read_number(name, environment, least=1)
    return Place(rank, size, local_rank, local_size, launcher)


def local_size_names(launcher: Launcher) -> list[str]:
    return [launcher.local_size, "LOCAL_SIZE"] if launcher is GENERIC else [launcher.local_size]


def read_number(name: str, environment: Mapping[str, str], least: int = 0) -> int:
    text = environment[name]
    if not re.fullmatch(r"\d{1,7}", text) or int(text) < least:
        raise UserError(
            f"{name}={text!r} is not a whole number of at least {least}; let the launcher set it, or unset it"
        )
    return int(text)


def tasks_on_node(environment: Mapping[str, str], size: int) -> int | None:
    """Return the number of a step's tasks on this node; the variable has a list for all nodes.

    >>> tasks_on_node({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "1"}, size=9)
    4
    """
    nodes = [environment.get(name) for name in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")]
    if next(filter(None, nodes), None) == "1":
        return size
    listed = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get(SRUN.local_size, ""))
    counts = [int(count) for count, times in listed for _ in range(int(times or 1))]
    node = environment.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def refuse_half_a_launcher(environment: Mapping[str, str]) -> None:
    """Raise a UserError where a variable says that there are other ranks, and one that is needed is missing."""
    needs = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "RANK", "PMIX_RANK": "WORLD_SIZE"}
    needs |= {launcher.rank: launcher.size for launcher in LAUNCHERS[1:] if launcher is not SRUN}
    needs |= {launcher.size: launcher.rank for launcher in LAUNCHERS if launcher is not SRUN}
    for name, missing in needs.items():
        value = environment.get(name)
        alone = "0" if name == "PMI_RANK" else "-1" if name == "LOCAL_RANK" else "1"
        if value is not None and (value != alone or name in ("RANK", "PMIX_RANK")):
            raise UserError(
                f"{name}={value}, but {missing} is not set: this may be one of several ranks; set {missing}, or unset {name}"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Where the ranks meet


def address_of(place: Place, environment: Mapping[str, str]) -> str:
    """Return the address at which rank 0 is: MASTER_ADDR, else the one that is known."""
    given = environment.get("MASTER_ADDR")
    if given:
        spread = place.local_size is not None and place.local_size < place.size
        if is_this_node(given) and spread and place.launcher is not GENERIC:
            raise UserError(
                f"MASTER_ADDR={given} is a different machine on each node, and the {place.size} ranks are on several nodes "
                f"({place.local_size} on this one); set it to the name of rank 0's node"
            )
        return given
    if place.local_size == place.size:
        return "127.0.0.1"
    nodes = next(
        filter(None, map(environment.get, ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"))), None
    )
    if place.launcher is SRUN and nodes:
        return first_node(nodes)
    number = place.local_size
    here = f"{number} of them on this node" if number else "how many of them on this node is not known"
    raise UserError(
        f"MASTER_ADDR is not set, and {place.launcher.rank}={place.rank} is one of {place.size} ranks, {here}; "
        "on every node, set MASTER_ADDR to the name of rank 0's node"
    )


def is_this_node(address: str) -> bool:
    """Return whether an address means the machine that uses it, whichever that is."""
    return address in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", address) is not None


def first_node(nodes: str) -> str:
    """Return the first name in a list of SLURM's.

    >>> first_node("rack[2-3]-node[07-09,12]-ib,login")
    'rack2-node07-ib'
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def on_its_node(place: Place, address: str) -> Place:
    """Return a place whose rank on its node is known.

    Without a variable it is the rank where the address means this machine. How many ranks are there is not known then if RANK
    and WORLD_SIZE have been set: PyTorchJob's master may have localhost too. Its other pods have an address and are alone on
    their node; `qa.meeting` finds two such processes on one machine.
    """
    if place.local_rank is not None:
        return place
    generic = place.launcher is GENERIC
    if is_this_node(address):
        return place._replace(local_rank=place.rank, local_size=place.local_size if generic else place.size)
    if generic:
        return place._replace(local_rank=0, local_size=place.local_size or 1)
    raise UserError(
        f"{place.launcher.rank}={place.rank}, but {place.launcher.local_rank} is not set; set LOCAL_RANK to the number of this "
        "process among those of its node"
    )


def port_of(launcher: Launcher, environment: Mapping[str, str]) -> int:
    """Return the port of a run: the one that is given, else another one for each job, and the same one for all its ranks."""
    if environment.get("MASTER_PORT"):
        return read_number("MASTER_PORT", environment, least=1)
    names = {SRUN: ("SLURM_JOB_ID", "SLURM_STEP_ID"), MPI[0]: ("PMIX_NAMESPACE",)}.get(launcher, ())
    job = ".".join(environment.get(name, "") for name in names).strip(".")
    return PORTS[zlib.crc32(job.encode()) % len(PORTS)] if job else DEFAULT_PORT
