"""A model spread over ranks with FSDP2: each holds 1/N of every weight, gradient and optimiser state.

:func:`shard` wraps modules, :func:`gathered` makes the state of an unsharded run of a sharded one, and
:func:`scattered` the reverse, so a run saved by any number of ranks resumes with any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.nets.lora import load_trained_state
from training.parallel.group import Ranks


def shard(ranks: Ranks, device: torch.device, root: nn.Module, parts: Sequence[nn.Module] = ()) -> None:
    """Spread the parameters of ``root`` over the ranks, in place; those of ``parts`` are gathered part by part.

    The full weights may be on the CPU: a part at a time moves to ``device``. Gradients are summed over the ranks, not
    averaged, since losses are divided by the counts of all ranks.
    """
    if ranks.size == 1:
        return
    mesh = init_device_mesh(device.type, (ranks.size,))
    for module in (*parts, root):
        # What the root itself holds serves again after its forward: the head in the loss.
        fully_shard(module, mesh=mesh, reshard_after_forward=module is not root)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or the whole of one that is spread; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(state: Any, ranks: Ranks) -> Any:
    """The same state with whole tensors on the CPU of rank 0; the other ranks get None in their place.

    Every rank must call it with the same structure. One tensor at a time exists as a whole on the device.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if ranks.first else None
    if isinstance(state, Mapping):
        return {name: gathered(value, ranks) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, ranks) for value in state)
    return state


def scattered(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, spread as ``like`` is; the tensor itself if that is not spread."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_sharded(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`model.nets.lora.trained_state` saved into a module, sharded or not.

    Raises:
        RuntimeError: it belongs to another model or to other LoRA settings.
    """
    own = module.state_dict()
    load_trained_state(module, {name: scattered(value, own.get(name, value)) for name, value in state.items()})


def spread_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The saved state of an optimiser with its tensors spread as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        **state,
        "state": {
            number: {
                name: scattered(value, parameters[number])
                if isinstance(value, Tensor) and value.shape == parameters[number].shape
                else value
                for name, value in own.items()
            }
            for number, own in state["state"].items()
            if number < len(parameters)
        },
    }
