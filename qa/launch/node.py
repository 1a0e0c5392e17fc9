"""The ranks of one node, started by mpirun: see supervisor.py for the processes, job.py for the variable SPAWN_JOB."""

import json
import os
import signal
import sys


sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))

from qa.launch.job import Job, ranks_of  # noqa: E402
from qa.launch.supervisor import die_with, run_guarded  # noqa: E402


def main() -> int:
    """Run the ranks of this node and return their exit status."""
    die_with(os.getppid(), signal.SIGKILL)  # The supervisor of this node then ends its ranks.
    job = Job(**json.loads(os.environ.pop("SPAWN_JOB")))
    job.node_rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
    return run_guarded(ranks_of(job, with_mpi=True), job.grace_seconds, in_node=True)


if __name__ == "__main__":
    sys.exit(main())
