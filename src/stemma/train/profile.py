"""What a few steps spend their time on: a trace for chrome://tracing or Perfetto."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field
from torch.profiler import profile

from stemma.core.config import StrictModel
from stemma.core.files import make_folder

Item = TypeVar("Item")


class Profile(StrictModel):
    """Steps whose operations are traced."""

    step: int = Field(default=10, ge=0, description="the first step to trace, counted from 0")
    steps: int = Field(default=0, ge=0, description="steps to trace; 0: none")


def profiled(
    items: Iterable[Item], settings: Profile, *, first_step: int, folder: Path
) -> Iterator[Item]:
    """The same steps; those that are asked for leave a trace `steps-FIRST.json` in `folder`.

    A step begins when its item is asked for and ends when it comes; what its receiver does with it
    is in the trace too, but of the last one.
    """
    recorder: Any = None
    last = settings.step + settings.steps - 1
    iterator, step = iter(items), first_step
    while True:
        if settings.steps and step == settings.step:
            recorder = profile()  # of processor and accelerator, as far as there is one
            recorder.start()
        item = next(iterator, None)
        if recorder is not None and (item is None or step == last):
            recorder.stop()
            write_trace(recorder, folder / f"steps-{settings.step:08d}.json")
            recorder = None
        if item is None:
            return
        yield item
        step += 1


def write_trace(recorder: Any, path: Path) -> None:
    """Write a trace whole or not at all."""
    make_folder(path.parent)
    hidden = path.with_name(f".{path.name}")
    recorder.export_chrome_trace(str(hidden))
    hidden.replace(path)
