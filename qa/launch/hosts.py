"""Hostfiles, ports and cores: what the launcher has to know of the machines that it uses."""

import os
import re
import socket
from pathlib import Path

from qa.errors import UserError


def read_hostfile(path: Path) -> dict[str, int]:
    """Return ranks by host in the file's order; a line is `node-1 slots=8 # comment`, as DeepSpeed and OpenMPI read it.

    Raises:
        UserError: every line that is wrong; the file cannot be read or names no host.
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
        problem = problem_of_host(host, slots, words[2:], first_lines)
        if problem:
            problems.append(f"{path}:{number}: {problem}")
        else:
            hosts[host], first_lines[host] = int(slots.partition("=")[2]), number
    if not hosts and not problems:
        problems.append(f"--hostfile {path}: names no host")
    if problems:
        raise UserError(*problems)
    return hosts


def problem_of_host(host: str, slots: str, others: list[str], first_lines: dict[str, int]) -> str:
    """Return what is wrong with a line of a hostfile, or an empty text.

    >>> problem_of_host("node-1", "8", [], {})
    "'8' is not a number of ranks; write `node-1 slots=8`"
    """
    if not re.fullmatch(r"[A-Za-z0-9_.@-]+", host):
        return f"{host!r} is not a name or IPv4 address of a host"
    if not slots:
        return f"{host} lacks its number of ranks; write `{host} slots=8`"
    if not re.fullmatch(r"slots=0*[1-9][0-9]{0,5}", slots):
        return f"{slots!r} is not a number of ranks; write `{host} slots=8`"
    if not all(re.fullmatch(r"max[-_]slots=[0-9]+", word) for word in others):
        return f"{' '.join(others)!r} is not understood; write `{host} {slots}`"
    if host in first_lines:
        return f"{host} is already in line {first_lines[host]}"
    return ""


def is_this_machine(host: str) -> bool:
    """Return whether a name or address is one of this machine's own: only those can be bound to."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a TCP port that nothing listens to at the moment; the kernel chooses another one each time."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def port_trouble(port: int) -> str:
    """Return why a TCP port of this machine cannot be listened to, or an empty text."""
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


def cores_of_sockets() -> list[int]:
    """Return how many physical cores of each processor this process may use, which in a container can be few."""
    try:
        cores = {}
        for cpu in os.sched_getaffinity(0):
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
            package = (topology / "physical_package_id").read_text()
            cores.setdefault(package, set()).add((topology / "core_id").read_text())
        return sorted(map(len, cores.values()))
    except (OSError, AttributeError):  # Not Linux, or a sandbox without /sys.
        return [os.cpu_count() or 1]
