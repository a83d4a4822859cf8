"""What the language model is fed, for training and for generation alike.

Why: if the two computed it separately, they could drift apart, and a model would be heard on other inputs than it was
trained on. Text is embedded by the language model, a frame of a voice prompt by the acoustic connector, and a frame of
the target by both connectors. (While it speaks, transformers' loop adds the two up by itself; the tests in
`tests/invariants` prove that the sums are equal.)

In: a model, token ids, latents and the positions of their frames. Out: input embeddings.

Shapes: T tokens, F target frames, V voice-prompt frames, C acoustic dim, S semantic dim, D hidden size.
"""

from torch import Tensor, nn

from vibevoice_finetune.base_model import parts
from vibevoice_finetune.objective.noise import sample_latent


def draw_latents(model: nn.Module, mean_FC: Tensor, jitter_FC: Tensor) -> Tensor:
    """A draw of acoustic latents in the model's units, (F, C) float32.

    Args:
        model: whose scale, bias and standard deviation are used.
        mean_FC: (F, C) what the acoustic encoder gave.
        jitter_FC: (F, C) what `data.dataset.jitter` drew, clip by clip.
    """
    bias, scale = parts.latent_bias(model), parts.latent_scale(model)
    vae_std = parts.facts(parts.config(model)).vae_std
    return sample_latent(mean_FC, jitter_FC, vae_std, bias.float(), scale.float())


def embed_prompt(model: nn.Module, ids_T: Tensor, voice_index_V: Tensor, voice_VC: Tensor) -> Tensor:
    """Input embeddings of text and voice prompts, (T, D).

    Args:
        model: with its text embedding and acoustic connector.
        ids_T: (T,) token ids; those of frames are placeholders.
        voice_index_V: (V,) positions of the voice prompts' frames.
        voice_VC: (V, C) their latents, as `draw_latents` gives them.
    """
    text_TD: Tensor = parts.embed_tokens(model)(ids_T)
    connector = parts.acoustic_connector(model)
    voice_VD: Tensor = connector(parts.as_input(connector, voice_VC))
    return text_TD.index_copy(0, voice_index_V, voice_VD.to(text_TD.dtype))


def embed_target(model: nn.Module, latents_FC: Tensor, semantic_FS: Tensor) -> Tensor:
    """Input embeddings of frames that the model says, (F, D): the acoustic and the semantic one, added.

    Args:
        model: with both connectors.
        latents_FC: (F, C) acoustic latents, as `draw_latents` gives them.
        semantic_FS: (F, S) semantic features.
    """
    acoustic, semantic = parts.acoustic_connector(model), parts.semantic_connector(model)
    target_FD: Tensor = acoustic(parts.as_input(acoustic, latents_FC)) + semantic(parts.as_input(semantic, semantic_FS))
    return target_FD
