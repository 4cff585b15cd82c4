"""`python -m benchmarks [quick|large|NAME…]`: print the figures, note them, exit 1 where a reach is missed."""

import sys
from collections.abc import Callable
from time import perf_counter

from benchmarks import (
    backfill,
    frames,
    gap_scan,
    growth,
    landing,
    memory,
    minute_edge,
    pages,
    projection,
    reading,
    sensor,
    start,
    stream,
    validation,
)
from benchmarks.figures import Figure
from benchmarks.history import History

Benchmark = Callable[[], list[Figure]]

QUICK: dict[str, Benchmark] = {
    "frames": frames.run,
    "pages": pages.run,
    "landing": landing.run,
    "minute_edge": minute_edge.run,
    "projection": projection.run,
    "reading": reading.run,
    "gap_scan": gap_scan.run,
    "validation": validation.run,
    "backfill": backfill.run,
    "sensor": sensor.run,
    "start": start.run,
    "growth": growth.run,
}
LARGE: dict[str, Benchmark] = {
    "landing_large": lambda: landing.run(landing.MANY_ROWS),
    "gap_scan_large": lambda: gap_scan.run(gap_scan.MANY_ROWS),
    "growth_large": lambda: growth.run(growth.MANY_SIZES),
    "stream": stream.run,
    "memory": memory.run,
}
EVERY = QUICK | LARGE


def main(words: list[str]) -> int:
    """Run what `words` name, the quick ones where they name nothing; returns the exit status."""
    names = [name for word in words or ["quick"] for name in {"quick": QUICK, "large": LARGE}.get(word, [word])]
    unknown = [name for name in names if name not in EVERY]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are quick, large, {', '.join(EVERY)}", file=sys.stderr)
        return 2
    history = History.read()
    missed: list[str] = []
    print(f"{history.machine}\n\n{'':<16} {'':<66} {'median':>9} {'least':>10} {'greatest':>9}")
    for name in names:
        started = perf_counter()
        figures = EVERY[name]()
        history.note(name, figures)
        for figure in figures:
            print(f"{name:<16} {figure}{history.change(name, figure)}", flush=True)
            if not figure.reached:
                missed.append(f"{name}: {figure.what} is {figure.value:.3g}, not {figure.bound}")
        print(f"{name:<16} took {perf_counter() - started:.0f} s\n", flush=True)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
