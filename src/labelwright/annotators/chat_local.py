"""Chat models that see (LLaVA-class) on this machine, through transformers.

transformers is imported where it is used, as in pretrained.py; what is wrong with a name is reported as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from labelwright.encoders.pretrained import check_complete, explained, load_config, load_model, located, quiet
from labelwright.errors import ConfigError
from labelwright.train.processes import autocast_dtype

if TYPE_CHECKING:
    from PIL import Image


class LocalChat:
    """A chat model that takes images, loaded from a folder or the Hugging Face hub. One thread at a time.

    Args:
      name: a folder written by save_pretrained, or a hub id (owner/name) such as llava-hf/llava-1.5-7b-hf.
      precision: of the weights: "auto", "bf16" or "fp32"; auto is bf16 where the hardware is quicker in it.
      max_new_tokens: of an answer.   batch_size: questions answered together.

    Raises:
      ConfigError: no such folder or id, or a model that takes no images or does not chat.
      OfflineError: a hub id that is neither cached nor within reach.

    Example:
      >>> LocalChat("./nowhere", device=torch.device("cpu"))
      Traceback (most recent call last):
      labelwright.errors.ConfigError: no such model folder: ./nowhere
        fix: check the path
    """

    def __init__(
        self,
        name: str,
        *,
        device: torch.device,
        precision: str = "auto",
        max_new_tokens: int = 128,
        batch_size: int = 8,
    ) -> None:
        config = load_config(name)
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        dtype = autocast_dtype(device, precision) or torch.float32
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ConfigError(
                f"{name} is a {config.model_type} model, which does not talk about images",
                fix="name a LLaVA-class model, such as llava-hf/llava-1.5-7b-hf",
            )
        with quiet(), explained(name):
            processor: Any = AutoProcessor.from_pretrained(**located(name))
        model, absent = load_model(name, config, kind=AutoModelForImageTextToText, dtype=dtype)
        check_complete(name, absent, fix="use a checkpoint of this architecture")
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or getattr(processor, "image_processor", None) is None:
            raise ConfigError(
                f"{name} does not say how to prepare images and text",
                fix="put its processor and tokenizer files there",
            )
        self.name = name
        self.batch_size = batch_size
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor = processor
        self._max_new_tokens = max_new_tokens
        tokenizer.padding_side = "left"  # an answer continues from the end of its question
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._has_template = bool(processor.chat_template or tokenizer.chat_template)

    def ask(self, prompt: str, image: Image.Image | None = None) -> str:
        """The likeliest answer to one question."""
        return self.ask_batch([prompt], [image])[0]

    @torch.inference_mode()
    def ask_batch(self, prompts: Sequence[str], images: Sequence[Image.Image | None]) -> list[str]:
        """The likeliest answer to each question about its image, in order, computed together."""
        shown = [None if image is None else image.convert("RGB") for image in images]
        pairs = zip(prompts, shown, strict=True)
        with quiet():
            texts = [self._text(prompt, has_image=image is not None) for prompt, image in pairs]
            # one list per question, as some processors (Idefics) want; the others flatten it
            nested = [[image] for image in shown if image is not None]
            asked = self._processor(text=texts, images=nested or None, padding=True, return_tensors="pt")
            asked = asked.to(self._model.device, self._model.dtype)
            tokens = self._model.generate(**asked, max_new_tokens=self._max_new_tokens, do_sample=False)
            new = tokens[:, asked["input_ids"].shape[1] :]
            answers = self._processor.batch_decode(new, skip_special_tokens=True)
        return [str(answer).strip() for answer in answers]

    def _text(self, prompt: str, *, has_image: bool) -> str:
        """The question in the form that the model was taught, with a place for its image."""
        if not self._has_template:  # LLaVA-1.5
            return f"USER: <image>\n{prompt} ASSISTANT:" if has_image else f"USER: {prompt} ASSISTANT:"
        content = [{"type": "image"}] * has_image + [{"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
