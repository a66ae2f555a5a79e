"""The nano denoiser (WanTransformer3DModel), its text encoder (UMT5), its word-level tokenizer, and their pipeline.

Sizes are chosen so that everything together stays under 16 MB in bf16 and a video takes seconds on two CPU cores.
Head dim 64 and four heads: the same attention kernels serve it as serve Wan2.1.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers' and transformers' annotations do not describe .to(), .config and outputs)

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from fpsgen.evaluate.nano.captions import vocabulary

TEXT_LENGTH = 24
TEXT_DIM = 128
FLOW_SHIFT = 3.0
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 256,
    "ffn_dim": 512,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per known word, lower-cased; anything else is <unk>."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LENGTH
    )


def build_text_encoder(words: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=words,
        d_model=TEXT_DIM,
        d_kv=32,
        num_heads=4,
        d_ff=192,
        num_layers=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=16,
        relative_attention_max_distance=24,
    )
    return UMT5EncoderModel(config)


def build_transformer() -> WanTransformer3DModel:
    """A fresh denoiser whose output starts at zero."""
    transformer = WanTransformer3DModel(**TRANSFORMER)
    transformer.proj_out.weight.data.zero_()
    transformer.proj_out.bias.data.zero_()
    return transformer


def token_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    """[B, TEXT_LENGTH] int64, padded with 0."""
    return tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def embed(text_encoder: UMT5EncoderModel, ids: Tensor) -> Tensor:
    """Text embeddings as WanPipeline makes them: zero beyond each caption's end. [B, TEXT_LENGTH, TEXT_DIM]."""
    mask = ids > 0
    return text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state * mask[..., None]


def build_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=FLOW_SHIFT
    )


def assemble(
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    vae: AutoencoderKLWan,
) -> WanPipeline:
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scheduler=build_scheduler(), transformer=transformer
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def sample(
    pipe: WanPipeline, prompts: list[str], steps: int = 20, guidance: float = 4.0, seed: int = 0, batch: int = 32
) -> Tensor:
    """Clips [B, 3, T, H, W] in [-1, 1] (fp16, CPU). Noise is drawn on the CPU, per prompt from seed + index."""
    from fpsgen.evaluate.nano.world import FRAMES, HEIGHT, WIDTH

    clips = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + k) for k in range(len(some))]
        video = pipe(
            some,
            negative_prompt=[""] * len(some),
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=TEXT_LENGTH,
            generator=generators,
            output_type="pt",
        ).frames
        clips.append((video.float().transpose(1, 2) * 2 - 1).half().cpu())
    return torch.cat(clips)
