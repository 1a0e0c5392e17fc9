"""An ssh for tests: a command starts on this machine as a login on another node would start it.

python remote_shell.py [options] NODE command ...

A node whose name begins with `down` is not reached. A node has its own environment: a home, the system's PATH, its name
in NODE and, where they are simulated, its cards. The end of this ssh ends the connection, and not the command.
"""

import os
import subprocess
import sys
import threading


def main(words: list[str]) -> int:
    while words[0].startswith("-"):
        if words.pop(0) in ("-o", "-p", "-l"):  # options whose value is the next word
            words.pop(0)
    node, *command = words
    if node.startswith("down"):
        print(f"ssh: connect to host {node} port 22: No route to host", file=sys.stderr)
        return 255
    process = subprocess.Popen(
        ["sh", "-c", " ".join(command)],
        env=own_environment(node),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    outputs = ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
    threads = [threading.Thread(target=copy, args=pair) for pair in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return process.wait()


def own_environment(node: str) -> dict[str, str]:
    kept = ("SIMULATED_GAUDI_", "CUDA_VISIBLE_DEVICES")
    cards = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    own = {"HABANA_VISIBLE_MODULES": "4,5,6,7"} if cards else {}  # or ranks of two nodes would have the same card
    return {"HOME": "/nowhere", "PATH": os.defpath, "NODE": node, **cards, **own}


def copy(source, target) -> None:
    for line in source:
        target.write(line)
        target.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
