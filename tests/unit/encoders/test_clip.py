"""Two-tower models: one path for every family, features of unit norm, and what is said when a model will not do."""

import json
import logging
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from labelwright.encoders.clip import TwoTower, load_two_tower
from labelwright.encoders.pretrained import ImageStats, image_stats, load_config, load_vision_model, resolve_name
from labelwright.encoders.templates import TEMPLATES, class_text_feats
from labelwright.errors import ConfigError, OfflineError

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
CPU = torch.device("cpu")
WORDS = ["<pad>", "<unk>", "<bos>", "<eos>", "a", "photo", "of", "the", "cat", "dog", "owl", "two", "large"]
LENGTH = 12
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}


def clip_model():
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**TEXT, **IDS}, vision_config=VISION, projection_dim=10)
    )


def siglip_model():
    return transformers.SiglipModel(transformers.SiglipConfig(text_config={**TEXT, **IDS}, vision_config=VISION))


def altclip_model():
    text = {**TEXT, **IDS, "max_position_embeddings": LENGTH + 1, "project_dim": 16}
    return transformers.AltCLIPModel(
        transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=10)
    )


def chinese_clip_model():
    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(text_config={**TEXT, **IDS}, vision_config=VISION, projection_dim=10)
    )


def metaclip2_model():
    return transformers.MetaClip2Model(
        transformers.MetaClip2Config(text_config={**TEXT, **IDS}, vision_config=VISION, projection_dim=10)
    )


def align_model():
    blocks = {"kernel_sizes": [3], "in_channels": [32], "out_channels": [8], "strides": [1], "num_block_repeats": [1]}
    vision = {**blocks, "image_size": 16, "expand_ratios": [1], "depthwise_padding": [], "hidden_dim": 10}
    vision["width_coefficient"] = vision["depth_coefficient"] = 1.0
    return transformers.AlignModel(
        transformers.AlignConfig(text_config={**TEXT, **IDS}, vision_config=vision, projection_dim=8)
    )


FAMILIES = {
    "clip": clip_model,
    "siglip": siglip_model,
    "altclip": altclip_model,
    "chinese_clip": chinese_clip_model,
    "metaclip_2": metaclip2_model,
    "align": align_model,
}


def word_tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.normalizer = normalizers.NFC()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folder of each family: random weights, a tokenizer of words, an image processor."""
    folders = {}
    for family, make in FAMILIES.items():
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(family)
        make().save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ).save_pretrained(folder)
        folders[family] = folder
    return folders


def load(folder, precision="fp32"):
    return load_two_tower(str(folder), device=CPU, precision=precision)


def copy_without(folder, tmp_path, *names):
    target = tmp_path / "copy"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*names))
    return target


def pixels(n, size=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(family):
    """As each family's documentation has it: SigLIP padded in full and unmasked, the others padded and masked."""
    padding = {"padding": "max_length", "max_length": LENGTH} if family == "siglip" else {"padding": True}
    inputs = word_tokenizer()(TEXTS, return_tensors="pt", **padding)
    return {
        key: inputs[key] for key in ("input_ids", "attention_mask") if (family, key) != ("siglip", "attention_mask")
    }


TEXTS = ["a photo of a cat", "dog", "a photo of the large owl", "two dog", "cat"]


@pytest.mark.parametrize("family", FAMILIES)
def test_load_two_tower__every_family(checkpoints, family):
    """Features are those of the family's own functions; batches of any size give the same ones."""
    tower = load(checkpoints[family])
    image_z, text_z = tower.image_feats(pixels(5)), tower.text_feats(TEXTS)
    assert image_z.shape == text_z.shape == (5, tower.n_features)
    assert tower.n_features == {"siglip": 16, "align": 8}.get(family, 10)
    for z in (image_z, text_z):
        assert z.dtype == torch.float32
        torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
        assert z.std(dim=0).min() > 1e-4  # rows differ

    one_by_one = torch.cat([tower.image_feats(x[None]) for x in pixels(5)])
    torch.testing.assert_close(one_by_one, image_z, atol=1e-5, rtol=1e-5)
    one_by_one = torch.cat([tower.text_feats([text]) for text in TEXTS])
    torch.testing.assert_close(one_by_one, text_z, atol=1e-5, rtol=1e-5)

    own = transformers.AutoModel.from_pretrained(checkpoints[family]).eval()
    with torch.no_grad():
        own_image = F.normalize(own.get_image_features(pixels(5)).pooler_output, dim=1)
        own_text = F.normalize(own.get_text_features(**tokens(family)).pooler_output, dim=1)
    torch.testing.assert_close(image_z, own_image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text_z, own_text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(F.normalize(tower.vision(pixels(5)), dim=1), image_z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip", "align"])
def test_two_tower__logits_are_the_models_own(checkpoints, family):
    """Up to SigLIP's bias, which is the same for every class."""
    tower = load(checkpoints[family])
    own = transformers.AutoModel.from_pretrained(checkpoints[family]).eval()
    with torch.no_grad():
        expected = own(pixel_values=pixels(4), **tokens(family)).logits_per_image
    logits = tower.logit_scale * tower.image_feats(pixels(4)) @ tower.text_feats(TEXTS).T
    if family == "siglip":
        logits, expected = (x - x.mean(dim=1, keepdim=True) for x in (logits, expected))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_two_tower__is_frozen(checkpoints):
    tower = load(checkpoints["clip"])
    outer = torch.nn.Sequential(tower).train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in outer.parameters())
    head = torch.nn.Linear(10, 2)  # features may take part in a graph
    head(tower.image_feats(pixels(3))).sum().backward()
    torch.testing.assert_close(head.weight.grad[0], tower.image_feats(pixels(3)).sum(dim=0))


def test_image_feats__precision(checkpoints):
    exact, rounded = (load(checkpoints["clip"], precision) for precision in ("fp32", "bf16"))
    assert (exact.precision, rounded.precision) == ("fp32", "bf16")
    a, b = exact.image_feats(pixels(4)), rounded.image_feats(pixels(4))
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.05  # bfloat16 keeps 8 bits
    assert torch.equal(exact.text_feats(TEXTS), rounded.text_feats(TEXTS))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact.image_feats(pixels(4)), a)
        assert torch.equal(exact.text_feats(TEXTS), rounded.text_feats(TEXTS))
    with pytest.raises(ConfigError, match="precision 'half'"):
        load(checkpoints["clip"], "half")


