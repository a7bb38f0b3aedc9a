"""Low-rank updates of a two-tower model's attention, through the peft library."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.clip import TwoTower
from labelwright.encoders.towers import check_class_texts, encode_tokens
from labelwright.errors import ConfigError


class LoraTowers(nn.Module):
    """A copy of a two-tower model with low-rank updates; only these are parameters and state.

    A weight W of the layers named becomes W + B A, with A random and B zero at first: the untrained towers give the
    features of the model as it was.

    Args:
      tower: a loaded model, on the device where views will be; a copy of it is tuned.
      class_texts: C texts as the text tower shall read them, as in "a photo of a cat".
      rank: of the updates, >= 1.   targets: names of linear layers within the layers of each tower's encoder.
      seed: of the random A; the global random state is left as it was.

    Raises: ConfigError: a setting out of range, a target that no tower has, no class texts.

    Source: Hu et al. 2022 (arXiv 2106.09685), Eq. (3); for CLIP: Zanella and Ben Ayed 2024 (arXiv 2405.18541).

    Example: the small model inside the package; what of it is trained.
      >>> from labelwright.encoders.clip import load_two_tower
      >>> tower = load_two_tower("labelwright/digits-clip", device=torch.device("cpu"))
      >>> net = LoraTowers(tower, ["one", "two"], rank=2, targets=("q_proj",), seed=0)
      >>> sorted({tuple(value.shape) for value in net.state_dict().values()})
      [(2, 64), (2, 96), (64, 2), (96, 2)]
    """

    def __init__(
        self,
        tower: TwoTower,
        class_texts: Sequence[str],
        *,
        rank: int = 4,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        seed: int,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"rank is {rank}", fix="give 1 or more")
        check_class_texts(class_texts)
        tuned = copy.deepcopy(tower)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _inject(tuned, rank=rank, targets=targets)
        self._held = (tuned,)  # in a tuple, not a submodule: frozen weights are neither parameters nor state
        self.logit_scale = tower.logit_scale
        self.updates = nn.ParameterDict(
            {
                name.removesuffix(".default.weight").replace(".", "/"): parameter
                for name, parameter in tuned.model.named_parameters()
                if parameter.requires_grad
            }
        )
        self._inputs = tuned.tokenize(class_texts)

    @property
    def tower(self) -> TwoTower:
        """The tuned copy of the model."""
        return self._held[0]

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of normalised pixels [B, 3, H, W]."""
        return F.normalize(self.tower.vision(x).float(), dim=1)

    def text_feats(self) -> Tensor:
        """Unit features [C, D] float32 of the classes; differentiable."""
        return encode_tokens(self.tower, self._inputs)

    def merged(self) -> TwoTower:
        """A plain, frozen model with the updates added to its weights, for export; this one goes on as it is."""
        from peft.tuners.lora import LoraLayer

        tuned = self.tower
        model = copy.deepcopy(tuned.model)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())
        return TwoTower(model, tuned.tokenizer, name=tuned.name, stats=tuned.stats, precision=tuned.precision)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoraTowers:
        # The updates are parameters of the tower too, and move with it.
        self.tower._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._inputs = {key: value.to(self.tower.device) for key, value in self._inputs.items()}
        return self


def _inject(tower: TwoTower, *, rank: int, targets: Sequence[str]) -> None:
    """Put trainable updates beside the target layers of a tower, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    def pattern(target: str) -> str:
        return rf"(vision|text)_model\.(.+\.)?encoder\.layers?\.\d+\.(.+\.)?{re.escape(target)}"

    linear = [name for name, layer in tower.model.named_modules() if isinstance(layer, nn.Linear)]
    for target in targets:
        if not any(re.fullmatch(pattern(target), name) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear if re.fullmatch(pattern("") + ".+", name)})
            raise ConfigError(
                f"the encoder of {tower.name} has no linear layer {target!r}", fix=f"it has {', '.join(known)}"
            )
    settings: Any = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(pattern, targets)))
    inject_adapter_in_model(settings, tower.model)
