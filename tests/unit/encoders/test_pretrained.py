"""Checkpoints of transformers: what pixels they expect, and what happens when the hub cannot be asked."""

import json
import os
import subprocess
import sys

import pytest
import transformers
from safetensors.torch import load_file, save_file

from labelwright.encoders.pretrained import ImageStats, image_stats, load_config, load_vision_model
from labelwright.errors import ConfigError, OfflineError


def save_vit(folder):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(folder)


def test_image_stats__resize_then_crop(tmp_path, monkeypatch):
    save_vit(tmp_path)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 40},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[1.0] * 3,
    ).save_pretrained(tmp_path)
    assert image_stats(str(tmp_path)) == ImageStats(32, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    monkeypatch.setattr("transformers.models.auto.image_processing_auto.AutoImageProcessor", None)
    # the file says it all
    assert image_stats(str(tmp_path)).size_px == 32


def test_image_stats__checkpoint_that_does_not_say(tmp_path):
    save_vit(tmp_path)
    with pytest.raises(ConfigError, match="does not say what pixels") as caught:
        image_stats(str(tmp_path))
    assert "preprocessor_config.json" in caught.value.fix
    assert "--no-pretrained" in caught.value.fix


def test_load_vision_model__told_to_stay_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match=r"^some-owner/some-model is not on this machine") as caught:
        load_vision_model("some-owner/some-model")
    assert "hf download some-owner/some-model" in caught.value.fix
    assert len(caught.value.message.splitlines()) == 1


def test_load_config__asks_once_whether_the_hub_can_be_reached(monkeypatch):
    asked = []

    def unreachable(url, timeout):
        asked.append(url)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    for load in (load_config, load_config, load_vision_model):
        with pytest.raises(OfflineError, match="asked-once/model is not on this machine"):
            load("asked-once/model")
    assert len(asked) == 1


def test_load_vision_model__weights_missing(tmp_path):
    save_vit(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "encoder" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights") as caught:
        load_vision_model(str(tmp_path))
    assert "--no-pretrained" in caught.value.fix


UNREACHABLE = """
import json, time
import transformers
from labelwright.encoders.pretrained import load_vision_model
from labelwright.errors import OfflineError

def load(name):
    start = time.monotonic()
    try:
        outcome = type(load_vision_model(name).model).__name__
    except OfflineError as error:
        outcome = str(error)
    return outcome, time.monotonic() - start

print(json.dumps([load("owner/cached"), load("owner/absent")]))
"""


def test_load_vision_model__hub_out_of_reach(tmp_path):
    """No port answers there: what is cached loads, anything else fails at once, not after half a minute of retries."""
    repo = tmp_path / "hub" / "models--owner--cached"
    save_vit(repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    settings = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE], env=kept | settings, capture_output=True, text=True, check=True
    )
    (cached, _), (absent, absent_s) = json.loads(done.stdout.splitlines()[-1])
    assert cached == "ViTModel"
    assert absent.startswith("owner/absent is not on this machine")
    assert "hf download owner/absent" in absent
    assert "Retrying" not in done.stderr
    assert absent_s < 10  # with retries 23 s are slept, however quick the machine; transformers is imported by then
