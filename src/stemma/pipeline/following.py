"""What the processes do that do not lead: they wait, and take part in stages that train.

The leader plans the run, runs all other stages alone, and keeps the records. At a stage that trains
it invites the others, by the name of the stage and what its work is made of.
"""

from pathlib import Path
from typing import Any

from stemma.core.distributed import World
from stemma.core.errors import ResourceError
from stemma.pipeline.work import Input, Work

DONE = {"done": True}


def invitation(work: Work) -> dict[str, Any]:
    """What another process needs to take part in a stage."""
    return {
        "name": work.name,
        "folder": str(work.folder.absolute()),
        "seed": work.seed,
        "inputs": {n: [str(i.path.absolute()), i.fingerprint] for n, i in work.inputs.items()},
        "files": {
            key: [
                [str(root.absolute()), [str(f.absolute()) for f in files]] for root, files in some
            ]
            for key, some in work.files.items()
        },
        "resumed": work.resumed,
        "reset_data": work.reset_data,
        "data_resets": work.data_resets,
    }


def invite(work: Work) -> None:
    """Let the other processes begin the stage with this one."""
    work.world.gather(invitation(work))


def dismiss(world: World) -> None:
    """Tell the other processes that the run has ended."""
    world.gather(DONE)


def accepted(world: World) -> Work | None:
    """Wait for the next stage to take part in; None where there is none any more.

    Raises ResourceError where this machine does not see the run folder.
    """
    said = world.gather(None)[0]
    if said == DONE:
        return None
    folder = Path(said["folder"])
    if not folder.is_dir():
        what, fix = "the run folder is not there", "let all machines see it, or choose out=FOLDER"
        raise ResourceError(what, place=f"rank {world.rank}: {folder}", fix=fix)
    groups = {
        key: [(Path(root), [Path(file) for file in files]) for root, files in some]
        for key, some in said["files"].items()
    }
    return Work(
        said["name"],
        folder,
        said["seed"],
        inputs={name: Input(Path(path), mark) for name, (path, mark) in said["inputs"].items()},
        files=groups,
        resumed=said["resumed"],
        reset_data=said["reset_data"],
        data_resets=said["data_resets"],
        world=world,
    )
