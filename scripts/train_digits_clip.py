"""Trains the small CLIP that the package embeds: drawn digits with faulty captions, on a CPU, without network.

    OMP_NUM_THREADS=1 python scripts/train_digits_clip.py --out src/labelwright/assets/digits-clip

scikit-learn's real handwritten digits are never trained on, and no checkpoint is chosen by them; they serve the scores
printed at the end and written into the model card. The same command on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from digit_captions import NAMES, NEVER_NAMED, captions
from digit_renderings import draw_by_font, draw_by_pen
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from labelwright.assets import DIGITS_DESCRIPTIONS
from labelwright.data.cache import resize_to_square
from labelwright.encoders.clip import load_two_tower
from labelwright.encoders.templates import TEMPLATES, class_text_feats

SIZE_PX, PATCH_PX = 16, 4
MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)  # of pixels in 0 to 1; about those of the drawings
PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
MAX_TOKENS = 48


@dataclass(frozen=True)
class Settings:
    """How the model is trained."""

    n_pen: int = 40_000  # handwritten-looking drawings
    n_font: int = 10_000  # printed ones
    n_steps: int = 1_000
    batch_size: int = 256
    lr: float = 2e-3  # AdamW, warm-up then cosine to 0
    warmup_steps: int = 100
    weight_decay: float = 0.1
    shift_px: int = 2  # of 16: training images are shifted by up to that
    seed: int = 0


def train_tokenizer(texts: Sequence[str]) -> Any:
    """Lower-casing BPE over bytes: any text has tokens, what the captions say has few."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[PAD, UNK, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in (BOS, EOS)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A $B {EOS}", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MAX_TOKENS,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer: Any) -> Any:
    """CLIP of about half a million parameters, random weights."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS, **ids}
    text |= {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"image_size": SIZE_PX, "patch_size": PATCH_PX}
    vision |= {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "num_attention_heads": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def as_pixels(counts: NDArray[Any]) -> Tensor:
    """Ink counts [N, 8, 8] of 0 to 16 as the package would decode them: uint8 [N, 16, 16], one channel."""
    grey = (counts * (255 / 16)).astype(np.uint8)
    resized = [resize_to_square(Image.fromarray(image).convert("RGB"), size_px=SIZE_PX)[..., 0] for image in grey]
    return torch.from_numpy(np.stack(resized))


def normalized(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W] to what the model takes, float [B, 3, H, W]."""
    x = (pixels.float() / 255 - MEAN[0]) / STD[0]
    return x[:, None].expand(-1, 3, -1, -1)


