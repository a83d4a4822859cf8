"""Requests and what they become: seeds, batches, limits, and what is corrected in transformers' loop."""

import copy
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

from tests.invariants.listening import directed, run, voice_jitters
from vibevoice_finetune.adapters.apply import AppliedSummary
from vibevoice_finetune.audio.source import (
    AudioSource,
    load_audio,
    normalize_rms,
    num_frames,
    pad_to_frames,
    parse_audio,
)
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.prompt import generation_prompt
from vibevoice_finetune.errors import AdapterError, ArgumentError, BaseModelError, DataError, UserError
from vibevoice_finetune.generation import generate as generate_room
from vibevoice_finetune.generation import loop
from vibevoice_finetune.generation import prompts as prompts_room
from vibevoice_finetune.generation.generate import (
    Generation,
    GenerationRequest,
    ModelSource,
    generate,
    load_speech_model,
    voice_warnings,
)
from vibevoice_finetune.generation.loop import Prompt, is_plain, make_solver, sample_latents
from vibevoice_finetune.generation.prompts import SpeechModel, encode_voice, make_prompt
from vibevoice_finetune.generation.scripts import Script, script_from_text
from vibevoice_finetune.objective.embeddings import embed_prompt

HOP = 24  # of the golden model used here
FRAME_SEC = HOP / 24_000


@cache
def load(golden_dir: Path, dtype: torch.dtype = torch.float32) -> SpeechModel:
    return load_speech_model(source_of(golden_dir, dtype=dtype))


def source_of(golden_dir: Path, **changes: Any) -> ModelSource:
    values = {"dtype": torch.float32, "device": "cpu", "processor_name_or_path": str(golden_dir / "tokenizer")}
    return ModelSource(str(golden_dir / "untied" / "checkpoint"), **{**values, **changes})


@pytest.fixture
def speaker(golden_dir: Path) -> SpeechModel:
    return load(golden_dir)


def noise_of(samples: int, seed: int = 0) -> AudioSource:
    noise = np.random.default_rng(seed).standard_normal(samples, dtype=np.float32)
    return parse_audio(0.1 * noise, None, f"voice {seed}")


SHORT, LONG = noise_of(2 * HOP + 1), noise_of(7 * HOP, seed=1)
SCRIPTS = (
    script_from_text("Hello."),
    script_from_text("Speaker 0: A line that is quite a bit longer than the others.", [LONG]),
    script_from_text("Speaker 1: Hi.\nSpeaker 2: Yes?", [SHORT, LONG]),
)


def request_for(speaker: SpeechModel, scripts: Sequence[Script] = SCRIPTS, **settings: Any) -> GenerationRequest:
    return GenerationRequest(speaker, tuple(scripts), **{"num_diffusion_steps": 3, **settings})


def say(speaker: SpeechModel, frames: Sequence[int] = (4, 6, 5), **settings: Any) -> Generation:
    scripts = settings.pop("scripts", SCRIPTS[: len(frames)])
    found, _ = run(request_for(speaker, scripts, **settings), frames)
    return found


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


def test_what_comes_back(speaker: SpeechModel) -> None:
    heard: list[float] = []
    special = speaker.special
    with directed(speaker.model, special, (4, 6, 0), []):
        found = generate(request_for(speaker), heard.append)
    assert [speech.num_frames for speech in found.speeches] == [4, 6, 0]
    assert [speech.waveform_N.shape for speech in found.speeches] == [(4 * HOP,), (6 * HOP,), (0,)]
    assert all(speech.waveform_N.dtype == np.float32 for speech in found.speeches)
    assert all(speech.ended for speech in found.speeches)
    assert found.speeches[0].decisions == (*[special.frame] * 4, special.speech_end, special.end_of_text)
    assert found.speeches[0].duration_sec == pytest.approx(0.004)
    assert found.seconds > 0
    assert found.real_time_factor == pytest.approx(found.seconds / 0.010)
    # Frames after each step, all scripts together: 2 a step, then 1, then none.
    assert np.round(np.array(heard) / FRAME_SEC).tolist() == [2, 4, 6, 8, 9, 10, 10, 10]


def test_nothing_said_has_no_real_time_factor(speaker: SpeechModel) -> None:
    assert say(speaker, (0,)).real_time_factor == math.inf


