"""Images and embeddings in the forms that shards come in, and models to label them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from labelwright.data.views import ViewSettings
from labelwright.encoders import backbones
from labelwright.pipeline.saved_model import save_model

VIEW = ViewSettings(flip=False, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop="pad")
NAMES = ("ant", "bee", "cow")


def model_of_images(folder: Path) -> Path:
    """A network of random weights that takes images of 8 px."""
    net = backbones.build("resnet32", 3, image_size_px=8, seed=1)
    net.train()
    net(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))  # running statistics move
    save_model(folder, net, class_names=NAMES, size_px=8, view=VIEW, info={"method": "ce"})
    return folder


def model_of_embeddings(folder: Path, n_features: int = 4) -> Path:
    """A linear classifier of embeddings, of random weights."""
    net = backbones.Classifier(
        backbones.Stored(), name="stored", n_features=n_features, n_outputs=3, head="linear", image_size_px=0, freeze=()
    )
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(2))
    save_model(folder, net, class_names=NAMES, size_px=0, view=VIEW, info={})
    return folder


def as_parquet(photos: Path, path: Path, *, row_group: int, as_paths: bool = False) -> Path:
    """The images of class folders as a Parquet file of bytes, or of paths from its folder."""
    files = sorted(photos.rglob("*.png"))
    images = [str(file.relative_to(path.parent)) if as_paths else file.read_bytes() for file in files]
    columns = {"image": images, "label": [file.parent.name for file in files], "id": [str(f) for f in files]}
    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    return path


def as_tars(photos: Path, folder: Path, n: int) -> Path:
    """The same as n tars of WebDataset, with the label in a .cls or .json file beside."""
    folder.mkdir()
    files = sorted(photos.rglob("*.png"))
    for k in range(n):
        with tarfile.open(folder / f"{k:03d}.tar", "w") as tar:
            for i, file in enumerate(files[k::n]):
                said = (".cls", file.parent.name) if i % 2 else (".json", json.dumps({"label": file.parent.name}))
                for suffix, content in ((".png", file.read_bytes()), (said[0], said[1].encode())):
                    member = tarfile.TarInfo(f"{i:05d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of the Parquet files in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def feats(n: int = 50, d: int = 4) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Random embeddings."""
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
