"""Hostfiles, ports and cores: what the launcher has to know of the machines that it uses."""

import os
import re
import socket
from functools import cache
from pathlib import Path

from qa.errors import UserError


LINE = re.compile(r"([A-Za-z0-9_.@-]+) slots=0*([1-9][0-9]{0,5})( max[-_]slots=[0-9]+)*")  # of a hostfile


def read_hostfile(path: Path) -> dict[str, int]:
    """Return ranks by host in the file's order; a line is `node-1 slots=8 # comment`, as DeepSpeed and OpenMPI read it.

    Raises:
        UserError: every line that is wrong; the file cannot be read or names no host.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--hostfile {path}: cannot be read: {reason}; name another file") from error
    hosts, problems = {}, []
    for number, line in enumerate((" ".join(line.partition("#")[0].split()) for line in lines), start=1):
        match = LINE.fullmatch(line)
        if match and match[1] not in hosts:
            hosts[match[1]] = int(match[2])
        elif line:
            advice = f"{match[1]} is already in the file; omit this line" if match else advice_for(line)
            problems.append(f"{path}:{number}: {advice}")
    if problems or not hosts:
        raise UserError(*problems or [f"--hostfile {path}: names no host; add a line `NODE slots=8` for each"])
    return hosts


def advice_for(line: str) -> str:
    """Return what to write in place of a line.

    >>> advice_for("node-1:4"), advice_for("node-2 8")
    ("'node-1:4' is not understood; write `node-1 slots=4`", "'node-2 8' is not understood; write `node-2 slots=8`")
    """
    match = re.match(r"([A-Za-z0-9_.@-]+)(?: |:(?!:)|$)\D*([0-9]{0,5})", line)
    right = f"{match[1]} slots={int(match[2] or 8) or 8}" if match else "NODE slots=8"
    return f"{line!r} is not understood; write `{right}`"


@cache
def is_this_machine(host: str) -> bool:
    """Return whether a name or address, maybe with a user, is one of this machine's own: only those can be bound to."""
    try:
        socket.create_server((host.rpartition("@")[2], 0)).close()
    except OSError:
        return False
    return True


def hold_port(port: int = 0) -> socket.socket:
    """Return a socket that is bound to a TCP port of this machine and does not listen: by default to a free port.

    As long as it is open, Linux chooses this port for no other program. Rank 0 can still listen there, as it sets
    SO_REUSEADDR too.

    Raises:
        UserError: another program listens to the port, or this user may not open it.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("", port))
    except OSError as error:
        raise UserError(f"--master_port {port} cannot be opened ({error.strerror}); give another one") from error
    return holder


def physical_cores() -> list[frozenset[int]]:
    """Return the CPUs of each physical core that this process may use: neighbours in a row, one processor after the other."""
    cores = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            place = tuple(int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
        except OSError:  # a sandbox without /sys
            place = (0, cpu)
        cores[place] = cores.get(place, frozenset()) | {cpu}
    return [cores[place] for place in sorted(cores)]


def cores_of_rank(local_rank: int, ranks: int, cores: list[frozenset[int]]) -> frozenset[int]:
    """Return the CPUs that a rank of a node is bound to: its share of the cores, or none if there are not enough.

    Gaudi cards 0-3 are nearest to the first processor, 4-7 to the second.

    >>> cores = [frozenset({0, 4}), frozenset({1, 5}), frozenset({2, 6}), frozenset({3, 7})]
    >>> [sorted(cores_of_rank(rank, 2, cores)) for rank in (0, 1)], cores_of_rank(0, 5, cores)
    ([[0, 1, 4, 5], [2, 3, 6, 7]], frozenset())
    """
    begin, end = (len(cores) * rank // ranks for rank in (local_rank, local_rank + 1))
    return frozenset().union(*cores[begin:end]) if ranks <= len(cores) else frozenset()
