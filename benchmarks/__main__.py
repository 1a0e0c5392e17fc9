"""Side-by-side measurements, printed as tables.

    make bench          python -m benchmarks                      # the short ones, some minutes
    make bench-full     python -m benchmarks --full               # in full, about an hour
                        python -m benchmarks throughput --full    # one topic

Real questions of ../shared/data where that is present, else generated ones. docs/measurements.md holds results.
"""

import argparse
import importlib
import os
import platform
import sys


TOPICS = ("processing", "start", "throughput", "shapes", "overlap", "memory")
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"of {', '.join(TOPICS)}; all without any")
    parser.add_argument("--full", action="store_true", help="more data, settings and rounds")
    args = parser.parse_args()
    if unknown := {*args.topics} - {*TOPICS}:
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    keep_memory()
    print(
        f"{platform.platform()}, {cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True
    )
    for topic in args.topics or TOPICS:
        importlib.import_module(f"benchmarks.{topic}").bench(args.full)


def keep_memory() -> None:
    """Start the program again, so that glibc keeps freed memory.

    It returns that of long batches by default and asks for it again: padded runs look slower than they are.
    """
    if not MALLOC.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | MALLOC)


def cpu_name() -> str:
    """Return the CPU's name from /proc, or from Python where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
