"""Processes that train together: who I am, what all agree on, and who is lost.

Each process is started by a launcher (torchrun, Slurm, Kubernetes) that says in the environment
which of how many it is and where they meet: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and
`MASTER_PORT`. Without these a process is alone, and everything here costs nothing.

What is exchanged are numbers and JSON: nothing is pickled. A thread in each process gives a sign of
life every second and listens for the others', so that a process that died or hangs ends the whole
group within `LATE` seconds, by name, instead of leaving it to wait for a collective for ever.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

from stemma.core.errors import ResourceError, StemmaError, UsageError, printable

MEET = 25.0  # seconds that the processes of a group may take to find each other
BEAT = 1.0  # seconds between two signs of life
LATE = 15.0  # seconds without one after which a process counts as lost
PATIENCE = timedelta(days=7)  # of a collective: who waits too long is found by the signs of life
AGAIN = "run the same command again: it goes on from the last checkpoint"

Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """The processes of one run, seen from one of them."""

    rank: int = 0
    size: int = 1
    group: Any = None  # torch's process group; None: that of all processes

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    def apart(self) -> "World":
        """The same processes over connections of their own, for a thread; all must ask.

        Messages of two threads over the same connections would be taken for each other's.
        """
        if self.size == 1:
            return self
        import torch  # noqa: PLC0415

        return replace(self, group=torch.distributed.new_group(backend="gloo"))

    def most(self, number: int) -> int:
        """The largest of the numbers that the processes give; all must ask."""
        if self.size == 1:
            return number
        import torch  # noqa: PLC0415

        value = torch.tensor([number])
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX, group=self.group)
        return int(value.item())

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, by rank; all must ask."""
        if self.size == 1:
            return [value]
        import torch  # noqa: PLC0415

        said = json.dumps(value).encode()
        padded = said.ljust(self.most(len(said)))  # JSON may end in spaces
        mine = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(every, mine, group=self.group)
        return [json.loads(each.numpy().tobytes()) for each in every]

    def told(self, work: Callable[[], Made]) -> Made:
        """What `work`, a JSON value, gives the leader; the others are told and do nothing.

        What the leader raises is raised by all.
        """
        made: Any = together(self, lambda: work() if self.leads else None)[0]
        found: Made = made
        return found

    def first(self, work: Callable[[], Made]) -> Made:
        """What `work` gives, done by the leader alone and then, when it is done, by the others.

        For what is written once and read by all. What the leader raises is raised by all.
        """
        made: list[Made] = []
        self.told(lambda: made.append(work()))
        return made[0] if made else work()

    def agree(self, values: Mapping[str, Any]) -> None:
        """Refuse to go on where the processes have different values (UsageError)."""
        every = self.gather(dict(values))
        for rank, theirs in enumerate(every):
            other = [key for key in values if theirs.get(key) != every[0].get(key)]
            if other:
                said = ", ".join(
                    f"{key} {every[0].get(key)} and {theirs.get(key)}" for key in other
                )
                what = f"ranks 0 and {rank} were started differently ({said})"
                raise UsageError(what, fix="start every process with the same command and recipe")


ALONE = World()


def together(world: World, work: Callable[[], Made]) -> list[Made]:
    """What `work`, a JSON value, gives in every process, by rank.

    Where it fails, all raise the error of the first that failed; nobody is left waiting.
    """
    if world.size == 1:
        return [work()]
    mine: Exception | None = None
    said: dict[str, Any] = {}
    try:
        said["made"] = work()
    except Exception as error:
        mine = error
        known = error if isinstance(error, StemmaError) else StemmaError(repr(error))
        said["error"] = spelled(known)
    every = world.gather(said)
    for rank, one in enumerate(every):
        if "error" in one:
            if rank == world.rank and mine is not None:
                raise mine
            told = one["error"]
            raise remade({**told, "what": f"rank {rank}: {told['what']}"}) from mine
    return [one["made"] for one in every]


def spelled(error: StemmaError) -> dict[str, Any]:
    """An error as JSON."""
    kind = type(error).__name__
    return {"kind": kind, "what": error.what, "place": error.place, "fix": error.fix}


