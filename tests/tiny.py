"""A random WanPipeline of a few hundred kilobytes, complete with tokenizer, for tests that need no trained weights."""

from __future__ import annotations

from pathlib import Path

from tools.random_model import character_tokenizer


def build_tiny_pipeline(
    path: str | Path,
    heads: int = 2,
    head_dim: int = 16,
    layers: int = 2,
    channels: int = 4,
    vae_dim: int = 4,
    seed: int = 0,
    schedule: str | None = None,
) -> Path:
    """Write a pipeline folder that WanPipeline.from_pretrained loads; equal arguments give equal weights.

    channels: latent channels of VAE and transformer. schedule: text of schedule.toml, if the folder shall have one.
    """
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = character_tokenizer()
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=32,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=4,
                relative_attention_num_buckets=8,
            )
        )
        vae = AutoencoderKLWan(
            base_dim=vae_dim,
            z_dim=channels,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
        )
        pipe = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            transformer=tiny_transformer(heads, head_dim, layers, channels),
            vae=vae,
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        )
    path = Path(path)
    pipe.save_pretrained(path)
    if schedule is not None:
        (path / "schedule.toml").write_text(schedule, encoding="utf-8")
    return path


def tiny_transformer(heads: int = 2, head_dim: int = 16, layers: int = 2, channels: int = 4, inputs: int | None = None):
    """WanTransformer3DModel with weights large enough that every layer matters to the output."""
    import torch
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=inputs or channels,
        out_channels=channels,
        text_dim=32,
        freq_dim=32,
        ffn_dim=2 * heads * head_dim,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    ).eval()
    for name, weight in transformer.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5 if "scale_shift" in name else 1.2 / weight[0].numel() ** 0.5)
    return transformer
