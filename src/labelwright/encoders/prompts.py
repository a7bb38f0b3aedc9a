"""Learnable tokens inside a frozen two-tower model: CoOp in the text tower, deep VPT in the image tower, MaPLe in both.

The towers run their own code (masks, positions, pooling); hooks that last for one call put the tokens in. A text
prompt takes the places of the first words of "a photo of a ...", so nothing moves in the text tower. Visual tokens go
behind the patches, without a position, and are taken out again behind the last layer, before any pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.clip import TwoTower
from labelwright.encoders.pretrained import VisionModel
from labelwright.encoders.templates import fill
from labelwright.encoders.towers import Shared, check_class_texts, encode_tokens
from labelwright.errors import ConfigError

Kind = Literal["coop", "vpt", "maple"]
WORDS = ("a", "photo", "of", "a")  # what text tokens start from
INIT_STD = 0.02  # of tokens that do not start from words: CoOp's and MaPLe's published code


class PromptedTowers(nn.Module):
    """A frozen two-tower model with learnable prompts; these, and MaPLe's couplings, are all its parameters and state.

    "coop" learns ``n_context`` tokens before the class text. "vpt" learns ``n_context`` visual tokens for each of the
    first ``depth`` layers of the image tower. "maple" learns text tokens for each of the first ``depth`` layers, and a
    linear coupling per layer that makes the visual tokens out of them. From the second layer on, a layer's own tokens
    take the places of what the layer before made of its tokens.

    Text tokens start from the first words of "a photo of a", and the words left over stay as they are: MaPLe's 2 tokens
    for "a photo" are followed by "of a" and the class text.

    Args:
      tower: a loaded model, on the device where views will be; it is shared, not changed.
      class_texts: C names or descriptions; "a photo of a" is put before each (by `encoders.templates.fill`).
      n_context: learnable tokens per layer, >= 1; of a text at most one for each of the four words.
      depth: layers with tokens of their own, cut to what the towers have: >= 1, for "vpt" also 0; "coop" has one.
      seed: of random tokens and couplings; the global random state is left as it was.

    Raises: ConfigError: a setting out of range, a model of another build than CLIP's or SigLIP's, no class texts.

    Source: Zhou et al. 2022 (arXiv 2109.01134), Sec. 3.2; Jia et al. 2022 (arXiv 2203.12119), Sec. 3.2 (VPT-deep);
      Khattak et al. 2023 (arXiv 2210.03117), Sec. 3.2. Differs: where the image tower pools over all tokens (SigLIP),
      visual prompts are left out of the pool, as they are of CLIP's.

    Example: the small model inside the package; what of it is trained.
      >>> from labelwright.encoders.clip import load_two_tower
      >>> tower = load_two_tower("labelwright/digits-clip", device=torch.device("cpu"))
      >>> net = PromptedTowers(tower, ["one", "two"], kind="vpt", n_context=3, seed=0)
      >>> {name: tuple(value.shape) for name, value in net.state_dict().items()}
      {'visual_prompts': (4, 3, 96)}
    """

    text_prompts: nn.Parameter | None  # [depth, n_context, text width]
    visual_prompts: nn.Parameter | None  # [depth, n_context, image width], of "vpt"; MaPLe computes them

    def __init__(
        self,
        tower: TwoTower,
        class_texts: Sequence[str],
        *,
        kind: Kind,
        n_context: int = 2,
        depth: int = 8,
        seed: int,
    ) -> None:
        super().__init__()
        if kind not in ("coop", "vpt", "maple"):
            raise ConfigError(f"unknown kind of prompts: {kind!r}", fix="use coop, vpt or maple")
        if not 1 <= n_context <= len(WORDS):
            raise ConfigError(f"n_context is {n_context}", fix=f"give 1 to {len(WORDS)} tokens")
        if depth < (kind == "maple"):
            raise ConfigError(f"depth is {depth}", fix="give the number of layers with prompts, 1 or more")
        self._shared = Shared(tower)
        self.logit_scale = tower.logit_scale
        self.kind = kind
        sides = {"coop": ("text",), "vpt": ("vision",), "maple": ("text", "vision")}[kind]
        depth = min([1 if kind == "coop" else depth, *(len(_layers(tower, side)) for side in sides)])
        widths = {side: int(getattr(tower.config, f"{side}_config").hidden_size) for side in sides}
        words = tower.tokenizer(" ".join(WORDS), add_special_tokens=False)["input_ids"][:n_context]
        self.register_parameter("text_prompts", None)
        self.register_parameter("visual_prompts", None)
        self.couplings = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if "text" in sides:
                tokens = INIT_STD * torch.randn(depth, n_context, widths["text"])
                tokens[0] = tower.model.text_model.embeddings.token_embedding.weight[words].cpu()
                self.text_prompts = nn.Parameter(tokens)
            if kind == "maple":
                self.couplings.extend(nn.Linear(widths["text"], widths["vision"]) for _ in range(depth))
            if kind == "vpt" and depth:
                self.visual_prompts = nn.Parameter(INIT_STD * torch.randn(depth, n_context, widths["vision"]))
        self._inputs: dict[str, Tensor] = {}
        self._start = 0
        self._plain_text_feats: Tensor | None = None
        self.to(tower.device)
        self._take_texts(class_texts, words)

    @property
    def tower(self) -> TwoTower:
        """The frozen model."""
        tower: TwoTower = self._shared.module
        return tower

    def prompts_for_images(self) -> Tensor | None:
        """Visual tokens [depth, n_context, image width], None where there are none."""
        if self.kind == "maple" and self.text_prompts is not None:
            return torch.stack([couple(t) for couple, t in zip(self.couplings, self.text_prompts, strict=True)])
        return self.visual_prompts

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of normalised pixels [B, 3, H, W]."""
        prompts = self.prompts_for_images()
        if prompts is None:
            return self.tower.image_feats(x)
        return F.normalize(feats_with_prompts(self.tower.vision, prompts, x).float(), dim=1)

    def text_feats(self) -> Tensor:
        """Unit features [C, D] float32 of the classes; differentiable where text prompts are learned."""
        if self._plain_text_feats is not None:
            return self._plain_text_feats
        return encode_tokens(self.tower, self._inputs, altered=self._with_text_prompts)

    def _take_texts(self, class_texts: Sequence[str], words: Sequence[int]) -> None:
        """Tokens of the classes; ``words`` are the ids that learnable tokens replace."""
        check_class_texts(class_texts)
        filled = [fill(f"{' '.join(WORDS)} {{}}", text) for text in class_texts]
        if self.text_prompts is None:
            self._plain_text_feats = self.tower.text_feats(filled)
            return
        self._inputs = self.tower.tokenize(filled)
        tokenizer = self.tower.tokenizer
        first = self._inputs["input_ids"][0, 0].item()
        self._start = int(first in (tokenizer.bos_token_id, tokenizer.cls_token_id))
        there = self._inputs["input_ids"][:, self._start : self._start + len(words)]
        kept = (there == there.new_tensor(words)).all(dim=1).tolist()
        if not all(kept):  # the name's own first word ("two dogs") has come where a learnable token belongs
            filled = [
                text if same else f"{' '.join(WORDS)} {name}"
                for text, same, name in zip(filled, kept, class_texts, strict=True)
            ]
            self._inputs = self.tower.tokenize(filled)

    def export(self) -> VisionModel | PromptedVision:
        """The image tower as it is now, x -> feats [B, D]; it shares the frozen weights with the model."""
        prompts = self.prompts_for_images()
        if prompts is None:
            return self.tower.vision
        return PromptedVision(self.tower.vision, prompts.detach().float().clone())

    @contextmanager
    def _with_text_prompts(self) -> Iterator[None]:
        assert self.text_prompts is not None
        text = self.tower.model.text_model
        first, *deeper = self.text_prompts
        with ExitStack() as hooks:
            put = _put(first, self._start)
            hooks.enter_context(
                text.embeddings.token_embedding.register_forward_hook(lambda _module, _args, out: put(out))
            )
            _replace_before(hooks, text.encoder.layers[1:], deeper, self._start)
            yield

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PromptedTowers:
        self.tower._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._inputs = {key: value.to(self.tower.device) for key, value in self._inputs.items()}
        if self._plain_text_feats is not None:
            self._plain_text_feats = self._plain_text_feats.to(self.tower.device)
        return self


