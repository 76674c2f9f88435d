"""Text that a trained model writes: the prompt as tokens, and what follows it as text."""

from .model import VOCABULARY, TinyTransformer
from .text_data import Task, sample

DEFAULT_LENGTH = 300  # characters of a text
BOS, EOS = VOCABULARY.index("<BOS>"), VOCABULARY.index("<EOS>")
WORDS = VOCABULARY[EOS + 1 :]


def prompt_tokens(task: Task, prompt: str | None) -> list[int]:
    """Return the tokens that a text begins with.

    Args:
        task: what the model has been trained on: characters, or the words of a sentence.
        prompt: None for the first character of the held-out text, or for the start of the sentence.

    Raises:
        ValueError: the task has no such tokens.
    """
    if task.corpus is None:
        return [BOS, *_word_tokens("" if prompt is None else prompt, len(VOCABULARY) - 2)]
    if prompt is None:
        return [int(task.corpus.held_out[0])]
    if not prompt:
        raise ValueError("prompt must be at least one character of the text; got ''")
    index = {character: token for token, character in enumerate(task.vocabulary)}
    for character in prompt:
        if character not in index:
            raise ValueError(f"prompt must contain characters of the text only; got {character!r}")
    return [index[character] for character in prompt]


def _word_tokens(prompt: str, most: int) -> list[int]:
    words = prompt.split()
    for word in words:
        if word not in WORDS:
            known = ", ".join(WORDS)
            raise ValueError(f"prompt must contain words of {known} only; got {word!r}")
    if len(words) > most:
        raise ValueError(f"prompt must be at most {most} words; got {len(words)}")
    return [VOCABULARY.index(word) for word in words]


def generate(
    model: TinyTransformer, task: Task, start: list[int], length: int | None, seed: int
) -> str:
    """Return a text that begins with `start`.

    `length` more tokens follow it, each drawn from the model's prediction. A sentence ends at
    <EOS>, or where the positions of the model do.
    """
    if task.corpus is not None:
        length = DEFAULT_LENGTH if length is None else length
        return task.corpus.decode(sample(model, start, length, seed))
    most = model.max_length - len(start)
    length = most if length is None else min(length, most)
    tokens = sample(model, start, length, seed, end=EOS)
    return " ".join(task.vocabulary[token] for token in tokens[1:])