def test_image_feats__other_image_size(checkpoints):
    assert load(checkpoints["clip"]).image_feats(pixels(2, size=24)).shape == (2, 10)


def test_text_feats__batches(checkpoints, monkeypatch):
    tower = load(checkpoints["clip"])
    texts = TEXTS * 3
    whole = tower.text_feats(texts)
    monkeypatch.setattr("labelwright.encoders.clip.TEXT_BATCH", 4)
    torch.testing.assert_close(tower.text_feats(texts), whole, atol=1e-5, rtol=1e-5)
    assert tower.text_feats([]).shape == (0, 10)
    with pytest.raises(ConfigError, match="texts to embed is empty"):
        tower.text_feats(["cat", " "])


def test_text_feats__siglip_reads_lower_case(checkpoints):
    tower = load(checkpoints["siglip"])
    assert torch.equal(tower.text_feats(["A Photo of a CAT"]), tower.text_feats(["a photo of a cat"]))
    clip = load(checkpoints["clip"])  # it is this tokenizer's business here
    assert not torch.equal(clip.text_feats(["A Photo of a CAT"]), clip.text_feats(["a photo of a cat"]))


@pytest.mark.parametrize("family", ["clip", "siglip", "altclip"])
def test_text_feats__cuts_long_texts_and_says_so_once(checkpoints, family, caplog):
    tower = load(checkpoints[family])
    assert tower.max_tokens == LENGTH
    fits = " ".join(["cat"] * (LENGTH - 2))
    with caplog.at_level(logging.WARNING, logger="labelwright"):
        tower.text_feats([fits])
        assert not caplog.records
        z = tower.text_feats(["dog", fits + " dog", fits + " owl owl"])
        tower.text_feats([fits + " dog"])
    (record,) = caplog.records
    assert "reads 12 tokens: 2 of 3 texts are cut" in record.getMessage()
    assert repr(fits + " dog") in record.getMessage()
    torch.testing.assert_close(z[1], tower.text_feats([fits])[0])
    torch.testing.assert_close(z[1], z[2])


def test_identity__is_of_weights_and_config(checkpoints, tmp_path):
    first = load(checkpoints["clip"])
    assert len(first.identity) == 32
    int(first.identity, 16)
    model = transformers.AutoModel.from_pretrained(checkpoints["clip"])

    def identity(folder):
        shutil.copytree(checkpoints["clip"], folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        model.save_pretrained(folder)
        return load(folder).identity

    assert identity(tmp_path / "elsewhere") == first.identity
    assert load(checkpoints["clip"], "bf16").identity == first.identity
    model.config.vision_config.hidden_act = "gelu"
    assert identity(tmp_path / "other-activation") != first.identity
    model.config.vision_config.hidden_act = "quick_gelu"
    assert identity(tmp_path / "as-before") == first.identity
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1e-6
    assert identity(tmp_path / "other-weights") != first.identity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.ViTModel(transformers.ViTConfig(**VISION)), "has no text side"),
        (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)), "has no text side"),
        (lambda: transformers.BertModel(transformers.BertConfig(**TEXT)), "has no text side"),
        (
            lambda: transformers.Siglip2Model(
                transformers.Siglip2Config(text_config={**TEXT, **IDS}, vision_config={**TOWER, "patch_size": 8})
            ),
            "takes images cut into patches of any number",
        ),
    ],
)
def test_load_two_tower__wrong_kind_of_model(checkpoints, tmp_path, make, message):
    folder = copy_without(checkpoints["clip"], tmp_path, "*.safetensors", "config.json")
    make().save_pretrained(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        load(folder)
    assert str(folder) in caught.value.message
    assert "google/siglip2-base-patch16-224" in caught.value.fix


def test_load_two_tower__towers_that_are_put_together_otherwise(checkpoints, tmp_path):
    """A dual encoder around a ViT uses the pooler that our image side drops: other features, so it is refused."""
    folder = copy_without(checkpoints["clip"], tmp_path, "*.safetensors", "config.json")
    vision, text = transformers.ViTConfig(**VISION), transformers.BertConfig(**TEXT, pad_token_id=0)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=10)
    transformers.VisionTextDualEncoderModel(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="built in a way that is not known here"):
        load(folder)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("removed", [("tokenizer*",), ("tokenizer.json",)])
