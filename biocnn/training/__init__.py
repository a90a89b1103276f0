"""Run folders, checkpoints, callbacks and the command line of the pipelines."""
