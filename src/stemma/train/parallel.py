"""Parallel plans, applied from outside: no model, block or loss mentions them.

A group of processes is a mesh: `replicas` that hold a copy each (data parallel), `shards` that a
copy is spread over (FSDP, arXiv:2304.11277; ZeRO stage 3, arXiv:1910.02054), and `tensor` ranks
that share each layer's heads and hidden units (Megatron, arXiv:1909.08053, section 3). Replicas and
shards read different samples, tensor ranks the same ones. Every parameter keeps its name; what a
process holds of it is a `DTensor`, which knows its place in the whole.

The gradient of a step is the sum over all its tokens divided by their number, wherever they were
read, so the plan changes rounding and nothing else.

Axes: B batch, T time, H heads, C model width, F inner width
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from stemma.core.distributed import World
from stemma.core.errors import UsageError
from stemma.nn.attention import Attention, CrossAttention
from stemma.nn.linear_attention import LinearAttention
from stemma.nn.mlp import GLU, MLP
from stemma.nn.relative import RelativeBias
from stemma.nn.seq2seq import Seq2Seq
from stemma.nn.stack import Block
from stemma.train.division import Parallel

DATA = ("replica", "shard")
AXES = (*DATA, "tensor")
ENTRIES = ("hidden", "encode", "decode")  # methods by which a pass may begin, besides forward


def mesh_of(world: World, plan: Parallel, device_type: str) -> DeviceMesh:
    """The mesh of a plan. Raises UsageError where the processes do not divide."""
    shape = (plan.replicas(world.size), plan.shards, plan.tensor)
    return init_device_mesh(device_type, shape, mesh_dim_names=AXES)


def distribute(model: nn.Module, mesh: DeviceMesh, *, offload: bool = False) -> "Spread":
    """Spread a model over the mesh, in place. Its parameters keep their names.

    With `offload` what is sharded lies in the CPU's memory. Raises UsageError where heads or hidden
    units do not divide by the tensor ranks.
    """
    tensor_ranks = mesh["tensor"]
    partly_used = share_layers(model, tensor_ranks) if tensor_ranks.size() > 1 else ()
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh[DATA], offload_policy=policy)
    fully_shard(model, mesh=mesh[DATA], offload_policy=policy)
    for name in ENTRIES:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    sharded = tuple(module for module in model.modules() if isinstance(module, FSDPModule))
    for module in sharded:
        # the loss is divided by the tokens of all processes: gradients are summed, not averaged
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        # memory that a pass for scoring were the first to take could not be trained in
        module.unshard()
        module.reshard()
    return Spread(model, mesh, sharded, partly_used, data_group_of(mesh))


def data_group_of(mesh: DeviceMesh) -> ProcessGroup | None:
    """The processes that read the other parts of the same batch; None where they are all."""
    return None if mesh["tensor"].size() == 1 else mesh[DATA]._flatten("data").get_group()


@dataclass(frozen=True)
class Spread:
    """A model spread over a mesh of processes, as a stage and its loop meet it.

    `sharded` are the modules that FSDP gathers one by one; `partly_used` names parameters that each
    tensor rank uses for its own heads alone; `data_group` are those with other samples.
    """

    model: nn.Module
    mesh: DeviceMesh
    sharded: tuple[FSDPModule, ...]
    partly_used: tuple[str, ...]
    data_group: ProcessGroup | None

    @property
    def part(self) -> int:
        """Which part of every batch this process reads."""
        replica, shard = (self.mesh.get_local_rank(axis) for axis in DATA)
        return replica * self.mesh["shard"].size() + shard

    @property
    def parts(self) -> int:
        """In how many parts a batch is read."""
        return self.mesh["replica"].size() * self.mesh["shard"].size()

    def sums(self, *numbers: float) -> list[float]:
        """Sums over all parts of the batch, in fp64."""
        values = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(values, group=self.data_group)
        return [float(value) for value in values]

    def begin_backward(self, *, last: bool) -> None:
        """Say whether the coming pass is the last of its step: only then replicas sum up."""
        for module in self.sharded:
            module.set_requires_all_reduce(last, recurse=False)
            module.set_is_last_backward(last)

    def clip(self, limit: float) -> Tensor:
        """Scale the gradient of all processes to a norm of at most `limit`; returns its norm.

        Infinite and undefined numbers come back as they are, on every process alike.
        """
        for name in self.partly_used:
            gradient = self.model.get_parameter(name).grad
            if gradient is not None:
                ranks = self.mesh["tensor"].get_group()
                torch.distributed.all_reduce(local(gradient), group=ranks)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        square = sum(own_square(gradient, self.mesh.size()) for gradient in gradients)
        total = torch.as_tensor(square, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        norm = total.sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            local(gradient).mul_(scale)
        return norm

    def rest(self) -> None:
        """Give back what a pass without gradients gathered: weights are then in their place."""
        for module in self.sharded:
            module.reshard()

    def whole(self) -> dict[str, Tensor]:
        """Every parameter and buffer in full, on the CPU; all processes must ask."""
        self.rest()
        state = self.model.state_dict()
        return {
            name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu()
            for name, t in state.items()
        }


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_square(gradient: Tensor, size: int) -> Tensor:
    """This process's part of the squared norm: that of its values, shared among all who hold them.

    Summed over `size` processes it is the square of the whole gradient's norm.
    """
    holders = size
    if isinstance(gradient, DTensor):
        sharded = [n for n, p in enumerate(gradient.placements) if not p.is_replicate()]
        holders //= math.prod(gradient.device_mesh.size(n) for n in sharded)
    return local(gradient).double().square().sum() / holders


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks that are gathered one by one; what is in none is gathered with the whole model.

    In a sequence to sequence network gradients reach the encoder by the states that it leaves, not
    by what its blocks give, and FSDP would not see them come.
    """
    if isinstance(model, Seq2Seq):
        return
    yield from (module for module in model.modules() if isinstance(module, Block))


