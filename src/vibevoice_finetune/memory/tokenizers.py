"""What the speech tokenizers take: before training, when audio is encoded, and during it, when samples are spoken."""

from vibevoice_finetune.base_model.load import ENCODED_AT_ONCE_BYTES
from vibevoice_finetune.latents.fill import BATCH_SEC
from vibevoice_finetune.memory import count
from vibevoice_finetune.memory.count import FLOAT32, ModelSize, Recipe

# An encoder takes about 40 MB per second of the audio in its batch, in float32 (`latents/encode.py`).
ENCODING_BYTES_PER_SEC = 40 * 10**6


def encoding_bytes(size: ModelSize, device: str) -> float:
    """A speech encoder in float32 with a batch in it, before training; the two are loaded one after the other."""
    at_once = ENCODING_BYTES_PER_SEC * BATCH_SEC if device == "cuda" else ENCODED_AT_ONCE_BYTES
    return FLOAT32 * size.largest_encoder + at_once


def tokenizer_bytes(size: ModelSize, recipe: Recipe) -> float:
    """The speech tokenizers with which a model that is trained speaks."""
    return recipe.activation * size.tokenizers if recipe.speaks else 0.0


def speaking_bytes(size: ModelSize, recipe: Recipe) -> float:
    """What samples need beside weights, optimizer and tokenizers.

    An encoder is made float32 while it encodes the voices; the trained weights are kept aside while their average
    speaks. What the language model remembers of a few short rows is less than the encoder's work space.
    """
    aside = FLOAT32 * recipe.share * count.trained_numbers(size, recipe) if recipe.ema else 0.0
    return aside + (FLOAT32 - recipe.activation) * size.largest_encoder + ENCODED_AT_ONCE_BYTES
