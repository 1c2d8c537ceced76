"""Whole recipes in the processes of a pool."""

import json
import os
import signal
import threading
import time
from pathlib import Path

from stemma.core.errors import StemmaError
from stemma.pipeline import recipe as recipes
from stemma.pipeline import runner
from stemma.train.checkpoint import checkpoints


def stop_after(steps_folder, step):
    """Ask this process to stop, by the signal that a cluster sends, once a checkpoint is there."""
    while not any(int(folder.name) >= step for folder in checkpoints(steps_folder)):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGTERM)


def run(world, folder, overrides, *, stop=None):
    """Run `tiny.yaml` of a folder; `stop` is a stage, a step, and the rank that is asked to stop.

    Returns how it ended, and the rows of the histories of the last stage.
    """
    path = Path(folder) / "tiny.yaml"
    loaded = recipes.load(path, overrides)
    out = Path(folder) / (loaded.out or "out")
    job = runner.Run(
        recipe=loaded,
        root=path.parent,
        out=out,
        recipe_text=path.read_text(),
        command=["stemma", "run", str(path)],
        overrides=tuple(overrides),
        world=world,
    )
    if stop is not None and stop["rank"] == world.rank:
        asked = (out / stop["stage"] / "steps", stop["step"])
        threading.Thread(target=stop_after, args=asked, daemon=True).start()
    try:
        if world.leads:
            runner.execute(job, say=lambda line: None)
        else:
            runner.follow(job)
        ended = "done"
    except StemmaError as error:
        ended = f"{type(error).__name__}: {error}"
    history = out / list(loaded.stages)[-1] / "metrics.jsonl"
    lines = history.read_text().splitlines()[1:] if history.exists() else []
    return {"ended": ended, "metrics": [json.loads(line) for line in lines]}
