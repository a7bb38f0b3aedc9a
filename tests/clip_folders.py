"""Two-tower and vision models of random weights, saved in folders as from_pretrained wants them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import two_towers

STATS = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}  # CLIP's, about
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save_two_tower(folder: Path, family: str, *, size_px: int, patch_px: int) -> Path:
    """CLIP's or SigLIP's format with a tokenizer of two_towers.WORDS and the preprocessing of ``size_px`` images."""
    text = {**two_towers.TEXT, **TOWER}
    vision = {**TOWER, "image_size": size_px, "patch_size": patch_px}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # of the token for the whole image, which is a vector
        model: Any
        if family == "clip":
            config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
            model = transformers.CLIPModel(config)
        else:
            text["projection_size"] = TOWER["hidden_size"]
            model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
        torch.manual_seed(2)  # from here on: releases of transformers draw their own weights differently
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
        model.logit_scale.data.fill_(math.log(20.0))
    model.save_pretrained(folder)
    two_towers.tokenizer(has_bos=family == "clip").save_pretrained(folder)
    _save_preprocessing(folder, size_px)
    return folder


def save_vision(folder: Path, *, size_px: int) -> Path:
    """A ViT, which knows no words."""
    config = transformers.ViTConfig(**TOWER, image_size=size_px, patch_size=size_px // 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        transformers.ViTModel(config).save_pretrained(folder)
    _save_preprocessing(folder, size_px)
    return folder


def _save_preprocessing(folder: Path, size_px: int) -> None:
    sizes = {"size": {"shortest_edge": size_px}, "crop_size": {"height": size_px, "width": size_px}}
    transformers.CLIPImageProcessorPil(**sizes, **STATS).save_pretrained(folder)