def remade(said: Mapping[str, Any]) -> StemmaError:
    """An error that another process told of."""
    kinds = {kind.__name__: kind for kind in StemmaError.__subclasses__()}
    kind = kinds.get(str(said["kind"]), ResourceError)
    return kind(str(said["what"]), place=said["place"], fix=str(said["fix"]))


def number_of(name: str, environment: Mapping[str, str]) -> int:
    """A number that a launcher sets (UsageError where it is none)."""
    try:
        return int(environment[name])
    except (KeyError, ValueError) as error:
        got = environment.get(name, "nothing")
        fix = "start the processes by torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"
        raise UsageError(f"not a number ({got})", place=name, fix=fix) from error


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """The world of this process while the block runs: alone, or with those it was started with.

    Raises ResourceError, within `MEET` seconds, where they do not meet. An error of the block is
    told to the others, so that they say whose it was.
    """
    if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    rank, size = number_of("RANK", environment), number_of("WORLD_SIZE", environment)
    if not 0 <= rank < size:
        fix = f"ranks of {size} processes are 0 to {size - 1}"
        raise UsageError(f"no such rank ({rank} of {size})", place="RANK", fix=fix)
    world = World(rank, size)
    signs = meet(world, environment)
    signs.start()
    try:
        yield world
    except StemmaError as error:
        signs.leave(str(error), error.exit_code)
        # what is wrong for all is told by the leader; what this machine refuses, by itself
        error.quiet = not world.leads and not isinstance(error, ResourceError)
        raise
    except RuntimeError as error:
        if not of_the_group(error):
            signs.leave(f"{type(error).__name__}: {error}", StemmaError.exit_code)
            raise
        raise signs.blame(error) from error
    except BaseException as error:
        signs.leave("stopped by a signal", getattr(error, "exit_code", StemmaError.exit_code))
        raise
    else:
        signs.leave("", 0)
        import torch  # noqa: PLC0415

        torch.distributed.destroy_process_group()
    finally:
        signs.stop()


def of_the_group(error: BaseException) -> bool:
    """Whether an error says that a collective failed because of another process."""
    import torch  # noqa: PLC0415

    if isinstance(error, torch.distributed.DistError):
        return True
    return any(word in str(error).lower() for word in ("gloo", "nccl", "connection", "socket"))


def meet(world: World, environment: Mapping[str, str]) -> "Signs":
    """Join the process group, and say where each process is."""
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415

    if torch.cuda.is_available() and "LOCAL_RANK" in environment:
        torch.cuda.set_device(number_of("LOCAL_RANK", environment))  # each its own card
    host, port = environment.get("MASTER_ADDR", ""), number_of("MASTER_PORT", environment)
    where = f"{host}:{port}"
    patience = timedelta(seconds=MEET)
    try:
        # asks torchrun's own store where there is one, else rank 0 opens it
        store, _, _ = next(rendezvous(f"tcp://{where}", world.rank, world.size, timeout=patience))
        signs = Signs(world, store, where)
        signs.introduce()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise not_met(error, world, where) from error
    return signs


def not_met(error: BaseException, world: World, where: str) -> StemmaError:
    """Why the processes of a group did not find each other."""
    if isinstance(error, StemmaError):
        return error
    said = str(error)
    if "EADDRINUSE" in said or "in use" in said:
        fix = "another run has it: set MASTER_PORT, or torchrun --master-port, to a free one"
        return ResourceError("the port is in use", place=f"rank {world.rank}: {where}", fix=fix)
    what = f"the {world.size} processes did not meet within {MEET:g} s"
    fix = "check that all were started, and that MASTER_ADDR and MASTER_PORT can be reached"
    return ResourceError(what, place=f"rank {world.rank}: {where}", fix=fix)


