"""What the processes of a pool save and restore together; the tests compare what they find.

A layout says how tensors lie on processes: the mesh's shape, and a placement for each of its axes.
Which values lie where is told by torch (`distribute_tensor`), not by what is tested.
"""

import errno
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from stemma.train import saving
from stemma.train.checkpoint import newest_checkpoint, restore, save_checkpoint
from stemma.train.saver import Saver, Saving
from stemma.train.slices import own_part, pieces_of

# even and uneven, more processes than rows, one axis to three
SHAPES = {"even": (8, 4), "uneven": (7, 5), "few": (3, 6), "experts": (5, 2, 3), "vector": (9,)}

# name: processes, mesh, and for each of its axes a placement: (axis,), (axis, split factor) or ()
LAYOUTS = {
    "alone": (1, (), ()),
    "rows of 2": (2, (2,), [(0,)]),
    "columns of 2": (2, (2,), [(1,)]),
    "copies of 2": (2, (2,), [()]),
    "plain on 2": (2, (), ()),
    "rows of 4": (4, (4,), [(0,)]),
    "columns of 4": (4, (4,), [(1,)]),
    "rows and columns": (4, (2, 2), [(0,), (1,)]),
    "rows of rows": (4, (2, 2), [(0,), (0,)]),
    "copies of columns": (4, (2, 2), [(), (1,)]),
    "sharded over tensor parallel": (4, (2, 2), [(0, 2), (0,)]),
    "columns over tensor parallel": (4, (2, 2), [(1, 2), (1,)]),
    "strides alone": (4, (2, 2), [(0, 3), ()]),
    "plain on 4": (4, (), ()),
}
MESHES = {}


def mesh_of(shape):
    """The mesh of a shape, made once in a process."""
    if shape not in MESHES:
        MESHES[shape] = init_device_mesh("cpu", shape)
    return MESHES[shape]


def placed(tensor, layout):
    """A tensor, the same on all processes, as a layout has it."""
    _, shape, placements = LAYOUTS[layout]
    if not shape or not tensor.ndim:
        return tensor
    last, made = tensor.ndim - 1, []
    for how in placements:
        axis = min(how[0], last) if how else 0
        made.append(
            _StridedShard(axis, split_factor=how[1])
            if len(how) == 2
            else Shard(axis)
            if how
            else Replicate()
        )
    return distribute_tensor(tensor, mesh_of(tuple(shape)), made, src_data_rank=None)


def values(name, shape, more=0):
    """Numbers that tell where they belong."""
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float32).view(shape) + 1000 * len(name) + more


def network(layout, *, filled):
    """A module and its optimizer, whose tensors lie as a layout says: values, or zeros."""
    module = nn.Module()
    optimizer_state = {}
    for name, shape in SHAPES.items():
        whole = values(name, shape)
        parameter = nn.Parameter(placed(whole if filled else torch.zeros_like(whole), layout))
        module.register_parameter(name, parameter)
        optimizer_state[parameter] = {
            "step": torch.tensor(3.0),
            "exp_avg": placed(values(name, shape, 0.5), layout),
        }
    module.register_buffer("count", torch.tensor(7 if filled else 0))
    optimizer = torch.optim.AdamW(module.parameters())
    if filled:
        optimizer.state.update(optimizer_state)
    return module, optimizer


def save(world, folder, layout, step=1):
    """Save as a layout lies; how many values and boxes this process holds."""
    module, optimizer = network(layout, filled=True)
    plan = {"layout": layout}
    state = {"step": step}
    save_checkpoint(
        Path(folder), module, optimizer, state, {"data": "a"}, world=world, parallel=plan
    )
    return [len(pieces_of(tensor)) for tensor in module.state_dict().values()]


def load(world, folders, layout):
    """Restore folders, one after another, into a layout; which tensors came back as others."""
    wrong, wanted = [], everything(*network(layout, filled=True))
    for folder in folders:
        found, damaged = newest_checkpoint(Path(folder), world=world)
        assert found is not None and not damaged
        module, optimizer = network(layout, filled=False)
        restore(found, module, optimizer)
        kept = everything(module, optimizer)
        assert kept.keys() == wanted.keys()
        wrong += [(folder, name) for name, tensor in kept.items() if not same(tensor, wanted[name])]
    return wrong


def everything(module, optimizer):
    """All tensors of a module and its optimizer by name."""
    found = dict(module.state_dict())
    for name, parameter in module.named_parameters():
        found |= {f"{name} {key}": value for key, value in optimizer.state[parameter].items()}
    return found


def same(tensor, wanted):
    """Whether two tensors lie alike, and hold the same values here."""
    if isinstance(wanted, DTensor) and tensor.placements != wanted.placements:
        return False
    return torch.equal(own_part(tensor), own_part(wanted))


