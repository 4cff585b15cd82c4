"""`python -m benchmarks [NAME…]`: run the quick ones or those named, exit 1 where a reach is missed."""

import sys
from importlib import import_module

from benchmarks.figures import Figure

BENCHMARKS = ("backfill", "stream", "sensor", "gap_scan")
LONG = ("soak",)


def main() -> int:
    names = sys.argv[1:] or BENCHMARKS
    unknown = [name for name in names if name not in BENCHMARKS + LONG]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS + LONG)}", file=sys.stderr)
        return 2
    missed = 0
    for name in names:
        figures: list[Figure] = import_module(f"benchmarks.{name}").run()
        for figure in figures:
            missed += not figure.reached
            print(f"{name:<12} {figure}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
