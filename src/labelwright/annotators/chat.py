"""Models that answer questions in words: behind an OpenAI-compatible endpoint, or LLaVA-class ones of transformers.

None is asked unless the user names it, and what leaves the machine goes to the endpoint named and nowhere else.

One policy of failure. A question is repeated, waiting longer each time, while its fault may pass: no connection, no
answer in time, HTTP 408, 409, 429 or 5xx, an answer that is not a chat completion. Then, or at once if the endpoint
refuses this one question, it counts as failed and the others go on. A refusal that holds for all of them (key, model,
quota) stops everything, and so does a row of failures that says the endpoint is down.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from labelwright.errors import ConfigError, LabelwrightError, OfflineError

CHARS_PER_TOKEN = 4  # of English, roughly
TOKENS_PER_IMAGE = 600  # roughly: LLaVA-1.5 576, GPT-4o 255 for 512 px

_Outcomes = Generator[tuple[int, str | BaseException], None, None]


class ChatModel(Protocol):
    """A model that answers one question, maybe about an image; ``name`` is what the user calls it."""

    name: str

    def ask(self, prompt: str, image: Image.Image | None = None) -> str:
        """The answer, as the model gave it; may be called from several threads unless the model is local."""
        ...


@runtime_checkable
class BatchChatModel(Protocol):
    """A model that answers several questions sooner together than one by one, best ``batch_size`` of them."""

    batch_size: int

    def ask_batch(self, prompts: Sequence[str], images: Sequence[Image.Image | None]) -> list[str]:
        """The answers, in order."""
        ...


@dataclass(frozen=True)
class Question:
    """One question of many."""

    prompt: str
    image: Image.Image | Callable[[], Image.Image] | None = None  # what it is about, or what loads that when needed

    def loaded(self) -> Image.Image | None:
        """The image, loaded if need be."""
        return self.image() if callable(self.image) else self.image


@dataclass(frozen=True)
class Estimate:
    """What asking will take, roughly; printed as one line."""

    n_calls: int  # questions, each counted once
    tokens_in: int  # of prompts and images
    tokens_out: int  # of answers

    def __str__(self) -> str:
        calls = "1 question" if self.n_calls == 1 else f"{self.n_calls:,} questions"
        return f"{calls}: roughly {self.tokens_in:,} tokens in and {self.tokens_out:,} out"


def estimate(n_questions: int, *, prompt_chars: float, answer_tokens: float, n_images: int = 0) -> Estimate:
    """Rough cost of asking, before anything is asked; repetitions after faults are not counted.

    Args:
      n_questions: how many.   prompt_chars: mean length of a prompt.   answer_tokens: mean length of an answer.
      n_images: how many of the questions carry an image.

    Example: 1,000 questions of 200 characters and an image.
      >>> print(estimate(1000, prompt_chars=200, answer_tokens=20, n_images=1000))
      1,000 questions: roughly 650,000 tokens in and 20,000 out
    """
    tokens_in = round(n_questions * prompt_chars / CHARS_PER_TOKEN + n_images * TOKENS_PER_IMAGE)
    return Estimate(n_questions, tokens_in, round(n_questions * answer_tokens))


def ask_many(
    chat: ChatModel,
    questions: Iterable[Question],
    *,
    n_workers: int | None = None,
    on_answer: Callable[[int, str | None], None] | None = None,
    failures_in_row: int = 8,
) -> list[str | None]:
    """Ask many questions, several at a time; one that fails for good gives None and the others go on.

    Questions are taken from the iterable as their turn comes, so images can be loaded late. A model with `ask_batch`
    is asked batch by batch in the caller's thread.

    Args:
      chat: the model.   questions: any number of them.
      n_workers: questions under way at once; None = what the endpoint was opened with (max_in_flight), else 1.
      on_answer: called in the caller's thread with (position, answer or None) as each question is done with, in any
        order; what it raises ends the asking.
      failures_in_row: this many failures one after the other end the asking if nothing was answered before, or if
        none of them was the question's own fault: the endpoint is down.

    Returns: the answers in the order of the questions, None where one failed.

    Raises: ConfigError at once where it holds for all questions; the last failure if too many came in a row.

    Example:
      >>> class Parrot:
      ...     name = "parrot"
      ...     def ask(self, prompt, image=None):
      ...         return prompt.upper()
      >>> ask_many(Parrot(), [Question("a"), Question("b")])
      ['A', 'B']
    """
    n_threads = int(getattr(chat, "max_in_flight", 1)) if n_workers is None else n_workers
    if n_threads < 1 or failures_in_row < 1:
        raise ConfigError(f"n_workers={n_threads}, failures_in_row={failures_in_row}", fix="give at least 1 of each")
    if isinstance(chat, BatchChatModel):
        outcomes = _batch_by_batch(chat, questions)
    else:
        outcomes = _in_threads(chat, questions, n_threads)
    answers: dict[int, str | None] = {}
    n_answered = n_in_row = 0
    with closing(outcomes):
        for position, outcome in outcomes:
            if isinstance(outcome, ConfigError) or not isinstance(outcome, str | LabelwrightError):
                raise outcome
            answers[position] = outcome if isinstance(outcome, str) else None
            if on_answer is not None:
                on_answer(position, answers[position])
            if isinstance(outcome, str):
                n_answered, n_in_row = n_answered + 1, 0
            elif isinstance(outcome, OfflineError) or n_answered == 0:
                n_in_row += 1
                if n_in_row >= failures_in_row:
                    raise outcome
    if answers and n_answered == 0:
        assert isinstance(outcome, LabelwrightError)
        raise outcome
    return [answers[position] for position in range(len(answers))]


def _batch_by_batch(chat: BatchChatModel, questions: Iterable[Question]) -> _Outcomes:
    numbered = enumerate(questions)
    while batch := list(itertools.islice(numbered, chat.batch_size)):
        ready = []
        for position, question in batch:
            try:
                ready.append((position, question.prompt, question.loaded()))
            except LabelwrightError as error:
                yield position, error
        if ready:
            positions, prompts, images = zip(*ready, strict=True)
            yield from zip(positions, chat.ask_batch(prompts, images), strict=True)


def _in_threads(chat: ChatModel, questions: Iterable[Question], n_workers: int) -> _Outcomes:
    """Outcomes as they come. The threads are daemons: Ctrl-C need not wait for an endpoint that stalls."""
    todo: queue.SimpleQueue[tuple[int, Question] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, str | BaseException]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while (item := todo.get()) is not None and not stopped.is_set():
            position, question = item
            try:
                done.put((position, chat.ask(question.prompt, question.loaded())))
            except BaseException as error:
                done.put((position, error))

    for _ in range(n_workers):
        threading.Thread(target=work, daemon=True).start()
    n_open = 0
    try:
        for item in enumerate(questions):
            todo.put(item)
            n_open += 1
            if n_open >= 2 * n_workers:  # one under way and one waiting for each thread
                yield done.get()
                n_open -= 1
        while n_open:
            yield done.get()
            n_open -= 1
    finally:
        stopped.set()
        for _ in range(n_workers):
            todo.put(None)
