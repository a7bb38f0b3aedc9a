"""Chat models: against an endpoint of our own that misbehaves on demand, and a LLaVA of a few thousand weights."""

import json
import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

import chat_stub
from chat_stub import ChatStub, Drop, Fail, Raw, Stall, rate_limit
from labelwright.annotators.chat import TOKENS_PER_IMAGE, Question, ask_many, estimate
from labelwright.annotators.chat_endpoint import ANSWER_TOKENS_MAX, FIRST_WAIT_S, LONGEST_WAIT_S, OpenAIChat
from labelwright.annotators.chat_local import LocalChat
from labelwright.errors import ConfigError, DataError, OfflineError

CPU = torch.device("cpu")
RED = Image.new("RGB", (32, 32), (255, 0, 0))


@pytest.fixture(autouse=True)
def only_the_stub(monkeypatch):
    """No key, URL or proxy of this machine's user reaches a test."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Waits(list):
    """A sleep that only notes how long."""

    def __call__(self, seconds):
        self.append(seconds)


def chat_of(stub, *, waits=None, **settings):
    return OpenAIChat("stub", base_url=stub.url, sleep=Waits() if waits is None else waits, **settings)


def test_ask__text_only():
    with ChatStub(lambda seen: seen.prompt[::-1]) as stub:
        assert chat_of(stub).ask("abc") == "cba"
    (seen,) = stub.seen
    assert (seen.model, seen.image, seen.path) == ("stub", None, "/v1/chat/completions")
    assert (seen.body["max_tokens"], seen.body["temperature"]) == (ANSWER_TOKENS_MAX, 0.0)
    assert seen.headers["authorization"] == "Bearer none"


@pytest.mark.parametrize("closed", [True, False])
def test_openai_chat__hangs_up_when_closed_or_dropped(closed):
    with ChatStub() as stub:
        chat = chat_of(stub)
        chat.ask("abc")
        client = chat._client
        assert not client.is_closed()
        if closed:
            chat.close()
            chat.close()
        else:
            del chat
        assert client.is_closed()


def test_ask__small_image_arrives_pixel_for_pixel():
    noise = Image.effect_noise((40, 30), 90).convert("RGB")
    with ChatStub(lambda seen: f"{seen.image.size} {seen.image.format}") as stub:
        assert chat_of(stub).ask("what?", noise) == "(40, 30) PNG"
    assert stub.seen[0].image.tobytes() == noise.tobytes()


def test_ask__large_image_is_scaled_down_not_up():
    big = Image.new("RGBA", (1024, 300), (0, 0, 255, 255))
    with ChatStub(lambda seen: f"{seen.image.size} {seen.image.format}") as stub:
        assert chat_of(stub).ask("what?", big) == "(512, 150) JPEG"
        assert chat_of(stub).ask("what?", big.resize((300, 200))) == "(300, 200) JPEG"
    r, g, b = stub.seen[0].image.getpixel((9, 9))
    assert b > 240
    assert max(r, g) < 15
    assert big.size == (1024, 300), "the caller's image stays as it is"


def test_ask__faults_that_pass(caplog):
    waits = Waits()
    script = [Fail(500), Fail(503), Drop(), Raw(), Raw("<html>hello</html>", "text/html"), Raw('{"choices": []}')]
    with ChatStub("at last", script=script) as stub:
        assert chat_of(stub, waits=waits).ask("x") == "at last"
    assert len(stub.seen) == 7
    longest = [FIRST_WAIT_S * 2**i for i in range(6)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert [record.levelname for record in caplog.records if stub.url in record.getMessage()] == ["WARNING"] * 6
    assert f"{stub.url}: HTTP 500: out of order; asking again in" in caplog.text
    assert "no connection" in caplog.text
    assert "not JSON" in caplog.text
    assert caplog.text.count("not a chat completion") == 2


def test_ask__waits_do_not_grow_without_bound():
    waits = Waits()
    with ChatStub(Fail(500)) as stub, pytest.raises(OfflineError, match="in 13 attempts"):
        chat_of(stub, waits=waits, retries=12).ask("x")
    assert LONGEST_WAIT_S / 2 <= waits[-1] <= LONGEST_WAIT_S


def test_ask__rate_limit_says_when_to_come_back():
    waits = Waits()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    with ChatStub("yes", script=[rate_limit(7), rate_limit(date), rate_limit("soon")]) as stub:
        assert chat_of(stub, waits=waits).ask("x") == "yes"
    assert 7 <= waits[0] <= 7 + FIRST_WAIT_S
    assert 35 <= waits[1] <= 40 + 2 * FIRST_WAIT_S
    assert waits[2] <= 4 * FIRST_WAIT_S, "a header that cannot be read counts as none"


def test_ask__rate_limit_of_an_hour_is_not_waited_for():
    waits = Waits()
    with ChatStub(rate_limit(3600)) as stub, pytest.raises(OfflineError, match="it asks to wait 3600 s"):
        chat_of(stub, waits=waits).ask("x")
    assert waits == []


def test_ask__no_answer_in_time():
    waits = Waits()
    with ChatStub("yes", script=[Stall(5)]) as stub:
        assert chat_of(stub, waits=waits, timeout_s=0.2).ask("x") == "yes"
    assert len(waits) == 1


def test_ask__endpoint_out_of_reach():
    with ChatStub() as stub:
        url = stub.url
    chat = OpenAIChat("stub", base_url=url, retries=2, sleep=Waits())
    with pytest.raises(OfflineError, match=r"gave no answer in 3 attempts: no connection") as caught:
        chat.ask("x")
    assert caught.value.message.startswith(url)
    assert "\n" not in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    ("fail", "kind", "words"),
    [
        (Fail(401, "Incorrect API key provided"), ConfigError, "does not accept the key (HTTP 401): Incorrect API key"),
        (Fail(403, "not for you"), ConfigError, "does not accept the key (HTTP 403)"),
        (Fail(404, "The model does not exist"), ConfigError, "has no model 'stub' (HTTP 404)"),
        (Fail(400, "unknown", code="model_not_found"), ConfigError, "has no model 'stub' (HTTP 400)"),
        (Fail(429, "pay first", code="insufficient_quota"), ConfigError, "quota"),
        (Fail(400, "no images\nplease"), DataError, "refuses the question (HTTP 400): no images please"),
        (Fail(413, "too large"), DataError, "refuses the question (HTTP 413)"),
    ],
    ids=["key", "permission", "model", "model by code", "quota", "bad question", "too large"],
)
def test_ask__refused_at_once(fail, kind, words):
    waits = Waits()
    with ChatStub(fail) as stub, pytest.raises(kind) as caught:
        chat_of(stub, waits=waits).ask("x")
    assert type(caught.value) is kind
    assert words in caught.value.message
    assert stub.url in caught.value.message
    assert caught.value.fix
    assert "\n" not in caught.value.message
    assert (len(stub.seen), waits) == (1, [])


def test_ask__settings_that_a_model_refuses():
    script = [
        Fail(400, "use another", code="unsupported_parameter", param="max_tokens"),
        Fail(400, "only 1", code="unsupported_value", param="temperature"),
    ]
    with ChatStub("yes", script=script) as stub:
        chat = chat_of(stub)
        assert chat.ask("x") == "yes"
        assert chat.ask("y") == "yes"
    assert len(stub.seen) == 4, "once learnt, the settings stay"
    assert stub.seen[-1].body["max_completion_tokens"] == ANSWER_TOKENS_MAX
    assert not {"max_tokens", "temperature"} & set(stub.seen[-1].body)


def test_ask__answer_that_never_came():
    body = json.dumps(chat_stub.completion(None, finish_reason="length"))
    with ChatStub(Raw(body)) as stub, pytest.raises(DataError, match="used up the tokens") as caught:
        chat_of(stub).ask("x")
    assert "max_tokens" not in caught.value.fix  # no setting of ours


def test_openai_chat__package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match="needs the openai package") as caught:
        OpenAIChat("m", base_url="http://localhost:1/v1")
    assert caught.value.fix == "pip install 'labelwright[llm]'"


def test_openai_chat__key_and_url(monkeypatch):
    with pytest.raises(ConfigError, match=r"no key for https://api.openai.com/v1") as caught:
        OpenAIChat("m")
    assert "OPENAI_API_KEY" in caught.value.fix
    for url in (
        "localhost:8000/v1",
        "ann:s3cret@host",
        "http://ann:s3/cret@host/v1",
        "http://ann:s3cret@[::1/v1",
        "http://",
    ):
        with pytest.raises(ConfigError, match="is not a URL") as caught:
            OpenAIChat("m", base_url=url)
        assert "s3" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert OpenAIChat("m").endpoint == "https://api.openai.com/v1"
    with ChatStub() as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
        OpenAIChat("m").ask("x")
    assert [seen.headers["authorization"] for seen in stub.seen] == ["Bearer sk-test"]


def test_ask_many__answers_in_order_several_at_once():
    started = threading.Barrier(3)

    def answer(seen):
        if int(seen.prompt) < 3:
            started.wait(5)  # breaks, and the test fails, unless three are under way together
        return f"answer {seen.prompt}"

    told = []
    with ChatStub(answer) as stub:
        questions = (Question(str(i)) for i in range(12))
        answers = ask_many(chat_of(stub, max_in_flight=3), questions, on_answer=lambda i, text: told.append((i, text)))
    assert answers == [f"answer {i}" for i in range(12)]
    assert sorted(told) == list(enumerate(answers))
    assert stub.most_in_flight == 3


def test_ask_many__requests_under_way_are_bounded():
    with ChatStub("yes") as stub:
        ask_many(chat_of(stub, max_in_flight=2), [Question(str(i)) for i in range(20)], n_workers=6)
    assert stub.most_in_flight <= 2


def test_ask_many__questions_and_images_are_taken_as_their_turn_comes():
    taken, loaded, done, most_ahead = [], [], [], []

    def image():
        loaded.append(True)
        return RED

    def questions():
        for i in range(15):
            taken.append(i)
            most_ahead.append(len(taken) - len(done))
            yield Question(str(i), image)

    with ChatStub("yes") as stub:
        ask_many(chat_of(stub), questions(), n_workers=2, on_answer=lambda i, text: done.append(i))
    assert len(taken) == len(loaded) == len(done) == 15
    assert max(most_ahead) <= 4
    assert all(seen.image is not None for seen in stub.seen)


def test_ask_many__one_question_fails():
    def answer(seen):
        return Fail(400, "not this one") if seen.prompt == "3" else "yes"

    with ChatStub(answer) as stub:
        answers = ask_many(chat_of(stub), [Question(str(i)) for i in range(6)], n_workers=2)
    assert answers == ["yes", "yes", "yes", None, "yes", "yes"]


def test_ask_many__bad_image_is_one_failure():
    def broken():
        raise DataError("cut off")

    with ChatStub("yes") as stub:
        assert ask_many(chat_of(stub), [Question("a"), Question("b", broken)], n_workers=1) == ["yes", None]


def test_ask_many__endpoint_down_from_the_start():
    with ChatStub(Fail(500)) as stub, pytest.raises(OfflineError, match="HTTP 500"):
        ask_many(chat_of(stub, retries=0), (Question(str(i)) for i in range(1000)), n_workers=2, failures_in_row=5)
    assert 5 <= len(stub.seen) <= 10


def test_ask_many__endpoint_goes_down_later():
    with ChatStub(Fail(500), script=["yes"] * 10) as stub:
        told = []
        with pytest.raises(OfflineError):
            ask_many(
                chat_of(stub, retries=0),
                (Question(str(i)) for i in range(1000)),
                n_workers=1,
                on_answer=lambda i, text: told.append(text),
                failures_in_row=5,
            )
    assert told == ["yes"] * 10 + [None] * 5


def test_ask_many__failures_apart_do_not_end_it():
    with ChatStub("yes", script=[Fail(500), Fail(500), "yes"] * 4) as stub:
        answers = ask_many(
            chat_of(stub, retries=0), [Question(str(i)) for i in range(13)], n_workers=1, failures_in_row=3
        )
    assert answers == [None, None, "yes"] * 4 + ["yes"]


def test_ask_many__questions_at_fault_do_not_end_it_once_one_was_answered():
    with ChatStub(Fail(400), script=["yes"]) as stub:
        answers = ask_many(chat_of(stub), [Question(str(i)) for i in range(12)], n_workers=1, failures_in_row=3)
    assert answers == ["yes"] + [None] * 11
    with ChatStub(Fail(400)) as stub, pytest.raises(DataError):
        ask_many(chat_of(stub), [Question(str(i)) for i in range(12)], n_workers=1, failures_in_row=3)
    with ChatStub(Fail(400)) as stub, pytest.raises(DataError):
        ask_many(chat_of(stub), [Question("only")])


def test_ask_many__wrong_key_ends_it():
    with ChatStub(Fail(401), script=["yes"] * 3) as stub, pytest.raises(ConfigError, match="key"):
        ask_many(chat_of(stub), [Question(str(i)) for i in range(50)], n_workers=1)
    assert len(stub.seen) <= 6


def test_ask_many__what_the_caller_raises_ends_it():
    def stop(position, answer):
        raise KeyboardInterrupt

    with ChatStub("yes") as stub, pytest.raises(KeyboardInterrupt):
        ask_many(chat_of(stub), (Question(str(i)) for i in range(1000)), n_workers=2, on_answer=stop)
    assert len(stub.seen) <= 6


def test_ask_many__nothing_asked():
    with ChatStub() as stub:
        assert ask_many(chat_of(stub), []) == []
        with pytest.raises(ConfigError, match="n_workers=0"):
            ask_many(chat_of(stub), [], n_workers=0)


def test_estimate():
    known = estimate(10, prompt_chars=400, answer_tokens=30, n_images=5)
    assert (known.tokens_in, known.tokens_out) == (10 * 100 + 5 * TOKENS_PER_IMAGE, 300)
    assert str(estimate(1, prompt_chars=4, answer_tokens=1)) == "1 question: roughly 1 tokens in and 1 out"


TEMPLATE = (
    "{% for turn in messages %}USER: {% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A LLaVA of random weights: images of 8 px in 4 patches, 30 words."""
    folder = tmp_path_factory.mktemp("llava")
    words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "USER", "ASSISTANT", ":", "\n", *"abcdefghijklmnopqrstu"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=8),
        text_config=transformers.LlamaConfig(**sizes, vocab_size=len(words), max_position_embeddings=64),
        image_token_index=4,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # of a size at which words and pixels make a difference
            parameter.normal_(0, 0.7)
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    transformers.LlavaProcessor(
        images, fast, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


def test_local_chat__answers(llava):
    chat = LocalChat(str(llava), device=CPU, precision="fp32", max_new_tokens=6)
    answer = chat.ask("a b c", RED)
    assert isinstance(answer, str)
    assert answer
    assert answer == chat.ask("a b c", RED), "the likeliest answer is one answer"
    assert "USER" not in answer, "the question is not part of it"
    assert isinstance(chat.ask("a b c"), str)


def test_local_chat__together_as_alone(llava):
    chat = LocalChat(str(llava), device=CPU, precision="fp32", max_new_tokens=6, batch_size=2)
    blue = Image.new("L", (20, 9), 200)
    questions = [Question("a"), Question("b c d e f", RED), Question("g h", blue), Question("i j k", lambda: RED)]
    alone = [chat.ask(question.prompt, question.loaded()) for question in questions]
    assert len(set(alone)) > 1, "the answers hang on the questions"
    assert ask_many(chat, questions) == alone


def test_local_chat__form_of_the_question(llava, tmp_path):
    chat = LocalChat(str(llava), device=CPU)
    assert chat._text("why", has_image=True) == "USER: <image>\nwhy ASSISTANT:"
    assert chat._text("why", has_image=False) == "USER: why ASSISTANT:"
    for file in llava.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    templated = LocalChat(str(tmp_path), device=CPU, max_new_tokens=3)
    assert templated._text("why", has_image=True) == "USER: <image>why ASSISTANT:"
    assert templated._text("why", has_image=False) == "USER: why ASSISTANT:"
    assert isinstance(templated.ask("a", RED), str)


def test_local_chat__weights_missing(llava, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in llava.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "multi_modal_projector" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights"):
        LocalChat(str(tmp_path), device=CPU)


def test_local_chat__no_such_chat_model(tmp_path, monkeypatch):
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vit model, which does not talk about images"):
        LocalChat(str(tmp_path), device=CPU)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match=r"^some-owner/some-llava is not on this machine"):
        LocalChat("some-owner/some-llava", device=CPU)


def test_ask__no_secret_in_any_message(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-ann-0815")
    echo = "I got Authorization: Bearer sk-of-ann-0815, Basic YW5uOnMzY3JldA== and api_key=k9 of ann:s3cret"
    for status, kind in ((400, DataError), (401, ConfigError), (404, ConfigError), (503, OfflineError)):
        with ChatStub(Fail(status, echo)) as stub:
            chat = OpenAIChat("stub", base_url=stub.url.replace("//", "//ann:s3cret@"), sleep=Waits(), retries=1)
            with pytest.raises(kind) as caught:
                chat.ask("abc")
        for text in (str(caught.value), chat.endpoint, caplog.text):
            assert not [secret for secret in ("sk-of-ann-0815", "s3cret", "YW5uOnMzY3JldA", "k9") if secret in text]
        assert "***@127.0.0.1" in str(caught.value)
    with pytest.raises(ConfigError, match="keeps no password"):
        OpenAIChat("stub", base_url=chat.endpoint)
    with pytest.raises(ConfigError, match="not a URL") as caught:
        OpenAIChat("stub", base_url="ftp://ann:s3cret@host/v1")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_ask__is_not_sent_on_to_another_host(status):
    with ChatStub("cat") as elsewhere, ChatStub(Fail(status, headers={"Location": elsewhere.url + "/x"})) as stub:
        with pytest.raises(ConfigError, match=r"sends the question on to 127\.0\.0\.1, which nobody named"):
            chat_of(stub).ask("which?", RED)
        assert elsewhere.seen == []


def test_ask__on_the_same_host_it_is_sent_on():
    moved = Fail(307, headers={"Location": "/v1/chat/completions"})
    with ChatStub("cat", script=[moved]) as stub:
        assert chat_of(stub).ask("which?", RED) == "cat"
        assert [seen.image is None for seen in stub.seen] == [False, False]
    with ChatStub(moved) as stub, pytest.raises(ConfigError, match="in a circle"):
        chat_of(stub).ask("which?")


@pytest.mark.parametrize("behaviour", [Raw("x" * 2_000_000), Fail(500, "x" * 2_000_000)])
def test_ask__answers_have_an_end(behaviour):
    with ChatStub(behaviour) as stub, pytest.raises(DataError, match="more than 1,048,576 bytes"):
        chat_of(stub).ask("abc")
