"""The verb annotate, from images to a table of candidates: a random CLIP, a real small one, and a stub that chats."""

import dataclasses
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import chat_stub
from labelwright.annotators.annotate import annotate
from labelwright.data.read import load
from labelwright.encoders.clip import load_two_tower
from labelwright.encoders.embed import Encoder
from labelwright.errors import ConfigError, DataError

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
NAMES = ["red", "green", "blue"]
WORDS = ["<pad>", "<unk>", "<end>", "a", "photo", "of", *NAMES]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A CLIP with random weights that embeds colours and their names somehow."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text = {**sizes, "vocab_size": len(WORDS), "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 12}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    transformers.CLIPModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 8},
        "crop_size": 8,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return str(folder)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six images of three colours in class folders, and one without a label."""
    folder = tmp_path / "photos"
    shades = {"red/0": "red", "red/1": (200, 30, 0), "green/0": "lime", "green/1": "green", "blue/0": "blue"}
    for name, colour in {**shades, "blue/1": (30, 0, 200), "loose": "red"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return folder


def test_annotate__two_towers_against_the_model_itself(photos, clip, tmp_path) -> None:
    done = annotate(photos, model=clip, out=tmp_path / "c.parquet", templates="one", rule="top_k", top_k=2)
    assert done.path == tmp_path / "c.parquet"
    back = load(done.path)
    source = load(photos)
    assert back.ids.to_pylist() == source.ids.to_pylist()
    assert back.labels.tolist() == source.labels.tolist() == [0, 0, 1, 1, -1, 2, 2]
    tower = load_two_tower(clip, device=torch.device("cpu"), precision="fp32")
    text = tower.text_feats([f"a photo of a {name}" for name in source.class_names])
    n_inside = 0
    for row in range(len(source)):
        pixels = (np.asarray(source.image(row)) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        probs = (tower.logit_scale * tower.image_feats(x) @ text.T).softmax(1)[0]
        best = probs.topk(2).indices.sort().values
        span = slice(int(back.candidates.offsets[row]), int(back.candidates.offsets[row + 1]))
        assert back.candidates.classes[span].tolist() == best.tolist()
        wanted = (probs[best] / probs[best].sum()).tolist()
        assert back.candidates.weights[span].tolist() == pytest.approx(wanted, abs=0.02)  # features are kept in 16 bits
        n_inside += source.labels[row] in best.tolist()
    assert (done.counts["n_scored"], done.counts["truth_inside"]) == (6, round(n_inside / 6, 4))
    told = json.loads(pq.read_schema(done.path).metadata[b"labelwright"])
    assert told["annotator"]["counts"] == done.counts
    assert {k: told["annotator"][k] for k in ("kind", "rule", "top_k", "templates", "n_templates")} == {
        "kind": "two towers",
        "rule": "top_k",
        "top_k": 2,
        "templates": "one",
        "n_templates": 1,
    }


def test_annotate__labels_change_nothing_and_features_are_kept(photos, clip, tmp_path, monkeypatch) -> None:
    first = load(annotate(photos, model=clip, out=tmp_path / "1.parquet", device="cpu").path)
    table = load(photos)
    monkeypatch.setattr(Encoder, "encode", None)  # a second pass over the images would fail
    relabelled = dataclasses.replace(table, labels=(table.labels + 2) % 3)
    again = load(annotate(relabelled, model=clip, out=tmp_path / "2.parquet", device="cpu").path)
    assert torch.equal(again.candidates.classes, first.candidates.classes)
    assert torch.equal(again.candidates.weights, first.candidates.weights)
    assert again.labels.tolist() == relabelled.labels.tolist() != first.labels.tolist()


def test_annotate__refuses_before_anything_is_written(photos, clip, tmp_path) -> None:
    def refusal(said: str, **settings) -> None:
        with pytest.raises((ConfigError, DataError), match=said):
            annotate(**{"data": photos, "model": clip, "out": tmp_path / "c.parquet", **settings})

    before = sorted(tmp_path.rglob("*"))
    refusal("c.csv is not a .parquet file", out=tmp_path / "c.csv")
    refusal("no such rule", rule="most")
    refusal("templates|template", templates="no-such-list")
    refusal("no such model folder", model="./nowhere")
    refusal("names 0 classes", data=photos / "red")
    vit = tmp_path.parent / f"{tmp_path.name}-vit"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(vit)
    refusal("images or texts but not both", model=str(vit))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "c.parquet").write_text("mine")
    refusal("c.parquet exists")
    assert (tmp_path / "c.parquet").read_text() == "mine"


@pytest.mark.parametrize("kind", ["two towers", "chat"])
def test_annotate__unreadable_images(photos, clip, tmp_path, kind) -> None:
    (photos / "red" / "1.png").write_bytes(b"not an image")
    with chat_stub.ChatStub("red") as stub:
        how = {"model": clip} if kind == "two towers" else {"model": "m", "chat_url": stub.url, "phrasings": 1}
        with pytest.raises(DataError) as caught:
            annotate(photos, out=tmp_path / "c.parquet", device="cpu", **how)
        assert [p.kind for p in caught.value.problems if p.row is not None] == ["unreadable_image"]
        assert not (tmp_path / "c.parquet").exists()
        done = annotate(photos, out=tmp_path / "c.parquet", on_bad="skip", device="cpu", **how)
    assert [Path(p["where"]).name for p in done.counts["left_out"]] == ["1.png"]
    assert load(done.path).ids.to_pylist() == [name for name in load(photos).ids.to_pylist() if name != "red/1.png"]


def colour_of(seen: chat_stub.Seen) -> str:
    return NAMES[int(np.asarray(seen.image.convert("RGB"))[0, 0].argmax())]


def test_annotate__chat(photos, tmp_path) -> None:
    settings = {"model": "m", "classes": NAMES, "phrasings": 2, "out": tmp_path / "c.parquet"}
    with chat_stub.ChatStub(lambda seen: f"It is {colour_of(seen)}.") as stub:
        with pytest.raises(ConfigError, match="stopped before anything was asked"):
            annotate(photos, chat_url=stub.url, approve=lambda estimate: estimate.n_calls != 14, **settings)
        assert stub.seen == []
        done = annotate(photos, chat_url=stub.url, **settings)
        assert len(stub.seen) == 14
    back = load(done.path)
    assert [back.class_names[c] for c in back.candidates.classes.tolist()] == [
        "blue" if "blue" in name else "green" if "green" in name else "red" for name in back.ids.to_pylist()
    ]
    assert (done.counts["truth_inside"], done.counts["mean_set_size"], done.counts["n_failed"]) == (1.0, 1.0, 0)
    done.path.unlink()  # as if the run had been killed before it wrote the table
    with chat_stub.ChatStub(chat_stub.Fail(503)) as stub:
        again = annotate(photos, chat_url=stub.url, **settings)
        assert stub.seen == []
    assert again.counts == {**done.counts, "n_calls": 0, "n_from_journal": 14}


def test_annotate__unparseable_answers_are_listed(photos, tmp_path) -> None:
    with chat_stub.ChatStub(lambda seen: "who knows" if colour_of(seen) == "blue" else colour_of(seen)) as stub:
        done = annotate(photos, model="m", chat_url=stub.url, phrasings=1, out=tmp_path / "c.parquet")
    assert done.counts["unparseable"] == [["blue/0.png", 0, "who knows"], ["blue/1.png", 0, "who knows"]]
    assert (done.counts["n_empty"], done.counts["truth_inside"]) == (2, round(4 / 6, 4))
    assert load(done.path).candidates.of(0).tolist() == []


def test_annotate__a_model_folder_that_chats(photos, tmp_path, monkeypatch) -> None:
    transformers.LlavaConfig().save_pretrained(tmp_path / "llava")
    opened = []

    class Reds:
        name = "reds"

        def ask(self, prompt: str, image: Image.Image | None = None) -> str:
            return "red, or maybe green"

    def open_chat(name: str, *, device: torch.device, precision: str) -> Reds:
        opened.append((name, device.type, precision))
        return Reds()

    monkeypatch.setattr("labelwright.annotators.annotator.LocalChat", open_chat)
    model = str(tmp_path / "llava")
    done = annotate(photos, model=model, out=tmp_path / "c.parquet", device="cpu", precision="fp32")
    assert opened == [(model, "cpu", "fp32")]
    assert (done.counts["n_calls"], done.counts["mean_set_size"], done.counts["truth_inside"]) == (21, 2.0, 0.6667)


@pytest.mark.skipif(not (SHARED / "models/tiny-clip").exists(), reason="needs the shared folder (LABELWRIGHT_SHARED)")
def test_annotate__a_real_model_is_right_as_often_as_it_should_be(tmp_path) -> None:
    whole = pq.read_table(SHARED / "data" / "gtsrb-test.parquet")
    some = np.sort(np.random.default_rng(0).permutation(len(whole))[:1000])
    pq.write_table(whole.take(some), tmp_path / "signs.parquet")
    model = str(SHARED / "models" / "tiny-clip")
    done = annotate(tmp_path / "signs.parquet", model=model, out=tmp_path / "c.parquet", rule="union", device="cpu")
    # All 12,630: sets of 3.42, truth inside 0.742, its top class right 0.526. 1,000 drawn: deviation at most 0.016.
    assert 3.2 < done.counts["mean_set_size"] < 3.65
    assert 0.69 < done.counts["truth_inside"] < 0.79
    assert 0.475 < done.counts["top1_accuracy"] < 0.58
    back = load(done.path)
    assert (len(back), len(back.class_names), back.image(7).size) == (1000, 43, (32, 32))
