"""Seeds derived from what they are for, so that a resumed run needs no saved generator state."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else.

    Args:
      parts: what the randomness is for, e.g. ``(seed, "order", epoch, stream_name)``.

    Returns: 0 <= seed < 2**63, the same on every machine and Python version.

    Example:
      >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3), derive_seed(0, "a") == derive_seed(0, "b")
      (True, False)
    """
    digest = hashlib.blake2b("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed`.

    Example:
      >>> torch.equal(torch.rand(2, generator=generator(0, "x")), torch.rand(2, generator=generator(0, "x")))
      True
    """
    return torch.Generator().manual_seed(derive_seed(*parts))


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed what draws on a device and on the CPU, as torch.manual_seed does.

    Without an accelerator torch.manual_seed spends more than a step of a small head costs: it notes a stack trace for
    each device that may be started later.

    Example:
      >>> seed_torch(3, torch.device("cpu"))
      >>> first = torch.rand(2)
      >>> _ = torch.manual_seed(3)
      >>> torch.equal(first, torch.rand(2))
      True
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