def test_the_same_seed_says_the_same_and_leaves_torch_alone(speaker: SpeechModel) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = say(speaker, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = say(speaker, seed=7), say(speaker, seed=8)
    for first, second, third in zip(one.speeches, again.speeches, other.speeches, strict=True):
        assert np.array_equal(first.waveform_N, second.waveform_N)
        assert difference(first.waveform_N, third.waveform_N) > 0.01


def test_a_script_sounds_the_same_in_any_batch(speaker: SpeechModel) -> None:
    together = say(speaker, (4, 6, 5))
    for script, speech, frames in zip(SCRIPTS, together.speeches, (4, 6, 5), strict=True):
        (alone,) = say(speaker, (frames,), scripts=[script]).speeches
        assert alone.decisions == speech.decisions
        assert difference(alone.waveform_N, speech.waveform_N) < 1e-4


def test_batches_follow_each_other(speaker: SpeechModel) -> None:
    together = say(speaker, (3, 3, 3))
    divided: list[float] = []
    with planned(speaker, {None: [speaker.special.frame] * 3}):
        found = generate(request_for(speaker, batch_size=2), divided.append)
    for one, other in zip(together.speeches, found.speeches, strict=True):
        assert difference(one.waveform_N, other.waveform_N) < 1e-4
    assert divided[-1] == pytest.approx(9 * FRAME_SEC)


class _Plan(LogitsProcessor):
    """Rows of a batch choose the tokens of their plan, then end of text; rows of another size of batch another one."""

    def __init__(self, plans: dict[Any, list[int]], end_of_text: int) -> None:
        self.plans = plans
        self.end_of_text = end_of_text
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row in range(len(scores)):
            key = (len(scores), row)
            plan = self.plans.get(key, self.plans.get(None, []))
            forced[row, plan[self.step] if self.step < len(plan) else self.end_of_text] = 0
        self.step += 1
        return forced


@contextmanager
def planned(speaker: SpeechModel, plans: dict[Any, list[int]]) -> Iterator[None]:
    model: Any = speaker.model
    native = model._get_logits_processor

    def processors(*args: Any, **kwargs: Any) -> LogitsProcessorList:
        return LogitsProcessorList([*native(*args, **kwargs), _Plan(plans, speaker.special.end_of_text)])

    vars(model)["_get_logits_processor"] = processors
    try:
        yield
    finally:
        del vars(model)["_get_logits_processor"]


def test_a_row_that_goes_on_after_its_end_is_the_same_in_any_batch(
    speaker: SpeechModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop lets the decoder of a waiting row run on while the other speaks; so such a row is made again alone."""
    special = speaker.special
    straight = [special.frame] * 8
    resumed = [
        *[special.frame] * 2,
        special.speech_end,
        special.speech_start,
        *[special.frame] * 3,
        special.speech_end,
    ]
    plans = {(2, 0): straight, (2, 1): resumed, (1, 0): resumed}
    with planned(speaker, plans):
        together = generate(request_for(speaker, SCRIPTS[:2])).speeches
        (alone,) = generate(request_for(speaker, SCRIPTS[1:2])).speeches
        monkeypatch.setattr(loop, "is_plain", lambda *_: True)  # as if it needed no care
        careless = generate(request_for(speaker, SCRIPTS[:2])).speeches
    assert together[1].decisions == alone.decisions == (*resumed, special.end_of_text)
    assert np.array_equal(together[1].waveform_N, alone.waveform_N)
    assert difference(careless[1].waveform_N, alone.waveform_N) > 1e-3
    assert np.array_equal(careless[0].waveform_N, together[0].waveform_N)


def test_a_limit_cuts_off_and_says_so(speaker: SpeechModel) -> None:
    limit_sec = 5.5 * FRAME_SEC
    found = say(speaker, (4, 9, 5), max_length_sec=limit_sec)
    assert [(speech.num_frames, speech.ended) for speech in found.speeches] == [(4, True), (5, False), (5, True)]
    whole = say(speaker, (4, 9, 5))
    assert difference(found.speeches[1].waveform_N, whole.speeches[1].waveform_N[: 5 * HOP]) < 1e-5


def test_a_limit_below_a_frame_is_one_frame(speaker: SpeechModel) -> None:
    (speech,) = say(speaker, (4,), max_length_sec=FRAME_SEC / 100).speeches
    assert speech.num_frames == 1


def test_a_row_that_never_decides_is_stopped(speaker: SpeechModel) -> None:
    starts = [speaker.special.speech_start] * 1000
    with planned(speaker, {None: starts}):
        (speech,) = generate(request_for(speaker, SCRIPTS[:1], max_length_sec=3 * FRAME_SEC)).speeches
    assert (speech.num_frames, speech.ended) == (0, False)
    assert len(speech.decisions) == 3 + loop.SPARE_TOKENS


def test_the_models_positions_are_a_limit(speaker: SpeechModel) -> None:
    positions = parts.facts(speaker.model.config).max_positions
    ids, _ = generation_prompt(speaker.encode, speaker.special, SCRIPTS[0].turns, [])
    prompt = make_prompt(speaker, SCRIPTS[0], 0, 10**9, {})
    assert prompt.max_frames == positions - len(ids) - 2
    with pytest.raises(DataError, match=r"^the text: the script .* takes .* which leaves none for speech"):
        make_prompt(speaker, script_from_text("word " * positions), 0, 10, {})


def test_the_prompt_is_the_one_that_transformers_would_make(speaker: SpeechModel) -> None:
    """Ids and voices through their own forward; its draw from the VAE left out, because it has no seed of its own."""
    script = SCRIPTS[2]
    model = speaker.model
    frames = [num_frames(len(load_audio(voice)), HOP) for voice in script.voices]
    ids, positions = generation_prompt(speaker.encode, speaker.special, script.turns, frames)
    waveforms = [torch.from_numpy(pad_to_frames(normalize_rms(load_audio(voice)), HOP)) for voice in script.voices]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([[len(waveform)] for waveform in waveforms])
    heard: list[Tensor] = []
    hook = parts.language_model(model).register_forward_pre_hook(
        lambda _, __, kwargs: heard.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    with torch.no_grad(), hook:
        model.model(torch.from_numpy(ids)[None], input_values=padded[:, None], padding_mask=mask, sample=False)
        bias, scale = parts.latent_bias(model), parts.latent_scale(model)
        voice_VC = (torch.cat([encode_voice(model, voice) for voice in script.voices]) + bias) * scale
        ours = embed_prompt(model, torch.from_numpy(ids), torch.from_numpy(positions), voice_VC)
    torch.testing.assert_close(ours, heard[0], atol=1e-5, rtol=0)


def test_a_voice_is_encoded_in_pieces_as_in_one(speaker: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode_voice(speaker.model, LONG)
    assert whole.shape == (7, parts.facts(speaker.model.config).acoustic_dim)
    monkeypatch.setattr(prompts_room, "ENCODED_AT_ONCE_FRAMES", 2)
    torch.testing.assert_close(encode_voice(speaker.model, LONG), whole, atol=1e-5, rtol=0)


def test_a_voice_is_encoded_in_float32_whatever_the_models_dtype(speaker: SpeechModel) -> None:
    """As the latent store encodes it for training; the weights themselves stay in bf16."""
    in_bf16 = copy.deepcopy(speaker.model).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in in_bf16.state_dict().items()}
    rounded = copy.deepcopy(in_bf16).float()
    assert torch.equal(encode_voice(in_bf16, LONG), encode_voice(rounded, LONG))
    assert all(torch.equal(tensor, before[name]) for name, tensor in in_bf16.state_dict().items())


def test_a_scripts_voices_are_jittered_one_by_one(speaker: SpeechModel) -> None:
    """What is added to the means, as noise: one factor per clip, then its noise, all from one stream."""
    model, script = speaker.model, SCRIPTS[2]
    facts = parts.facts(model.config)
    drawn: list[Tensor] = []

    def watch(_: object, inputs: tuple[Tensor]) -> None:
        drawn.append(inputs[0])

    with torch.no_grad(), parts.acoustic_connector(model).register_forward_pre_hook(watch):
        make_prompt(speaker, script, 5, 10, {})
    means = torch.cat([encode_voice(model, voice) for voice in script.voices])
    found = (drawn[0] / parts.latent_scale(model) - parts.latent_bias(model) - means) / facts.vae_std
    expected = np.concatenate(voice_jitters(5, [3, 7], facts.acoustic_dim))
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-4)


def test_a_voice_that_speaks_twice_is_encoded_once(speaker: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[AudioSource] = []

    def count(model: Any, voice: AudioSource) -> Tensor:
        encoded.append(voice)
        return encode_voice(model, voice)

    monkeypatch.setattr(prompts_room, "encode_voice", count)
    say(speaker, (1, 1, 1))
    assert encoded == [LONG, SHORT]


# One that cannot be said does not stop the others.


def too_long(speaker: SpeechModel) -> Script:
    return script_from_text("word " * parts.facts(speaker.model.config).max_positions, where="the long one")


def test_a_script_that_does_not_fit_leaves_the_others(speaker: SpeechModel) -> None:
    told: list[tuple[int, int]] = []
    scripts = (SCRIPTS[0], too_long(speaker), SCRIPTS[1])
    with planned(speaker, {None: [speaker.special.frame] * 3}):
        found = generate(request_for(speaker, scripts), on_speech=lambda n, speech: told.append((n, speech.num_frames)))
    assert told == [(0, 3), (1, 0), (2, 3)]
    assert [bool(speech.fault) for speech in found.speeches] == [False, True, False]
    assert found.speeches[1].fault.startswith("the long one: the script with its voices takes")


def test_what_is_done_is_told_before_the_rest_is_begun(speaker: SpeechModel) -> None:
    begun: list[int] = []

    def stop(number: int, _: object) -> None:
        begun.append(number)
        raise KeyboardInterrupt

    with planned(speaker, {None: [speaker.special.frame]}), pytest.raises(KeyboardInterrupt):
        generate(request_for(speaker, batch_size=1), on_speech=stop)
    assert begun == [0]


def test_a_voice_of_an_hour_is_refused_before_it_is_encoded(speaker: SpeechModel) -> None:
    positions = parts.facts(speaker.model.config).max_positions
    script = script_from_text("Hi.", [noise_of(positions * HOP)])
    assert speaker.model.model is not None
    (speech,) = say(speaker, (), scripts=[script]).speeches
    assert f"has {positions:,} frames, and the model has {positions:,} positions" in speech.fault


def test_a_voice_of_a_twentieth_of_a_frame_is_one_frame(speaker: SpeechModel) -> None:
    (speech,) = say(speaker, (2,), scripts=[script_from_text("Hi.", [noise_of(2)])]).speeches
    assert speech.num_frames == 2


@contextmanager
def little_memory(speaker: SpeechModel, rows: int, error: type[BaseException], message: str) -> Iterator[None]:
    """Memory that does not suffice for more than so many rows at once."""

    def check(_: object, __: object, kwargs: dict[str, Any]) -> None:
        if len(kwargs["inputs_embeds"]) > rows:
            raise error(message)

    with parts.language_model(speaker.model).register_forward_pre_hook(check, with_kwargs=True):
        yield


NO_MEMORY = [
    (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 8 bytes."),
    (MemoryError, ""),
]


@pytest.mark.parametrize(("error", "message"), NO_MEMORY)
def test_without_memory_for_a_batch_it_is_divided(
    speaker: SpeechModel, error: type[BaseException], message: str
) -> None:
    plans = {None: [speaker.special.frame] * 3}
    with planned(speaker, plans):
        whole = generate(request_for(speaker))
    heard: list[float] = []
    with planned(speaker, plans), little_memory(speaker, 1, error, message):
        divided = generate(request_for(speaker), heard.append)
    assert heard[-1] == pytest.approx(9 * FRAME_SEC)
    for one, other in zip(whole.speeches, divided.speeches, strict=True):
        assert difference(one.waveform_N, other.waveform_N) < 1e-4


@pytest.mark.parametrize(("error", "message"), NO_MEMORY)
def test_without_memory_for_one_script_it_says_what_helps(
    speaker: SpeechModel, error: type[BaseException], message: str
) -> None:
    with little_memory(speaker, 0, error, message):
        (speech,) = generate(request_for(speaker, SCRIPTS[:1])).speeches
    assert speech.fault.startswith("the text: there is not enough memory to say it; use --dtype bf16")


def test_without_memory_for_the_model_it_says_what_helps(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(NO_MEMORY[0][1])

    monkeypatch.setattr(generate_room, "load_for_generation", fail)
    with pytest.raises(UserError, match=r"not enough memory to load the model as float32 on cpu; use --dtype bf16"):
        load_speech_model(source_of(golden_dir))


def test_numbers_that_are_not_finite_are_no_audio(speaker: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "sample_latents", lambda *_, **__: torch.full((1, 8), math.nan))
    with planned(speaker, {None: [speaker.special.frame]}):
        (speech,) = generate(request_for(speaker, SCRIPTS[:1])).speeches
    assert len(speech.waveform_N) == 0
    assert "numbers that are not finite" in speech.fault


def test_scores_that_are_not_finite_are_not_called_silence(speaker: SpeechModel) -> None:
    weight = speaker.model.model.language_model.norm.weight
    before = weight.detach().clone()
    weight.data.fill_(math.nan)
    try:
        (speech,) = generate(request_for(speaker, SCRIPTS[:1])).speeches
    finally:
        weight.data.copy_(before)
    assert "numbers that are not finite" in speech.fault


# What is corrected in transformers' loop.


def test_transformers_still_guides_the_token_scores(speaker: SpeechModel) -> None:
    model: Any = speaker.model
    config = model._prepare_generation_config(None, guidance_scale=1.3, noise_scheduler=make_solver())[0]
    found = model._get_logits_processor(config, input_ids_seq_length=3, logits_processor=LogitsProcessorList())
    guiding = [type(p).__name__ for p in found if isinstance(p, UnbatchedClassifierFreeGuidanceLogitsProcessor)]
    assert len(guiding) == 1, (
        f"transformers builds {[type(p).__name__ for p in found]}: it no longer adds the processor that guides token "
        "scores, or under another name. If tokens are chosen without guidance now, take the filter out of "
        "`loop._corrected` and this test with it; if not, filter what does it there."
    )


def test_our_loop_runs_the_language_model_twice_a_frame(speaker: SpeechModel) -> None:
    """Once with the text and once without; the processor of the token scores would make it three times."""
    calls: list[object] = []
    hook = parts.language_model(speaker.model).register_forward_hook(lambda *_: calls.append(None))
    with hook:
        say(speaker, (4,), cfg_scale=1.3)
    # The prompt, then each of 4 frames and the end of speech go in; 4 times without text.
    assert len(calls) == 1 + 5 + 4


@pytest.mark.parametrize("cfg_scale", [1.0, 1.3, 3.0])
def test_sampling_is_that_of_transformers(speaker: SpeechModel, cfg_scale: float) -> None:
    model: Any = speaker.model
    facts = parts.facts(model.config)
    condition, negative = torch.randn(2, 3, facts.hidden_size, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(9)
    noise = torch.randn(6, facts.acoustic_dim)[:3]  # theirs draws for both branches and uses the first half
    torch.manual_seed(9)
    with torch.no_grad():
        theirs = model._sample_audio_latent(condition, negative, make_solver(), 10, cfg_scale)
        ours = sample_latents(
            parts.diffusion_head(model),
            make_solver(),
            condition,
            negative,
            noise,
            cfg_scale=cfg_scale,
            num_steps=10,
        )
    torch.testing.assert_close(ours, theirs[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50, 999])
def test_any_number_of_steps(speaker: SpeechModel, num_steps: int) -> None:
    (speech,) = say(speaker, (2,), num_diffusion_steps=num_steps).speeches
    assert np.isfinite(speech.waveform_N).all()


def test_the_model_comes_back_as_it_was(speaker: SpeechModel) -> None:
    model: Any = speaker.model
    before = set(vars(model))
    model.train()
    states: list[bool] = []
    hook = parts.language_model(model).register_forward_hook(lambda module, *_: states.append(module.training))
    try:
        with hook:
            say(speaker, (1,))
        assert model.training
        assert parts.language_model(model).training
        assert set(states) == {False}
        with pytest.raises(ZeroDivisionError), failing(speaker):
            generate(request_for(speaker))
        assert set(vars(model)) == before
        assert model.training
    finally:
        model.eval()


@contextmanager
def failing(speaker: SpeechModel) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with parts.language_model(speaker.model).register_forward_hook(fail):
        yield


@pytest.mark.parametrize(
    ("decisions", "plain"),
    [
        ("", True),
        ("F", True),
        ("FFEX", True),
        ("FFX", True),
        ("E", True),
        ("SF", False),
        ("FEF", False),
        ("FESFEX", False),
    ],
)
def test_plain_rows(speaker: SpeechModel, decisions: str, plain: bool) -> None:
    special = speaker.special
    ids = dict(zip("SEFX", special.ids, strict=True))
    assert is_plain([ids[letter] for letter in decisions], special) is plain


def test_noise_is_drawn_once_a_frame(speaker: SpeechModel) -> None:
    """A row's stream moves by its own frames alone, so the neighbours cannot shift it."""
    prompts: list[Prompt] = [make_prompt(speaker, script, 3, 10, {}) for script in SCRIPTS[:2]]
    with directed(speaker.model, speaker.special, (2, 4), []):
        loop.speak(
            speaker.model, speaker.special, prompts, cfg_scale=1.3, num_diffusion_steps=2, on_frames=lambda _: None
        )
    dim = parts.facts(speaker.model.config).acoustic_dim
    for prompt, frames in zip(prompts, (2, 4), strict=True):
        fresh = np.random.default_rng((3, prompts_room.FRAME_STREAM))
        fresh.standard_normal((frames, dim), dtype=np.float32)
        assert prompt.rng.standard_normal() == fresh.standard_normal()


# Loading, and what is refused.


def test_bf16_speaks(golden_dir: Path) -> None:
    speaker = load(golden_dir, torch.bfloat16)
    assert parts.lm_head(speaker.model).weight.dtype == torch.bfloat16
    found = say(speaker)
    assert all(np.isfinite(speech.waveform_N).all() for speech in found.speeches)
    reference = say(load(golden_dir))
    # bf16 has 8 bits: about 1 % a layer. Unrelated noise would differ by more than the audio's own size.
    ours, theirs = found.speeches[0].waveform_N, reference.speeches[0].waveform_N
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9


def test_a_source_is_loaded_on_the_way(golden_dir: Path) -> None:
    found = generate(GenerationRequest(source_of(golden_dir), SCRIPTS[:1], max_length_sec=FRAME_SEC))
    assert len(found.speeches) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dtype": torch.float16}, ArgumentError, "VibeVoice overflows"),
        ({"device": "no such thing"}, ArgumentError, "--device no such thing: cannot be used here"),
        ({"device": "meta"}, ArgumentError, "--device meta: not supported; expected cpu, cuda, mps, xpu, or cuda:1"),
        ({"device": "hpu"}, ArgumentError, "--device hpu: not supported"),
        ({"device": "CPU"}, ArgumentError, "--device CPU: cannot be used here"),
        ({"adapter": "/no/such/adapter"}, BaseModelError, "/no/such/adapter: no such folder; expected .* adapter"),
        ({"processor_name_or_path": "/no/such/tokenizer"}, BaseModelError, "/no/such/tokenizer"),
    ],
)
def test_a_source_that_cannot_be_loaded(
    golden_dir: Path, changes: dict[str, Any], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_speech_model(source_of(golden_dir, **changes))


def test_an_empty_folder_is_no_adapter(golden_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="holds no adapter"):
        load_speech_model(source_of(golden_dir, adapter=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg_scale": math.nan}, "--cfg_scale nan: must be a finite number, at least 0"),
        ({"cfg_scale": -1.0}, "--cfg_scale -1.0: must be a finite number, at least 0"),
        ({"num_diffusion_steps": 1000}, "--num_diffusion_steps 1000: must be from 1 to 999"),
        ({"max_length_sec": math.inf}, "--max_length_sec inf: must be a finite number above 0"),
        ({"num_diffusion_steps": 0}, "--num_diffusion_steps 0: must be from 1 to 999"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"max_length_sec": 0.0}, "--max_length_sec 0.0: must be a finite number above 0"),
        ({"batch_size": 0}, "--batch_size 0: must be at least 1"),
        ({"scripts": ()}, "nothing to say"),
    ],
)
def test_requests_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        GenerationRequest(**{"model": ModelSource("model"), "scripts": SCRIPTS, **settings})
    assert message in str(raised.value)


def test_without_diffusers_it_says_what_to_install(speaker: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r'pip install "vibevoice-finetune\[generate\]"'):
        generate(request_for(speaker))


@pytest.mark.parametrize(
    ("expects", "scale", "numbers", "expected"),
    [
        (True, 1.0, (0,), "trained with voice prompts and none is given: "),
        (True, 1.0, (0, 1), "trained with voice prompts and none is given (the text): "),
        (False, 1.0, (1, 2), "trained without voice prompts and one is given: "),
        (True, 1.0, (1, 2), None),
        (False, 1.0, (0,), None),
        (None, 1.0, (0, 1), None),  # a folder that does not say
        (True, 0.0, (0,), None),  # the base model
    ],
)
def test_voices_and_what_the_adapter_expects(
    expects: bool | None, scale: float, numbers: tuple[int, ...], expected: str | None
) -> None:
    adapter = AppliedSummary(Path("lora"), scale, (), None, expects, None, (), ())
    found = voice_warnings(adapter, tuple(SCRIPTS[number] for number in numbers))
    assert voice_warnings(None, SCRIPTS) == []
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]