def pieces_against_torch(world, layout):
    """Whether the boxes of every tensor hold what the whole tensor has there.

    The whole is put together by torch from the parts of all processes.
    """
    wrong = []
    module, _ = network(layout, filled=True)
    for name, tensor in module.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        seen = 0
        for piece in pieces_of(tensor):
            there = tuple(slice(a, a + n) for a, n in zip(piece.start, piece.shape, strict=True))
            if not torch.equal(own_part(tensor)[piece.here], whole[there]):
                wrong.append((name, piece.start))
            seen += torch.Size(piece.shape).numel()
        if seen != own_part(tensor).numel():
            wrong.append((name, "not all"))
    return wrong


def stages_of_a_pipeline(world, folder):
    """Each process saves its own layers, then restores those of its neighbour."""
    module = nn.Module()
    module.register_parameter(f"layer{world.rank}", nn.Parameter(values("layer", (4,), world.rank)))
    optimizer = torch.optim.AdamW(module.parameters())
    save_checkpoint(Path(folder), module, optimizer, {"step": 1}, {}, world=world)
    found, _ = newest_checkpoint(Path(folder), world=world)
    other, neighbour = nn.Module(), (world.rank + 1) % world.size
    other.register_parameter(f"layer{neighbour}", nn.Parameter(torch.zeros(4)))
    restore(found, other, torch.optim.AdamW(other.parameters()), whole=False)
    return torch.equal(other.get_parameter(f"layer{neighbour}"), values("layer", (4,), neighbour))


def different_tensors(world, folder):
    """Try to save tensors that do not belong together; the error."""
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.zeros(4 + world.rank)))
    return told(
        lambda: save_checkpoint(
            Path(folder),
            module,
            torch.optim.AdamW(module.parameters()),
            {"step": 1},
            {},
            world=world,
        )
    )


def told(work):
    """The kind and the words of what a piece of work raises."""
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def save_that_fails(world, folder, rank, phase, background=False):
    """Save a step while the disk of one process is full in one phase; what each raises."""
    module, optimizer = network("rows of 2", filled=True)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    names = {"begin": "make_folder", "write": "write_shard", "commit": "write_synced"}
    real = getattr(saving, names[phase])
    if world.rank == rank:
        setattr(saving, names[phase], full)
    try:
        if not background:
            given = Path(folder), module, optimizer, {"step": 2}, {}
            return told(lambda: save_checkpoint(*given, world=world))
        with Saver(Path(folder), Saving(background=True), world=world) as saver:
            saver.save(module, optimizer, {"step": 2}, {})
            return told(saver.wait)
    finally:
        setattr(saving, names[phase], real)


def background(world, folder):
    """Two saves in the background while values grow by 100; by how much the newest have grown."""
    module, optimizer = network("rows of 2", filled=True)
    with Saver(Path(folder), Saving(background=True), world=world) as saver:
        for step in (1, 2):
            saver.save(module, optimizer, {"step": step}, {})
            with torch.no_grad():
                for parameter in module.parameters():
                    own_part(parameter).add_(100)
    found, _ = newest_checkpoint(Path(folder), world=world)
    read, read_optimizer = network("alone", filled=False)
    restore(found, read, read_optimizer)
    grown = [p.detach() - values(name, p.shape) for name, p in read.named_parameters()]
    return sorted({float(value) for tensor in grown for value in (tensor.min(), tensor.max())})


def killed_while_saving(world, folder):
    """Save one step; save another, in which the last process is killed as it writes."""
    save(world, folder, "rows of 2", step=1)
    if world.rank == world.size - 1:
        saving.write_shard = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    return told(lambda: save(world, folder, "rows of 2", step=2))


def fully_sharded(world, folder, mesh):
    """A network as FSDP2, over tensor parallel where the mesh has two axes, lays it out.

    Every weight counts its own positions, so its parts tell where they lie.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values(name, parameter.shape))
    names = ("data", "tensor")[: len(mesh)]
    grid = init_device_mesh("cpu", tuple(mesh), mesh_dim_names=names)
    if len(mesh) == 2:
        plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
        parallelize_module(model, grid["tensor"], plan)
    fully_shard(model, mesh=grid["data"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone() * 1e-3
    optimizer.step()
    save_checkpoint(Path(folder), model, optimizer, {"step": 1}, {}, world=world)
    whole = {name: tensor.full_tensor().tolist() for name, tensor in model.state_dict().items()}
    found, _ = newest_checkpoint(Path(folder), world=world)
    before = [own_part(tensor).clone() for tensor in model.state_dict().values()]
    moments = [own_part(optimizer.state[p]["exp_avg"]).clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            own_part(parameter).zero_()
    optimizer.state.clear()
    restore(found, model, optimizer)
    after = [own_part(tensor) for tensor in model.state_dict().values()]
    again = [own_part(optimizer.state[p]["exp_avg"]) for p in model.parameters()]
    equal = all(map(torch.equal, before + moments, after + again))
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone() * 1e-3
    optimizer.step()  # what was restored is state that the optimizer can go on from
    return {"equal": equal, "whole": whole}