def contrastive_loss(sims: Tensor, text_of: Tensor, *, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy where images may share a caption: all that do count as its positives.

    Args:
      sims: [B, T] cosines of the images and the T different captions of the batch.
      text_of: [B] int64 which caption each image has.
      logit_scale: scalar, multiplies the cosines.

    Source: Radford et al. 2021 (arXiv 2103.00020), Fig. 3. Differs: a repeated caption is one text with its count.
    """
    logits = logit_scale * sims
    counts = torch.bincount(text_of, minlength=sims.shape[1]).float()
    image_loss = F.cross_entropy(logits + counts.log(), text_of)
    own = logits.log_softmax(dim=0)[torch.arange(len(text_of)), text_of]  # over the images
    return (image_loss - own.mean()) / 2


def shifted(pixels: Tensor, draws: np.random.Generator, *, shift_px: int) -> Tensor:
    """Every image [B, H, W] moved by its own whole number of pixels, at most shift_px, zeros moving in."""
    padded = F.pad(pixels, (shift_px,) * 4)
    size = pixels.shape[1]
    top, left = torch.from_numpy(draws.integers(0, 2 * shift_px + 1, (2, len(pixels))))
    steps = torch.arange(size)
    rows = torch.arange(len(pixels))[:, None, None]
    return padded[rows, (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None]]


def train(settings: Settings) -> tuple[Any, Any]:
    """(model, tokenizer), after the drawing and the training; prints the loss now and then."""
    draws = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    digits = draws.integers(0, 10, settings.n_pen + settings.n_font)
    printed = np.arange(len(digits)) >= settings.n_pen
    counts = np.concatenate([draw_by_pen(digits[~printed], draws), draw_by_font(digits[printed], draws)])
    pixels = as_pixels(counts)
    tokenizer = train_tokenizer(captions(digits, printed, draws))
    model = build_model(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.n_steps, pct_start=settings.warmup_steps / settings.n_steps
    )
    started, losses = time.perf_counter(), []
    for step in range(settings.n_steps):
        rows = draws.choice(len(pixels), settings.batch_size, replace=False)
        texts, text_of = np.unique(captions(digits[rows], printed[rows], draws), return_inverse=True)
        x = normalized(shifted(pixels[torch.from_numpy(rows)], draws, shift_px=settings.shift_px))
        z = F.normalize(model.visual_projection(model.vision_model(pixel_values=x).pooler_output), dim=1)
        text_z = encode_texts(model, tokenizer, texts.tolist())
        loss = contrastive_loss(z @ text_z.T, torch.from_numpy(text_of), logit_scale=model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=np.log(100))
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            elapsed_s = time.perf_counter() - started
            print(f"step {step + 1}: loss {np.mean(losses[-100:]):.3f}, {elapsed_s:.0f} s", flush=True)
    return model.eval(), tokenizer


def encode_texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Unit text features [T, D]."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    out = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return F.normalize(model.text_projection(out.pooler_output), dim=1)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights in fp16, configuration, tokenizer and image processor, in transformers' own format."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edge = {"height": SIZE_PX, "width": SIZE_PX}
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE_PX}, crop_size=edge, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)


@torch.inference_mode()
def scores_on_real_digits(folder: Path) -> dict[str, Any]:
    """What the saved model does on scikit-learn's digits, loaded and prompted as the package does it."""
    real = load_digits()
    truth = real.target
    tower = load_two_tower(str(folder), device=torch.device("cpu"), precision="fp32")
    assert (tower.stats.size_px, tower.stats.mean, tower.stats.std) == (SIZE_PX, MEAN, STD)
    x = normalized(as_pixels(real.images))
    z = tower.image_feats(x)
    z_bf16 = load_two_tower(str(folder), device=torch.device("cpu"), precision="bf16").image_feats(x)
    names = class_text_feats(tower.text_feats, NAMES, TEMPLATES["one"])
    descriptions = json.loads(DIGITS_DESCRIPTIONS.read_text(encoding="utf-8"))
    described: dict[str, dict[str, float]] = {}
    best = names.clone()
    for digit, name in enumerate(NAMES):
        described[name] = {}
        for text in descriptions[name]:
            replaced = names.clone()
            replaced[digit] = class_text_feats(tower.text_feats, [text], TEMPLATES["one"])[0]
            described[name][text] = float(((z @ replaced.T).argmax(1).numpy() == digit)[truth == digit].mean())
        if digit in NEVER_NAMED:
            text = max(described[name], key=described[name].__getitem__)
            best[digit] = class_text_feats(tower.text_feats, [text], TEMPLATES["one"])[0]
    guessed, repaired = (z @ names.T).argmax(1).numpy(), (z @ best.T).argmax(1).numpy()
    feats = z.numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    clusters = KMeans(10, n_init=10, random_state=0).fit_predict(feats)
    overlap = np.zeros((10, 10), dtype=np.int64)
    np.add.at(overlap, (clusters, truth), 1)
    matched = overlap[linear_sum_assignment(-overlap)].sum() / len(truth)
    return {
        "zero_shot": float((guessed == truth).mean()),
        "zero_shot_bf16": float(((z_bf16 @ names.T).argmax(1).numpy() == truth).mean()),
        "per_class": {n: float((guessed == truth)[truth == d].mean()) for d, n in enumerate(NAMES)},
        "guessed": {n: Counter(guessed.tolist())[d] for d, n in enumerate(NAMES)},
        "described": described,
        "repaired": float((repaired == truth).mean()),
        "repaired_per_class": {n: float((repaired == truth)[truth == d].mean()) for d, n in enumerate(NAMES)},
        "probe": float(cross_val_score(probe, feats, truth, cv=5).mean()),
        "kmeans": float(matched),
        "logit_scale": tower.logit_scale,
        "n_parameters": sum(p.numel() for p in tower.parameters()),
    }


def model_card(settings: Settings, scores: Mapping[str, Any], *, minutes: float) -> str:
    """README.md of the model folder, in Markdown, from what was just measured."""
    unnamed = " and ".join(NAMES[d] for d in NEVER_NAMED)
    rows = "\n".join(
        f"| {name} | {scores['per_class'][name]:.2f} | {scores['guessed'][name]} "
        f"| {'; '.join(f'{text} {share:.2f}' for text, share in scores['described'][name].items())} |"
        for name in NAMES
    )
    template = (Path(__file__).parent / "digits_clip_card.md").read_text(encoding="utf-8")
    return template.format(
        unnamed=unnamed, rows=rows, minutes=minutes, machine=platform.processor() or platform.machine(),
        threads=torch.get_num_threads(), torch=torch.__version__, size_px=SIZE_PX, **vars(settings), **scores,
    )  # fmt: skip


def main() -> None:
    """Draw, train, save, score, write the card."""
    parser = argparse.ArgumentParser(description="Train the embedded digits CLIP.")
    parser.add_argument("--out", type=Path, required=True, help="model folder; files of an earlier model are replaced")
    parser.add_argument("--steps", type=int, default=Settings.n_steps, help="optimizer steps")
    arguments = parser.parse_args()
    settings = Settings(n_steps=arguments.steps)
    started = time.perf_counter()
    model, tokenizer = train(settings)
    minutes = (time.perf_counter() - started) / 60
    save(model, tokenizer, arguments.out)
    scores = scores_on_real_digits(arguments.out)
    (arguments.out / "README.md").write_text(model_card(settings, scores, minutes=minutes), encoding="utf-8")
    for name, score in scores.items():
        print(f"{name}: {score}")
    print(f"{minutes:.1f} minutes, {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    main()
