"""`python -m okx_pipeline` is the command `okx-pipeline`."""

from okx_pipeline.cli import main

main()