class Signs:
    """Signs of life: this process gives its own and listens for those of all others.

    They go through the store of the group, each process counting up a number of its own.
    """

    def __init__(self, world: World, store: Any, where: str) -> None:
        self.world, self.where = world, where
        self.store = store.clone() if hasattr(store, "clone") else store
        self.ended = threading.Event()
        self.addresses: list[str] = []
        self.thread = threading.Thread(target=self._listen, name="stemma-signs", daemon=True)

    def introduce(self) -> None:
        """Say where this process is, and learn where the others are."""
        mine = f"{socket.gethostname()}, process {os.getpid()}"
        self.store.set(f"address/{self.world.rank}", mine)
        self.store.set(f"beat/{self.world.rank}", "0")
        keys = [f"address/{rank}" for rank in range(self.world.size)]
        deadline = time.monotonic() + MEET
        while not self.store.check(keys):
            if time.monotonic() > deadline:
                missing = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
                what = f"of {self.world.size} processes these did not come within {MEET:g} s"
                raise ResourceError(
                    f"{what}: ranks {', '.join(map(str, missing[:8]))}",
                    place=f"rank {self.world.rank}: {self.where}",
                    fix="start all of them, on machines that reach this address",
                )
            time.sleep(0.05)
        self.addresses = [self.store.get(key).decode() for key in keys]

    def start(self) -> None:
        """Begin to give signs and to listen."""
        self.thread.start()

    def stop(self) -> None:
        """No more signs."""
        self.ended.set()
        self.thread.join(timeout=2 * BEAT)

    def leave(self, why: str, code: int) -> None:
        """Tell the others that this process ends on purpose, why, and with which exit code."""
        with suppress(RuntimeError):
            self.store.set(f"left/{self.world.rank}", json.dumps({"why": why, "code": code}))
            self.store.set(f"beat/{self.world.rank}", "left")

    def name(self, rank: int) -> str:
        """A process as people find it."""
        return f"rank {rank} ({self.addresses[rank]})"

    def _listen(self) -> None:
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        heard = {rank: ("", time.monotonic()) for rank in others}
        count = 0
        while not self.ended.wait(BEAT):
            count += 1
            try:
                self.store.set(f"beat/{self.world.rank}", str(count))
                beats = self.store.multi_get([f"beat/{rank}" for rank in others])
            except RuntimeError:  # the store went with the process that held it
                if self.ended.wait(BEAT):
                    return
                end(ResourceError("the store of the group is gone", place=self.where, fix=AGAIN))
            now = time.monotonic()
            for rank, beat in zip(others, (b.decode() for b in beats), strict=True):
                if beat != heard[rank][0] or beat == "left":
                    heard[rank] = (beat, now)
                elif now - heard[rank][1] > LATE:
                    end(self.lost(rank))

    def lost(self, rank: int) -> ResourceError:
        """The error that names a process without a sign of life."""
        what = f"{self.name(rank)} has given no sign of life for {LATE:g} s"
        return ResourceError(what, place=f"rank {self.world.rank}", fix=AGAIN)

    def left(self, rank: int, said: Mapping[str, Any]) -> ResourceError:
        """The error that follows another process's, which has told it: so this one is quiet."""
        what = f"{self.name(rank)} has ended ({said['why'] or 'its work is done'})"
        error = ResourceError(what, place=f"rank {self.world.rank}", fix=AGAIN)
        error.exit_code, error.quiet = said["code"] or error.exit_code, bool(said["code"])
        return error

    def blame(self, error: BaseException) -> StemmaError:
        """Whose fault a failed collective is: who left and why, or who is lost.

        A process that died is known when its signs stay away, so this may take `LATE` seconds.
        """
        deadline = time.monotonic() + LATE + 2 * BEAT
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        before: dict[int, tuple[bytes, float]] = {}
        try:
            while time.monotonic() < deadline:
                for rank in others:
                    if self.store.check([f"left/{rank}"]):
                        return self.left(rank, json.loads(self.store.get(f"left/{rank}")))
                    beat, now = self.store.get(f"beat/{rank}"), time.monotonic()
                    if before.get(rank, (b"", now))[0] != beat:
                        before[rank] = (beat, now)
                    elif now - before[rank][1] > 3 * BEAT:  # a failed collective is proof enough
                        what = f"{self.name(rank)} is gone"
                        return ResourceError(what, place=f"rank {self.world.rank}", fix=AGAIN)
                time.sleep(BEAT / 5)
        except RuntimeError:
            return ResourceError("the store of the group is gone", place=self.where, fix=AGAIN)
        what = f"the processes cannot reach each other: {error}"
        return ResourceError(what, place=f"rank {self.world.rank}", fix=AGAIN)


def end(error: StemmaError) -> None:
    """Leave now, from a thread, with the error's line: the main thread waits for who is lost."""
    print(f"error: {printable(error)}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(error.exit_code)
