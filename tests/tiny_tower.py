"""Training a tiny vision transformer, also as one of several processes.

Usage: python tiny_tower.py OUT    each of RUNS, its checkpoint after a few steps, and the rest of it from the one that
                                   is in OUT/begun; the first process writes OUT/state.pt
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tiny
from labelwright.encoders.backbones import Classifier
from labelwright.encoders.pretrained import VisionModel, from_transformers_config, parse_transformers_config
from labelwright.methods.registry import resolve_config
from labelwright.run_folder import Run
from labelwright.train.loop import train

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SGD = {"optimizer": "sgd", "epochs": 2, "batch_size": 8, "lr": 0.1, "max_grad_norm": 0.5}
RUNS: dict[str, dict[str, Any]] = {
    "ce": {**SGD, "sam_radius": 0.05},
    "pico": {**SGD, "queue_size": 20},  # with a network that follows another one
    "simclr": SGD,
}


@dataclass
class BuildTower(tiny.BuildTiny):
    """A `types.BuildNet`; weights from the global generator, which the loop seeds."""

    def __call__(self, n_outputs: int, **how: Any) -> nn.Module:
        config = parse_transformers_config({"model_type": "vit", "image_size": 8, "patch_size": 4, **SIZES})
        tower = from_transformers_config(config)
        return Classifier(
            tower,
            name="vit",
            n_features=8,
            n_outputs=n_outputs,
            image_size_px=8,
            freeze=(),
            **{"head": "linear", **how},
        )


def trained(name: str, *, folder: Path | None = None, stop_at: int | None = None, accumulate: int = 1) -> Any:
    """The tensors after training, with ``folder`` from the checkpoint there; None of one that is stopped."""
    task, views, _ = tiny.inputs_of(name, [20, 8, 8])
    run = None if folder is None else Run(folder)
    options = tiny.options_of(accumulate=accumulate, checkpoint_minutes=5.0 if stop_at is None else 0.0)
    method: Any = tiny.TRAINED[name]
    recipe = method.recipe if stop_at is None else Stopping(method.recipe, stop_at)
    cfg = resolve_config(method, RUNS[name])
    try:
        found = train(recipe, cfg, task, views, BuildTower(), options=options, run=run)
    except KeyboardInterrupt:
        return None
    finally:
        if run is not None:
            run.close()
    towers = [m for net in found.state.nets.values() for m in net.modules() if isinstance(m, VisionModel)]
    assert towers
    assert all(type(p) is nn.Parameter for tower in towers for p in tower.parameters())
    return tiny.tensors_of(found.state)


class Stopping:
    """A recipe that ends, as by Ctrl-C, in its n-th step."""

    def __init__(self, recipe: Any, stop_at: int) -> None:
        self.recipe, self.n_left = recipe, stop_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recipe, name)

    def step(self, *args: Any) -> Any:
        self.n_left -= 1
        if not self.n_left:
            raise KeyboardInterrupt
        return self.recipe.step(*args)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, Tensor]] = {name: trained(name) for name in RUNS}
    found["parts"] = trained("ce", accumulate=2)
    trained("ce", folder=out / "of-two", stop_at=11)
    found["resumed"] = trained("ce", folder=out / "begun")
    if os.environ["RANK"] == "0":
        torch.save(found, out / "state.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
