"""Attention row by row, on rows of three and four tokens: against the formula, and that no mask is made for it."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.objective.attention import VARLEN, row_arguments, set_attention

LENGTHS, BORDERS = [3, 4], torch.tensor([0, 3, 7], dtype=torch.int32)
HEADS, KEY_VALUE_HEADS, WIDTH = 4, 2, 8


def model(**settings) -> Qwen2Model:
    config = Qwen2Config(
        hidden_size=HEADS * WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        vocab_size=10,
        **settings,
    )
    return Qwen2Model(config).eval()


def attend(query, key, value):
    function = ALL_ATTENTION_FUNCTIONS[VARLEN]
    rows = row_arguments(LENGTHS, BORDERS)
    return function(SimpleNamespace(), query, key, value, None, scaling=WIDTH**-0.5, **rows)[0]


def test_it_is_causal_attention_within_each_row():
    """Token by token in float64: softmax over the row's tokens up to this one; two heads share a head of keys."""
    set_attention(model(), VARLEN)
    torch.manual_seed(0)
    query = torch.randn(1, HEADS, 7, WIDTH, dtype=torch.float64)
    key, value = (torch.randn(1, KEY_VALUE_HEADS, 7, WIDTH, dtype=torch.float64) for _ in range(2))
    found = attend(query, key, value)
    assert found.shape == (1, 7, HEADS, WIDTH)
    assert found.is_contiguous()
    starts = [0, 0, 0, 3, 3, 3, 3]
    for head in range(HEADS):
        shared = head // 2
        for token, start in enumerate(starts):
            scores = key[0, shared, start : token + 1] @ query[0, head, token] / math.sqrt(WIDTH)
            expected = scores.softmax(0) @ value[0, shared, start : token + 1]
            torch.testing.assert_close(found[0, token, head], expected, rtol=1e-9, atol=1e-9)


def test_no_mask_is_made():
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    language_model = model()
    arguments = (language_model.config, torch.zeros(1, 7, HEADS * WIDTH), None, None, packed)
    set_attention(language_model, "sdpa")
    assert create_causal_mask(*arguments).shape == (1, 1, 7, 7)
    set_attention(language_model, VARLEN)
    assert create_causal_mask(*arguments) is None


def test_nothing_as_wide_as_the_batch_is_kept():
    """Seven tokens in all: autograd keeps no tensor with two sides of seven, as scores or a mask of all rows have."""
    shapes = {}
    for name in (VARLEN, "eager"):
        language_model = model()
        set_attention(language_model, name)
        kept = shapes[name] = []
        embeddings = torch.randn(1, 7, HEADS * WIDTH, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
            language_model(
                inputs_embeds=embeddings,
                position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
                use_cache=False,
                **row_arguments(LENGTHS, BORDERS),
            )
    assert [shape for shape in shapes[VARLEN] if shape[-2:] == (7, 7)] == []
    assert [shape for shape in shapes["eager"] if shape[-2:] == (7, 7)] != []


def test_without_row_lengths_it_refuses():
    language_model = model()
    set_attention(language_model, VARLEN)
    with pytest.raises(ValueError, match="needs the lengths"):
        language_model(inputs_embeds=torch.zeros(1, 7, HEADS * WIDTH), use_cache=False)


def test_a_sliding_window_is_refused():
    sliding = model(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    with pytest.raises(ArgumentError, match="use --attn_implementation sdpa"):
        set_attention(sliding, VARLEN)