def test_load_two_tower__no_tokenizer(checkpoints, tmp_path, family, removed):
    folder = copy_without(checkpoints[family], tmp_path, *removed)
    with pytest.raises(ConfigError, match="has no usable tokenizer") as caught:
        load(folder)
    assert "tokenizer.json" in caught.value.fix
    assert len(caught.value.message.splitlines()) == 1


def test_load_two_tower__files_missing(checkpoints, tmp_path):
    with pytest.raises(ConfigError, match="cannot load the model"):
        load(copy_without(checkpoints["clip"], tmp_path / "a", "*.safetensors"))
    with pytest.raises(ConfigError, match="does not say what pixels"):
        load(copy_without(checkpoints["clip"], tmp_path / "b", "preprocessor_config.json"))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load(copy_without(checkpoints["clip"], tmp_path / "c", "config.json"))


def test_load_two_tower__weights_missing(checkpoints, tmp_path):
    """The image side alone, under the configuration of the whole."""
    folder = copy_without(checkpoints["clip"], tmp_path)
    model = transformers.AutoModel.from_pretrained(checkpoints["clip"])
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith("text_model")}
    model.save_pretrained(folder, state_dict=kept)
    with pytest.raises(ConfigError, match=r"lacks \d+ weights, among them text_model") as caught:
        load(folder)
    assert "both the image and the text side" in caught.value.fix


def test_load_two_tower__told_to_stay_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match=r"^some-owner/some-clip is not on this machine") as caught:
        load("some-owner/some-clip")
    assert "hf download some-owner/some-clip" in caught.value.fix


def test_resolve_name__inside_the_package(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("labelwright.encoders.pretrained.EMBEDDED", tmp_path)
    with pytest.raises(ConfigError, match="no model labelwright/tiny inside this package") as caught:
        resolve_name("labelwright/tiny")
    assert "there is none" in caught.value.fix
    for name in ("tiny", "other"):
        shutil.copytree(checkpoints["clip"], tmp_path / name)
    assert resolve_name("labelwright/tiny") == str(tmp_path / "tiny")

    def no_question(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", no_question)
    tower = load("labelwright/tiny")
    assert tower.name == "labelwright/tiny"
    assert tower.identity == load(checkpoints["clip"]).identity
    assert image_stats("labelwright/tiny") == tower.stats
    assert load_config("labelwright/tiny").model_type == "clip"
    assert torch.equal(load_vision_model("labelwright/tiny")(pixels(2)), tower.vision(pixels(2)))
    for function in (load, image_stats, load_config, load_vision_model):
        with pytest.raises(ConfigError, match="no model labelwright/none inside this package") as caught:
            function("labelwright/none")
        assert "there is labelwright/other, labelwright/tiny" in caught.value.fix


def test_load_two_tower__real_clip():
    """Zero-shot on the first 1,000 test images of CIFAR-10; the model's card has 0.657 on all 10,000."""
    folder, path = SHARED / "models" / "tiny-clip", SHARED / "data" / "cifar10-test.parquet"
    if not folder.is_dir() or not path.is_file():
        pytest.skip(f"no {folder} or {path}: set LABELWRIGHT_SHARED")
    from io import BytesIO

    import numpy as np
    from PIL import Image

    tower = load(folder, "auto")
    rows = next(pq.ParquetFile(path).iter_batches(1000))
    info = json.loads(rows.schema.metadata[b"huggingface"])["info"]["features"]
    names = info["label"]["names"]
    images = [Image.open(BytesIO(image["bytes"])).convert("RGB") for image in rows.column("image").to_pylist()]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (tower.stats.mean, tower.stats.std))
    assert x.shape == (1000, 3, 32, 32)
    assert tower.stats.size_px == 32
    assert tower.logit_scale > 1
    image_z = tower.image_feats((x - mean) / std)
    labels = torch.tensor(rows.column("label").to_pylist())

    def accuracy(templates):
        sims = image_z @ class_text_feats(tower.text_feats, names, TEMPLATES[templates]).T
        return (sims.argmax(dim=1) == labels).float().mean().item()

    # One standard error of 1,000 images is 0.015.
    assert 0.61 < accuracy("one") < 0.70
    assert 0.58 < accuracy("photo27") < 0.72


def test_two_tower__of_parts():
    """Made without files, as other modules' tests may."""
    torch.manual_seed(0)
    tower = TwoTower(clip_model(), word_tokenizer(), name="tiny", stats=ImageStats(16, (0.5,) * 3, (0.5,) * 3))
    assert (tower.n_features, tower.max_tokens, tower.device) == (10, LENGTH, CPU)
    assert tower.logit_scale == pytest.approx(torch.tensor(2.6592).exp().item())