class PromptedVision(nn.Module):
    """An image tower of CLIP's or SigLIP's build with visual prompts [depth, n_tokens, width], as it is saved."""

    def __init__(self, vision: VisionModel, prompts: Tensor) -> None:
        super().__init__()
        self.vision = vision
        self.prompts = nn.Parameter(prompts, requires_grad=False)
        self.config = vision.config

    @property
    def prompt_config(self) -> dict[str, int]:
        """What `rebuild_prompted_vision` needs beside the image tower, ready for JSON."""
        depth, n_tokens, _ = self.prompts.shape
        return {"depth": depth, "n_tokens": n_tokens}

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to feats [B, D]."""
        return feats_with_prompts(self.vision, self.prompts, x)


def rebuild_prompted_vision(vision: VisionModel, prompt_config: Mapping[str, int]) -> PromptedVision:
    """The module that ``prompt_config`` describes, with prompts of zeros: give it the saved ones by load_state_dict.

    Args:
      vision: as made by `encoders.pretrained.from_transformers_config`.   prompt_config: "depth" and "n_tokens".

    Raises: ConfigError if a key is missing.
    """
    missing = [key for key in ("depth", "n_tokens") if key not in prompt_config]
    if missing:
        raise ConfigError(f"prompt config lacks {', '.join(missing)}", fix="save it from PromptedVision.prompt_config")
    model: Any = vision.model
    shape = (prompt_config["depth"], prompt_config["n_tokens"], model.config.hidden_size)
    return PromptedVision(vision, torch.zeros(shape))


def feats_with_prompts(vision: VisionModel, prompts: Tensor, x: Tensor) -> Tensor:
    """Feats [B, D] of normalised pixels x [B, 3, H, W] with learnable tokens [depth, n, width] in the first layers."""
    if not len(prompts):
        feats: Tensor = vision(x)
        return feats
    model: Any = vision.model
    first, *deeper = prompts
    n = len(first)

    def append(_module: nn.Module, _args: Any, hidden: Tensor) -> Tensor:
        return torch.cat([hidden, first.to(hidden.dtype).expand(len(hidden), -1, -1)], dim=1)

    def take_out(_module: nn.Module, _args: Any, out: Any) -> Any:
        out.last_hidden_state = out.last_hidden_state[:, :-n]
        return out

    with ExitStack() as hooks:
        hooks.enter_context(model.embeddings.register_forward_hook(append))
        _replace_before(hooks, model.encoder.layers[1:], deeper, -n)
        hooks.enter_context(model.encoder.register_forward_hook(take_out))
        feats = vision(x)
    return feats


def _put(prompt: Tensor, start: int) -> Callable[[Tensor], Tensor]:
    """What writes [n, D] over places start to start + n of hidden states [B, L, D]; a negative start counts from L."""

    def put(hidden: Tensor) -> Tensor:
        at = start % hidden.shape[1]
        tokens = prompt.to(hidden.dtype).expand(len(hidden), -1, -1)
        return torch.cat([hidden[:, :at], tokens, hidden[:, at + len(prompt) :]], dim=1)

    return put


def _replace_before(hooks: ExitStack, layers: Sequence[nn.Module], prompts: Sequence[Tensor], start: int) -> None:
    """Until the hooks close, each layer that has a prompt reads it in place of the tokens that were there."""

    def hook(put: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _module, args: (put(args[0]), *args[1:])

    for layer, prompt in zip(layers, prompts, strict=False):  # layers beyond the depth have no prompt
        hooks.enter_context(layer.register_forward_pre_hook(hook(_put(prompt, start))))


def _layers(tower: TwoTower, side: str) -> Sequence[nn.Module]:
    """The layers of one tower, if it is built as CLIP's and SigLIP's are."""
    part: Any = tower.vision.model if side == "vision" else tower.model.text_model
    layers = getattr(getattr(part, "encoder", None), "layers", None)
    embedding = "patch_embedding" if side == "vision" else "token_embedding"
    if layers is None or not hasattr(getattr(part, "embeddings", None), embedding):
        raise ConfigError(
            f"the {side} side of {tower.name} ({tower.config.model_type}) is not built to take prompts",
            fix="use a model of the CLIP or SigLIP family, or train adapters on its features",
        )
    found: Sequence[nn.Module] = layers
    return found