def share_layers(model: nn.Module, mesh: DeviceMesh) -> tuple[str, ...]:
    """Give each rank of the mesh its heads and hidden units; the rest stays whole on all.

    Returns the names of parameters that stay whole and of which each rank uses its heads' part.
    """
    partly_used = []
    for name, layer in model.named_modules():
        if type(layer) in PLANS:
            PLANS[type(layer)](layer, name, mesh)
        if isinstance(layer, RelativeBias):
            partly_used.append(f"{name}.weight")
        if isinstance(layer, Attention):
            for norm in ("query_norm", "key_norm"):
                own = layer.get_submodule(norm).named_parameters(prefix=f"{name}.{norm}")
                partly_used += [each for each, _ in own]
    return tuple(partly_used)


def share_attention(layer: Any, name: str, mesh: DeviceMesh) -> None:
    """Heads go to the ranks in order; the outputs are summed."""
    for projection in ("query", "key", "value"):
        heads = getattr(layer, projection).out_features // layer.head_dim
        divides(heads, f"{name}: {projection} heads", mesh)
    columns(layer, ("query", "key", "value"), mesh)
    rows(layer, ("output",), mesh)
    if isinstance(layer, Attention):
        heads = layer.query.out_features // layer.head_dim
        layer.first_head = mesh.get_local_rank() * (heads // mesh.size())


def share_linear_attention(layer: Any, name: str, mesh: DeviceMesh) -> None:
    """Heads go to the ranks in order, the rate of writing with them."""
    divides(layer.query.out_features // layer.head_dim, f"{name}: heads", mesh)
    columns(layer, ("query", "key", "value"), mesh)
    if layer.beta is not None:
        columns(layer, ("beta",), mesh)
    rows(layer, ("output",), mesh)


def share_mlp(layer: Any, name: str, mesh: DeviceMesh) -> None:
    """Hidden units go to the ranks; the outputs are summed."""
    divides(layer.up.out_features, f"{name}: hidden units", mesh)
    columns(layer, tuple(part for part in ("gate", "up") if hasattr(layer, part)), mesh)
    rows(layer, ("down",), mesh)


PLANS: dict[type, Callable[[Any, str, DeviceMesh], None]] = {
    Attention: share_attention,
    CrossAttention: share_attention,
    LinearAttention: share_linear_attention,
    MLP: share_mlp,
    GLU: share_mlp,
}
"""How the ranks share a kind of layer. Other kinds stay whole: each rank computes them alike."""


def divides(count: int, what: str, mesh: DeviceMesh) -> None:
    """Refuse a number that the ranks cannot share evenly, with the nearest number of ranks."""
    if count % mesh.size() == 0:
        return
    valid = [size for size in range(1, count + 1) if count % size == 0]
    near = min(valid, key=lambda size: (abs(size - mesh.size()), size))
    said = f"{what} ({count}) are no multiple of tensor ({mesh.size()})"
    raise UsageError(said, place="parallel", fix=f"use tensor: {near}")


def columns(layer: nn.Module, names: Iterable[str], mesh: DeviceMesh) -> None:
    """Cut linear layers along what they give."""
    for name in names:
        parallelize_module(layer.get_submodule(name), mesh, ColwiseParallel())


def rows(layer: nn.Module, names: Iterable[str], mesh: DeviceMesh) -> None:
    """Cut linear layers along what they take, and sum what they give over the ranks."""
    for name in names:
        parallelize_module(layer.get_submodule(name), mesh, RowwiseParallel())
