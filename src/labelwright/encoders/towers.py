"""What a recipe sees of a vision-language model: features of views, features of classes, and how sharp their match is.

Four ways to get them, exchangeable in a recipe: `EmbeddedTowers` (stored features: nothing is encoded any more),
`FrozenTowers` (pixels through a frozen model), `prompts.PromptedTowers` and `lora.LoraTowers` (tuned models).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labelwright.encoders.clip import TwoTower, pooled
from labelwright.errors import ConfigError

TEXT_CHUNK = 128  # texts encoded at a time: of more than these, activations are computed again for the gradient


class Towers(Protocol):
    """Features of views and of classes in one space; logits are ``logit_scale * features @ text_feats.T``."""

    logit_scale: float  # > 0, multiplies cosines

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of views."""
        ...

    def text_feats(self) -> Tensor:
        """Unit features [C, D] float32 of the classes."""
        ...


class EmbeddedTowers(nn.Module):
    """Views that are features already, as an embedding store gives them, beside fixed features of the classes.

    Args:
      class_feats: [C, D] float, any length > 0; kept with unit norm, and saved with the recipe's networks.
      logit_scale: > 0.

    Example:
      >>> towers = EmbeddedTowers(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), logit_scale=10.0)
      >>> z = towers.features(torch.tensor([[3.0, 4.0]]))
      >>> [round(v, 4) for v in (towers.logit_scale * z @ towers.text_feats().T).flatten().tolist()]
      [6.0, 8.0]
    """

    def __init__(self, class_feats: Tensor, *, logit_scale: float) -> None:
        super().__init__()
        self.logit_scale = float(logit_scale)
        self.class_feats: Tensor
        self.register_buffer("class_feats", F.normalize(class_feats.detach().float(), dim=1))

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of stored features [B, D]."""
        return F.normalize(x.float(), dim=1)

    def text_feats(self) -> Tensor:
        """Unit features [C, D] float32 of the classes."""
        return self.class_feats


class Shared:
    """A frozen module kept out of its owner's parameters and state; a copy of the owner refers to the same one."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self


class FrozenTowers(nn.Module):
    """Pixels through a frozen two-tower model; no parameters of its own, the model is not part of its state.

    Args:
      tower: a loaded model, on the device where views will be.
      class_feats: [C, D] unit features of the classes.

    Example: the small model inside the package.
      >>> from labelwright.encoders.clip import load_two_tower
      >>> tower = load_two_tower("labelwright/digits-clip", device=torch.device("cpu"))
      >>> towers = FrozenTowers(tower, tower.text_feats(["one", "two"]))
      >>> tuple(towers.features(torch.zeros(5, 3, 16, 16)).shape), tuple(towers.text_feats().shape)
      ((5, 64), (2, 64))
    """

    def __init__(self, tower: TwoTower, class_feats: Tensor) -> None:
        super().__init__()
        self._shared = Shared(tower)
        self.logit_scale = tower.logit_scale
        self.class_feats: Tensor
        self.register_buffer("class_feats", class_feats.to(tower.device), persistent=False)

    @property
    def tower(self) -> TwoTower:
        """The frozen model."""
        tower: TwoTower = self._shared.module
        return tower

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of normalised pixels [B, 3, H, W]."""
        return self.tower.image_feats(x)

    def text_feats(self) -> Tensor:
        """Unit features [C, D] float32 of the classes."""
        return self.class_feats

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTowers:
        self.tower._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def check_class_texts(class_texts: Sequence[str]) -> None:
    """Refuse class texts of which one is empty, or none at all: ConfigError."""
    if not class_texts:
        raise ConfigError("no class texts were given", fix="give one text per class")
    for i, text in enumerate(class_texts):
        if not text.strip():
            raise ConfigError(f"class {i} has an empty text", fix="give every class a name or description")


def encode_tokens(
    tower: TwoTower,
    inputs: Mapping[str, Tensor],
    *,
    altered: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Unit features of tokenised texts, with gradients, in chunks of TEXT_CHUNK.

    Args:
      tower: the model; whatever of it requires a gradient gets one.   inputs: as made by its ``tokenize``, [T, L] each.
      altered: opens a context in which the model is changed; entered for every chunk, and again for its gradient.

    Returns: [T, D] float32, unit norm.
    """

    def encode(chunk: dict[str, Tensor]) -> Tensor:
        with altered():
            return pooled(tower.model.get_text_features(**chunk))

    n_texts = len(inputs["input_ids"])
    saves_memory = n_texts > TEXT_CHUNK and torch.is_grad_enabled()
    parts = []
    for start in range(0, n_texts, TEXT_CHUNK):
        chunk = {key: value[start : start + TEXT_CHUNK] for key, value in inputs.items()}
        parts.append(checkpoint(encode, chunk, use_reentrant=False) if saves_memory else encode(chunk))
    return F.normalize(torch.cat(parts).float(), dim=1)
