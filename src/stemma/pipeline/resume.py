"""Where training goes on: the newest checkpoint that verifies, if it fits what is trained now.

A checkpoint belongs to a network, a tokenizer and the settings by which it learned: those must be
the same. The token store, the packing plan, the order of samples and the number of steps may be
others where that was asked for (`--reset-data`): then training goes on with the weights, and the
change is written down.
"""

from dataclasses import dataclass, field
from typing import Any

from stemma.core import device as machine
from stemma.core.errors import ModelError
from stemma.core.files import sha256_json
from stemma.core.progress import LOG
from stemma.pipeline.records import SHOWN
from stemma.pipeline.work import Work
from stemma.train import checkpoint

DATA = {
    "data": "documents",
    "plan": "packing",
    "order": "order or size of batches",
    "length": "steps or micro-batches",
}
SINCE = ("order", "length")  # not written down by version 0.1: taken to be the same


@dataclass(frozen=True)
class Start:
    """Where a run begins: its checkpoint, if any, and all changes of its data so far."""

    found: checkpoint.Checkpoint | None = None
    data_resets: list[dict[str, Any]] = field(default_factory=list)
    reset: bool = False  # now, by this run

    @property
    def step(self) -> int:
        """Steps consumed before it."""
        return self.found.step if self.found else 0


def find_start(
    work: Work, fingerprints: dict[str, str], network: dict[str, Any], method: dict[str, Any]
) -> Start:
    """The newest checkpoint that verifies, if there is one.

    Raises ModelError, naming what differs with both values, where it is not one of this stage.
    """
    steps_folder = work.folder / "steps"
    if work.world.leads:
        checkpoint.clear_leftovers(steps_folder)
    found, damaged = checkpoint.newest_checkpoint(steps_folder, world=work.world)
    damaged = damaged if work.world.leads else []  # it is told once
    for error in damaged:
        what = "set aside a damaged checkpoint, as STEP.damaged: %s: %s"
        LOG.warning(what, error.place, error.what)
    if found is None:
        if damaged:
            LOG.warning("%s: no sound checkpoint is left, so it starts over", work.name)
        elif work.resumed:
            LOG.info("%s: no checkpoint yet: starts at step 0", work.name)
        return Start()
    require_same_model(work, found, fingerprints, network)
    require_same_method(work, found, method)
    tell_of_machine(work, found)
    world_size = found.manifest.get("world_size", 1)
    if world_size != work.world.size:
        what = "%s: written by %d processes, read by %d"
        LOG.info(what, work.name, world_size, work.world.size)
    resets = list(found.state.get("data_resets", []))
    now = data_reset(work, found, fingerprints)
    if now is not None:
        resets.append(now)
        LOG.warning("%s: goes on with other data from step %d", work.name, found.step)
    LOG.info("%s: resumed from step %d", work.name, found.step)
    return Start(found, resets, now is not None)


def require_same_model(
    work: Work,
    found: checkpoint.Checkpoint,
    fingerprints: dict[str, str],
    network: dict[str, Any],
) -> None:
    """Refuse a checkpoint of another network or tokenizer: its weights mean something else."""
    stored, others = found.manifest["fingerprints"], []
    if stored.get("config") != fingerprints["config"]:
        said = differing(found.state.get("model", {}), network)
        others.append(f"network ({said or shown('config', stored, fingerprints)})")
    if stored.get("tokenizer") != fingerprints["tokenizer"]:
        others.append(f"tokenizer ({shown('tokenizer', stored, fingerprints)})")
    if others:
        what = f"the checkpoint was made with another {' and '.join(others)}"
        fix = f"remove {work.folder} to train it again, or give back what it was trained with"
        raise ModelError(what, place=found.folder, fix=fix)


def require_same_method(work: Work, found: checkpoint.Checkpoint, method: dict[str, Any]) -> None:
    """Refuse a checkpoint that was made with other settings, as one copied from another run."""
    said = differing(found.state.get("settings", {}), method)
    if said:
        what = f"the checkpoint was made with other settings ({said})"
        fix = f"remove {work.folder} to train it again, or give back the settings"
        raise ModelError(what, place=found.folder, fix=fix)


def tell_of_machine(work: Work, found: checkpoint.Checkpoint) -> None:
    """Say where the last bits may differ from a run that was never stopped."""
    now = {**machine.machine(), **machine.versions()}
    then = {**found.state.get("machine", {}), **found.state.get("versions", {})}
    names = ("processor", "threads", "accelerator", "mkl_cbwr", "torch", "numpy")
    other = [name for name in names if name in then and then[name] != now.get(name)]
    if other:
        what = "%s: the checkpoint is of another %s, so last digits may differ"
        LOG.warning(what, work.name, " and ".join(other))


def differing(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What is not the same, with both values; empty where a checkpoint does not tell its own."""
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)] if there else []
    return "; ".join(f"{key} {there.get(key)}, here {here.get(key)}" for key in keys)


def shown(key: str, stored: dict[str, str], fingerprints: dict[str, str]) -> str:
    """Both fingerprints, short."""
    return f"{stored.get(key, 'unknown')[:SHOWN]}, here {fingerprints[key][:SHOWN]}"


def data_reset(
    work: Work, found: checkpoint.Checkpoint, fingerprints: dict[str, str]
) -> dict[str, Any] | None:
    """The change of data at this step, None where the data are the same.

    Raises ModelError where they are not, and it was not asked for.
    """
    stored = found.manifest["fingerprints"]
    unknown = {} if work.reset_data else {key: fingerprints[key] for key in SINCE}
    stored = unknown | stored
    other = [key for key in DATA if stored.get(key) != fingerprints[key]]
    if not other:
        return None
    if not work.reset_data:
        said = "; ".join(f"{DATA[key]} {shown(key, stored, fingerprints)}" for key in other)
        fix = "--reset-data goes on with its weights, or give back what it was trained on"
        raise ModelError(
            f"the checkpoint was made with other data ({said})", place=found.folder, fix=fix
        )
    if "places" not in found.state:
        what = "written by a version that kept no count of places, so its data cannot change"
        fix = "finish it with the data it began with, without --reset-data"
        raise ModelError(what, place=found.folder, fix=fix)
    return {
        "step": found.step,
        "from": sha256_json([stored.get(key) for key in DATA]),
        "to": sha256_json([fingerprints[key] for key in DATA]),
    }
