"""A tuned tower in shares, one a process: its weights, gradients and the optimizer's state (FSDP, of PyTorch).

`accelerate launch --use_fsdp` asks for it. Of every network that a checkpoint of transformers is tuned in, the tower is
shared out block by block; its head, batch statistics and everything else stay whole, as without. Checkpoints hold whole
tensors: a run goes on with any number of processes, with and without FSDP.

Source: Zhao et al. 2023 (arXiv 2304.11277); `torch.distributed.fsdp.fully_shard`, which accelerate calls on GPUs, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labelwright import launch
from labelwright.errors import ConfigError
from labelwright.train.processes import is_share, n_processes


def is_wanted() -> bool:
    """Whether a launcher asked for it, and there are processes to share with.

    Example:
      >>> is_wanted()
      False
    """
    return launch.asks_for_fsdp() and n_processes() > 1


def check_tunes(is_tuned: bool) -> None:
    """Refuse FSDP where no tower is tuned: there is nothing large to share out.

    Raises: ConfigError.
    """
    if is_wanted() and not is_tuned:
        raise ConfigError(
            "--use_fsdp shares out a pretrained network that is tuned, and this run tunes none",
            fix="launch with --multi_gpu instead; or tune one: --views pixels --model with a model of transformers",
        )


def _towers(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if hasattr(module, "block_kinds")]


def shared_out(nets: Mapping[str, nn.Module], sources: Mapping[str, str], device: torch.device) -> dict[str, nn.Module]:
    """Share out the towers that are tuned, in place.

    Args:
      nets: by name, on ``device``.   sources: of networks that follow another one as its average, that one's name.

    Returns: name -> a copy of each network concerned, without its weights, for `whole_again`.
    """
    if not is_wanted():
        return {}
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    tuned = {
        name for name, net in nets.items() if any(p.requires_grad for tower in _towers(net) for p in tower.parameters())
    }
    tuned |= {name for name, source in sources.items() if source in tuned}
    mesh, kept = init_device_mesh(device.type, (n_processes(),)), dict[str, nn.Module]()
    for name in sorted(tuned):
        net = nets[name]
        hollow = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in net.parameters()}
        kept[name] = copy.deepcopy(net, dict[int, Any](hollow))
        for tower in _towers(net):
            for parameter in tower.parameters():
                parameter.data = parameter.data.contiguous()
            blocks: Any = tower.block_kinds
            for module in list(tower.modules()):
                if type(module).__name__ in blocks:
                    fully_shard(module, mesh=mesh)
            fully_shard(tower, mesh=mesh, reshard_after_forward=True)  # also where no gradient follows: averages change
    return kept


def whole_again(nets: Mapping[str, nn.Module], kept: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks as they were before `shared_out`, with the weights and statistics that they have now."""
    found = dict(nets)
    for name, empty in kept.items():
        net = nets[name]
        needs = {key: parameter.requires_grad for key, parameter in net.named_parameters()}
        for key, value in net.named_parameters():
            owner, _, own = key.rpartition(".")
            setattr(empty.get_submodule(owner), own, nn.Parameter(whole(value.detach()), requires_grad=needs[key]))
        for old, now in zip(empty.buffers(), net.buffers(), strict=True):
            old.copy_(now)
        found[name] = empty.train(net.training)
    return found


def whole(x: Any) -> Any:
    """A tensor of which every process has a share, gathered; whatever else as it is, and all in dicts and lists.

    Every process has to come here.
    """
    if isinstance(x, Mapping):
        return {key: whole(value) for key, value in x.items()}
    if isinstance(x, list):
        return [whole(value) for value in x]
    return x.full_tensor() if is_share(x) else x


def own(x: Tensor) -> Tensor:
    """This process's share of a tensor, of the same memory; of any other tensor all.

    Example:
      >>> own(torch.ones(2)).tolist()
      [1.0, 1.0]
    """
    share: Tensor = x.to_local() if is_share(x) else x  # type: ignore[attr-defined]
    return share


def like(x: Tensor, of: Any) -> Tensor:
    """A whole tensor as shares, as those of another of its shape; as it is where the other has none."""
    if not is_share(of) or x.shape != of.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(of.device), of.device_mesh, of.placements)


def share_state(optimizer: torch.optim.Optimizer) -> None:
    """Share out what an optimizer keeps of weights that are shared out, after it was loaded whole."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = like(value, parameter)


def norm(grads: Sequence[Tensor]) -> Tensor:
    """Euclidean length of gradients together, scalar, whole ones and shares.

    Example:
      >>> norm([torch.tensor([3.0]), torch.tensor([4.0])]).item()
      5.0
    """
    shares, others = [own(x) for x in grads if is_share(x)], [x for x in grads if not is_share(x)]
    of_shares = _square(shares, grads[0].device)
    if shares:
        torch.distributed.all_reduce(of_shares)
    return (of_shares + _square(others, grads[0].device)).sqrt()


def _square(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    return sum((x.square().sum() for x in tensors), torch.zeros((), device=device))
