"""`python -m okx_pipeline_tests.stream.run_sidecar [VARIATION…]`: the sidecar as `stream` runs it, but for a variation.

hour-off      this machine's wall clock is an hour fast
no-lock       the lock of the one sidecar is taken by everybody
small-buffer  ten candles wait for the database at the most
standby       as --standby
"""

import logging
import sys
import time

from okx_pipeline.errors import PipelineError
from okx_pipeline.settings import read_settings
from okx_pipeline.storage.stream_status import SidecarLock
from okx_pipeline.stream import sidecar


def main() -> int:
    variations = set(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    if "hour-off" in variations:
        real = time.time
        time.time = lambda: real() + 3600
    if "no-lock" in variations:
        SidecarLock.take = lambda self: True  # type: ignore[method-assign]
    if "small-buffer" in variations:
        sidecar.Lander.__init__.__kwdefaults__["capacity"] = 10
    try:
        sidecar.run(read_settings(), standby="standby" in variations, say=lambda line: print(line, flush=True))
    except PipelineError as problem:
        print(problem, file=sys.stderr)
        return int(problem.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
