"""Stands in for ssh and pdsh: a command starts on this machine as a login on another node would start it.

python remote_shell.py ssh [options] NODE command ...
python remote_shell.py pdsh [options] -w NODE,NODE ... command ...

A node whose name begins with `down` is not reached. Nothing of the environment gets through but what a node has of its own: a home, the system's PATH, its name in NODE and,
where they are simulated, its cards. Who ends ssh ends the connection, and not what it started; and who ends pdsh
leaves its ssh processes, but with SIGINT.
"""

import os
import signal
import subprocess
import sys
import threading


STARTED = []


def main(program: str, words: list[str]) -> int:
    taking = {"ssh": "-o -p -l", "pdsh": "-R -f -w"}[program].split()  # options whose value is the next word
    options = {}
    while words[0].startswith("-"):
        name = words.pop(0)
        options[name] = words.pop(0) if name in taking else None
    if program == "ssh":
        node, *command = words
        if node.startswith("down"):
            print(f"ssh: connect to host {node} port 22: No route to host", file=sys.stderr)
            return 255
        return run([["sh", "-c", " ".join(command)]], [""], env=own_environment(node), start_new_session=True)
    signal.signal(signal.SIGINT, end_all)
    nodes = options["-w"].split(",")
    lines = [as_pdsh_reads(" ".join(words), node, number) for number, node in enumerate(nodes)]
    return run([["ssh", node, line] for node, line in zip(nodes, lines)], [f"{node}: " for node in nodes])


def own_environment(node: str) -> dict[str, str]:
    cards = {name: value for name, value in os.environ.items() if name.startswith("SIMULATED_GAUDI_")}
    return {"HOME": "/nowhere", "PATH": os.defpath, "NODE": node, **cards}


def as_pdsh_reads(line: str, node: str, number: int) -> str:
    for sign, value in (("%%", "\0"), ("%n", str(number)), ("%h", node), ("\0", "%")):
        line = line.replace(sign, value)
    return line


def run(commands: list[list[str]], marks: list[str], **options) -> int:
    """Runs commands at once, hands their lines on with a mark in front, and returns the largest exit status."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    STARTED.extend(subprocess.Popen(command, **pipes, **options) for command in commands)
    nodes = [threading.Thread(target=serve, args=pair) for pair in zip(STARTED, marks)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()
    return max(process.wait() for process in STARTED)


def serve(process: subprocess.Popen, mark: str) -> None:
    """Hands on what a process says until it ends; pdsh tells if that was a failure."""
    streams = ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
    readers = [threading.Thread(target=hand_on, args=(*pair, mark.encode())) for pair in streams]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if mark and process.wait() > 0:
        print(f"pdsh@here: {mark}ssh exited with exit code {process.returncode}", file=sys.stderr, flush=True)


def end_all(number: int, frame) -> None:
    for process in STARTED:
        process.terminate()
    os._exit(1)


def hand_on(source, target, mark: bytes) -> None:
    for line in source:
        target.write(mark + line)
        target.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
