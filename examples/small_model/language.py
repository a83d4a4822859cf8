"""The small language that the small model speaks: 87 English words, sentences of four to nine words.

The words were chosen because a small recogniser tells them apart. Sentences of the training, development and test sets
never overlap: nothing that is reported was seen in training, and nothing is selected on the test sentences.
"""

import random

from vibevoice_finetune.evaluation.words import Errors, word_errors

VERBS = "move bring find open watch collect cover sell".split()
PAST = "found painted followed delivered".split()
COLOURS = "red blue green black yellow orange brown purple".split()
KINDS = "small large new heavy broken wooden little beautiful".split()
OBJECTS = "book door hammer picture basket letter guitar paper jacket computer piano apple banana ball".split()
NUMBERS = "two four five six seven nine".split()
NAMES = "Peter David Jessica".split()
PLACES = (
    "window table garden kitchen station office hospital library market village mountain island castle museum".split()
)
DAYS = "Monday Friday Sunday".split()
LINKS = (
    "the to will at is near please and in with number was from here be we on there are behind after tomorrow".split()
)
WORDS = sorted({*VERBS, *PAST, *COLOURS, *KINDS, *OBJECTS, *NUMBERS, *NAMES, *PLACES, *DAYS, *LINKS})

NUM_TEST = 120
NUM_DEV = 60


def sentence(rng: random.Random) -> str:
    """One random sentence of the language."""

    def pick(words: list[str]) -> str:
        return rng.choice(words)

    def thing() -> str:
        kind = pick(COLOURS) if rng.random() < 0.5 else pick(KINDS)
        return f"the {kind} {pick(OBJECTS)}" if rng.random() < 0.7 else f"the {pick(OBJECTS)}"

    def place() -> str:
        return f"the {pick(PLACES)}"

    patterns = (
        lambda: f"{pick(VERBS)} {thing()} and {pick(VERBS)} {thing()}",
        lambda: f"{pick(VERBS)} {thing()} to {pick(NAMES)}",
        lambda: f"{pick(NAMES)} will {pick(VERBS)} {thing()} at {pick(NUMBERS)}",
        lambda: f"{thing()} is near {place()}",
        lambda: f"{thing()} was in {place()}",
        lambda: f"please {pick(VERBS)} {thing()} and {thing()}",
        lambda: f"{pick(NAMES)} is in {place()} with {pick(NAMES)}",
        lambda: f"the number is {pick(NUMBERS)} {pick(NUMBERS)} {pick(NUMBERS)}",
        lambda: f"{pick(NAMES)} {pick(PAST)} {thing()} from {place()}",
        lambda: f"on {pick(DAYS)} {pick(NAMES)} will {pick(VERBS)} {thing()}",
        lambda: f"{pick(NAMES)} and {pick(NAMES)} will be here after {pick(NUMBERS)}",
        lambda: f"{place()} is behind {place()}",
        lambda: f"tomorrow we will {pick(VERBS)} {thing()}",
        lambda: f"there are {pick(NUMBERS)} {pick(OBJECTS)}s in {place()}",
    )
    text = pick(list(patterns))()
    return text[0].upper() + text[1:] + "."


def sentences(count: int, seed: int, avoid: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """`count` different sentences, none of them in `avoid`."""
    rng, seen, found = random.Random(seed), set(avoid), []
    while len(found) < count:
        text = sentence(rng)
        if text not in seen:
            seen.add(text)
            found.append(text)
    return found


def reserved() -> tuple[list[str], list[str]]:
    """The test sentences and the development sentences, which no training set may hold."""
    both = sentences(NUM_TEST + NUM_DEV, seed=99)
    return both[:NUM_TEST], both[NUM_TEST:]


HOMOPHONES = {"to": "two", "too": "two", "for": "four", "read": "red", "blew": "blue"}
"""What no recogniser can tell apart, read as one word."""

_DIGITS = dict(zip("0123456789", "zero one two three four five six seven eight nine".split(), strict=True))


def plain(text: str) -> str:
    """A text as words are compared here: single digits in words, homophones as one.

    >>> plain("Bring 2 to Peter, at 7.")
    'bring two two peter at seven'
    """
    spelled = "".join(f" {_DIGITS[c]} " if c in _DIGITS else c if c.isalpha() else " " for c in text.replace("'", ""))
    return " ".join(HOMOPHONES.get(word, word) for word in spelled.lower().split())


def errors_of(text: str, heard: str) -> Errors:
    """Word errors of a sentence of this language."""
    return word_errors(plain(text), plain(heard), None)
