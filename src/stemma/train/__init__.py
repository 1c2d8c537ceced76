"""The loop, optimizers, schedules, checkpoints, and one file per algorithm."""
