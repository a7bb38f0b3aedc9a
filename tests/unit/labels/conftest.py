"""Traffic signs as a real, small vision-language model sees them; embedded once."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from labelwright.encoders.clip import load_two_tower
from labelwright.encoders.embed import concepts_of
from labelwright.types import Concepts

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))


@dataclass(frozen=True)
class Signs:
    """3,000 test images of GTSRB, drawn evenly, and what tiny-clip says of the 43 names and of descriptions."""

    z: Tensor
    truth: Tensor
    class_names: tuple[str, ...]
    concepts: Concepts

    def at(self, name: str) -> int:
        return self.class_names.index(name)

    def recall(self, class_feats: Tensor) -> Tensor:
        """[C] share of each class's images that these class features get right."""
        right = ((self.z @ class_feats.T).argmax(1) == self.truth).double()
        sums = torch.zeros(len(class_feats), dtype=torch.float64).index_add_(0, self.truth, right)
        return sums / torch.bincount(self.truth, minlength=len(class_feats))


@pytest.fixture(scope="session")
def signs() -> Signs:
    for path in ("data/gtsrb-test.parquet", "models/tiny-clip", "models/descriptions.json"):
        if not (SHARED / path).exists():
            pytest.skip(f"no {SHARED / path}: set LABELWRIGHT_SHARED")
    whole = pq.read_table(SHARED / "data/gtsrb-test.parquet")
    class_names = json.loads(whole.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    some = whole.take(np.sort(np.random.default_rng(0).permutation(len(whole))[:3000]))
    images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in some["image"].to_pylist()]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
    tower = load_two_tower(str(SHARED / "models/tiny-clip"), device=torch.device("cpu"), precision="fp32")
    mean, std = (torch.tensor(values)[:, None, None] for values in (tower.stats.mean, tower.stats.std))
    z = torch.cat([tower.image_feats((part - mean) / std) for part in x.split(500)])
    looks = json.loads((SHARED / "models/descriptions.json").read_text(encoding="utf-8"))["gtsrb"]
    concepts = concepts_of(tower, class_names, templates="one", descriptions=looks)
    return Signs(z, torch.tensor(some["label"].to_numpy()), tuple(class_names), concepts)
