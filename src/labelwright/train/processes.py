"""The same work on one process or many: sharding, gathering, averaging. Identity when there is only one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from labelwright import allocator, launch
from labelwright.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

ItemT = TypeVar("ItemT")
WAITING = timedelta(hours=12)  # of one process for another


def device_for(device: str) -> torch.device:
    """The device that `accelerator_for` computes on, without the second that accelerate takes to load.

    On a CPU blocks of memory are kept from then on, see `allocator`.

    Raises: ConfigError as there.

    Example:
      >>> device_for("cpu")
      device(type='cpu')
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not known", fix="use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch sees no CUDA device", fix="use --device auto or cpu")
    if device == "cpu" or not torch.cuda.is_available():
        allocator.keep_blocks()
        return torch.device("cpu")
    return torch.device("cuda")


def accelerator_for(device: str) -> Accelerator:
    """The accelerator of this process on "auto", "cpu" or "cuda".

    Raises: ConfigError if CUDA is asked for and there is none.

    Example:
      >>> accelerator_for("cpu").device.type
      'cpu'
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    wants_cpu = device_for(device).type == "cpu"
    launch.asks_for_fsdp()  # see there
    # accelerate keeps one state per process and refuses another device in it: begin a new one when the device changes.
    if AcceleratorState._shared_state and (AcceleratorState().device.type == "cpu") != wants_cpu:
        AcceleratorState._reset_state(True)
    # Processes wait for the first one while it asks a chat model; launchers end them all when one has ended.
    return Accelerator(cpu=wants_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=WAITING)])


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """The dtype that forward passes autocast to, None for plain float32.

    Args:
      precision: "auto", "bf16" or "fp32"; auto is bf16 where the hardware is quicker in it.

    Raises: ConfigError for another precision.

    Source: ours (`benchmarks/precision.py`): processors of Intel without AMX know bfloat16, and are slower in it.

    Example:
      >>> autocast_dtype(torch.device("cpu"), "fp32") is None, autocast_dtype(torch.device("cpu"), "bf16")
      (True, torch.bfloat16)
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"precision {precision!r} is not known", fix="use auto, bf16 or fp32")
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            able = torch.cpu.get_capabilities()
            is_intel = "intel" in str(able.get("cpu_name", "")).lower()
            native = bool(able.get("amx_bf16") or (able.get("avx512_bf16") and not is_intel))
        return torch.bfloat16 if native else None
    return torch.bfloat16 if precision == "bf16" else None


def shard(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's share of a batch: every n-th row."""
    return rows[accelerator.process_index :: accelerator.num_processes]


def n_processes() -> int:
    """Of this run, once `accelerator_for` has been called; 1 without a launcher.

    Example:
      >>> n_processes()
      1
    """
    is_one = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    return 1 if is_one else torch.distributed.get_world_size()


@contextmanager
def _exchange() -> Iterator[None]:
    """Around what needs every process: if one has ended, the others end as well, with a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"another process of this run has ended ({str(error).splitlines()[0][:100]})",
            fix="see what it wrote; the same command continues, a fit with --resume, on any number of processes",
        ) from error


@contextmanager
def exchanging() -> Iterator[None]:
    """The same around work that exchanges now and then, as FSDP does by itself: other errors stay as they are."""
    try:
        yield
    except RuntimeError as error:
        is_of_exchange = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if n_processes() == 1 or not is_of_exchange:
            raise
        with _exchange():
            raise


def wait_for_all() -> None:
    """Go on when every process has come here.

    Raises: TrainingError if one has ended.
    """
    if n_processes() > 1:
        with _exchange():
            torch.distributed.barrier()


def is_any(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process.

    Example:
      >>> is_any(True, torch.device("cpu"))
      True
    """
    if n_processes() == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    with _exchange():
        torch.distributed.all_reduce(found)
    return bool(found > 0)


def gather_objects(value: ItemT) -> list[ItemT]:
    """What each process has, in the order of the processes; anything that can be pickled.

    Example:
      >>> gather_objects("a")
      ['a']
    """
    if n_processes() == 1:
        return [value]
    found: list[Any] = [None] * n_processes()
    with _exchange():
        torch.distributed.all_gather_object(found, value)
    return found


def gather_rows(x: Tensor) -> Tensor:
    """Rows of every process, in the order of the unsharded batch, if each process holds equally many.

    Recipes call this on what they fold into their state, so that every process keeps the same state. [B / processes,
    ...], this process's share as `shard` deals it, becomes [B, ...]; x itself when there is one process.

    Example:
      >>> gather_rows(torch.tensor([1, 2])).tolist()
      [1, 2]
    """
    if n_processes() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(n_processes())]
    with _exchange():
        torch.distributed.all_gather(parts, x.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)  # [B/n, n, ...] -> [B, ...]


def gather_queries(x: Tensor) -> Tensor:
    """Rows of every process, as `gather_rows`; gradients flow to this process's own.

    For losses that contrast the rows of a batch with one another: each process has the loss of the whole batch, to be
    put through `sum_gradients`.

    Example:
      >>> gather_queries(torch.ones(2, 1, requires_grad=True)).sum().backward()
    """
    if n_processes() == 1:
        return x
    rank = torch.distributed.get_rank()
    dealt = gather_rows(x.detach()).view(len(x), n_processes(), -1)
    return torch.cat([dealt[:, :rank], x[:, None], dealt[:, rank + 1 :]], dim=1).flatten(0, 1)


def sum_gradients(loss: Tensor) -> Tensor:
    """The same scalar with gradients times the number of processes, for a loss of what `gather_queries` gave.

    Every process has the loss of the whole batch, with gradients of its own rows alone: the loop averages those.

    Example:
      >>> sum_gradients(torch.tensor(2.0)).item()
      2.0
    """
    if n_processes() == 1:
        return loss
    return loss + (n_processes() - 1) * (loss - loss.detach())


def mean_share(total: Tensor) -> Tensor:
    """What a mean over this process's rows must be multiplied by, so that the average of gradients is the global mean.

    A recipe that divides a loss by a sum of weights W divides by its own W only; times W over the mean W of all
    processes, the average over processes is the sum of all weighted rows over the sum of all weights.

    Args:
      total: scalar >= 0, what this process divided by.

    Returns: scalar: ``total`` over its mean over processes (0 if that is 0); 1 when there is one process.

    Example:
      >>> mean_share(torch.tensor(7.0)).item()
      1.0
    """
    if n_processes() == 1:
        return torch.ones_like(total)
    mean = total.detach().clone()
    with _exchange():
        torch.distributed.all_reduce(mean)
    mean /= n_processes()
    return total.detach() / torch.where(mean > 0, mean, 1.0)


def is_share(x: Any) -> bool:
    """Whether a tensor is this process's share of a larger one, of FSDP."""
    return hasattr(x, "full_tensor")


def average_grads(params: list[Tensor], accelerator: Accelerator) -> None:
    """Average gradients over processes, in place, in one exchange."""
    if accelerator.num_processes == 1:
        return
    grads = [p.grad for p in params if p.grad is not None and not is_share(p.grad)]  # those of FSDP are averaged
    flat = torch.cat([grad.flatten() for grad in grads])
    with _exchange():
        torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def average_buffers(net: nn.Module, accelerator: Accelerator) -> None:
    """Average floating-point buffers (batch-norm statistics) over processes, in place."""
    if accelerator.num_processes == 1:
        return
    for buffer in net.buffers():
        if buffer.is_floating_point():
            with _exchange():
                torch.distributed.all_reduce(buffer)
            buffer /= accelerator.num_processes
