"""The closed lists of a Wan pipeline: its parts, their classes, and the values that their configurations may have."""

from __future__ import annotations

import math
from typing import Any

from fpsgen.errors import MODEL, FpsgenError
from fpsgen.fields import Field, Spec, choice, many, or_null, real, switch, whole
from fpsgen.text import show

KEPT_SCHEDULERS = (  # of diffusers; each predicts flow, and takes the noise that it draws from a generator
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
REPLACED_SCHEDULERS = (  # UniPC takes their place, which is said
    "CogVideoXDDIMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
)
PARTS = {  # part -> (library, classes)
    "transformer": ("diffusers", ("WanTransformer3DModel",)),
    "vae": ("diffusers", ("AutoencoderKLWan",)),
    "text_encoder": ("transformers", ("UMT5EncoderModel",)),
    "tokenizer": ("transformers", ("T5TokenizerFast", "T5Tokenizer", "TokenizersBackend", "PreTrainedTokenizerFast")),
    "scheduler": ("diffusers", KEPT_SCHEDULERS + REPLACED_SCHEDULERS),
}


_NULL = Field(lambda value: choice(()).check("") if value is not None else None, "null in a text-to-video model", None)

CONFIGS: dict[str, Spec] = {
    "transformer": {
        "_class_name": choice(PARTS["transformer"][1], PARTS["transformer"][1][0]),
        "patch_size": many(whole(1, 16), 3, 3, default=(1, 2, 2)),
        "num_attention_heads": whole(1, 512),
        "attention_head_dim": whole(6, 1024),
        "in_channels": whole(1, 4096),
        "out_channels": whole(1, 4096),
        "text_dim": whole(1, 1 << 16),
        "freq_dim": whole(2, 1 << 16, 256),
        "ffn_dim": whole(1, 1 << 20),
        "num_layers": whole(1, 1000),
        "cross_attn_norm": switch(True),
        "qk_norm": or_null(choice(["rms_norm_across_heads"]), "rms_norm_across_heads"),
        "eps": real(0, 1, 1e-6),
        "image_dim": _NULL,
        "added_kv_proj_dim": _NULL,
        "pos_embed_seq_len": _NULL,
        "rope_max_seq_len": whole(1, 1 << 20, 1024),
    },
    "vae": {
        "_class_name": choice(PARTS["vae"][1], PARTS["vae"][1][0]),
        "base_dim": whole(1, 4096, 96),
        "decoder_base_dim": or_null(whole(1, 4096)),
        "z_dim": whole(1, 4096, 16),
        "dim_mult": many(whole(1, 64), 1, 8, default=(1, 2, 4, 4)),
        "num_res_blocks": whole(0, 64, 2),
        "attn_scales": many(real(0, 1e6), 0, 16, default=()),
        "temperal_downsample": many(switch(), 0, 8, default=(False, True, True)),
        "dropout": real(0, 1, 0.0),
        "latents_mean": many(real(-1e6, 1e6), 1, 4096, default=(0.0,) * 16),  # where left out, the class has 16
        "latents_std": many(real(1e-9, 1e6), 1, 4096, default=(1.0,) * 16),
        "is_residual": switch(False),
        "in_channels": whole(1, 4096, 3),
        "out_channels": whole(1, 4096, 3),
        "patch_size": or_null(whole(1, 16)),
        "scale_factor_spatial": or_null(whole(1, 256), 8),
        "scale_factor_temporal": or_null(whole(1, 64), 4),
    },
    "text_encoder": {
        "model_type": choice(["umt5"]),
        "vocab_size": whole(1, 1 << 24),
        "d_model": whole(1, 1 << 16),
        "d_kv": whole(1, 1 << 14),
        "d_ff": whole(1, 1 << 20),
        "num_layers": whole(1, 1000),
        "num_heads": whole(1, 1024),
        "relative_attention_num_buckets": whole(1, 1 << 16, 32),
        "relative_attention_max_distance": whole(1, 1 << 20, 128),
        "dropout_rate": real(0, 1, 0.1),
        "layer_norm_epsilon": real(0, 1, 1e-6),
        "initializer_factor": real(0, 1e3, 1.0),
        "feed_forward_proj": choice(["gated-gelu", "relu", "gated-silu"], "gated-gelu"),
        "tie_word_embeddings": switch(True),
        "pad_token_id": or_null(whole(0, 1 << 24), 0),
        "eos_token_id": or_null(whole(0, 1 << 24), 1),
        "decoder_start_token_id": or_null(whole(0, 1 << 24), 0),
    },
    "tokenizer": {"model_max_length": or_null(real(1, 1e40))},
    "scheduler": {
        "num_train_timesteps": whole(1, 1_000_000, 1000),
        "flow_shift": or_null(real(0.01, 100)),
        "shift": or_null(real(0.01, 100)),
    },
}

_CODE = ("auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code", "custom_generate")
_ATTENTION = ("attn_implementation", "experts_implementation", "kernel_config", "use_kernels")


def refuse_code(config: Any, what: str) -> None:
    """Raise FpsgenError MODEL for what would make a library fetch or run code, wherever it stands in a file."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        waiting += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        for key, entry in value.items() if isinstance(value, dict) else ():
            plain = entry in (None, False, "eager", "sdpa") if not isinstance(entry, dict | list) else not entry
            if (key in _CODE and entry) or (any(word in key for word in _ATTENTION) and not plain):
                text = f"{show(key, 40)}: {show(entry, 60)}"
                remedy = "remove that entry, or choose another model with --model"
                raise FpsgenError(f"{show(what)} asks for code that is not fpsgen's ({text})", remedy, MODEL)
            if key in ("quantization_config", "compression_config") and entry:
                remedy = "choose a model with 16-bit weights"
                raise FpsgenError(f"{show(what)} is of a quantized model, which is not supported yet", remedy, MODEL)


def check_fit(configs: dict[str, dict[str, Any]], where: str) -> None:
    """Raise FpsgenError MODEL where the parts of a pipeline do not fit together."""
    transformer, vae, text = configs["transformer"], configs["vae"], configs["text_encoder"]
    latents, stages = vae["z_dim"], len(vae["dim_mult"]) - 1
    spatial = 2**stages * (vae["patch_size"] or 1)
    temporal = 2 ** sum(vae["temperal_downsample"])
    pixels = 3 * (vae["patch_size"] or 1) ** 2
    pairs = [
        ("vae: latents_mean has", len(vae["latents_mean"]), "values, for z_dim", latents),
        ("vae: latents_std has", len(vae["latents_std"]), "values, for z_dim", latents),
        ("vae: temperal_downsample has", len(vae["temperal_downsample"]), "values, for the stages of dim_mult", stages),
        ("vae: scale_factor_spatial is", vae["scale_factor_spatial"], "where its layers make", spatial),
        ("vae: scale_factor_temporal is", vae["scale_factor_temporal"], "where its layers make", temporal),
        ("vae: in_channels is", vae["in_channels"], "where its patches have", pixels),
        ("vae: out_channels is", vae["out_channels"], "where its patches have", pixels),
        ("transformer: in_channels is", transformer["in_channels"], "where the vae's z_dim is", latents),
        ("transformer: out_channels is", transformer["out_channels"], "where the vae's z_dim is", latents),
        ("transformer: text_dim is", transformer["text_dim"], "where text_encoder's d_model is", text["d_model"]),
    ]
    for what, found, relation, expected in pairs:
        if found is not None and found != expected:
            wrong = f"{what} {found} {relation} {expected}"
            remedy = "fetch it again, or choose another with --model"
            raise FpsgenError(f"the model in {show(where)} is not intact: {wrong}", remedy, MODEL)
    if transformer["attention_head_dim"] % 2 or math.prod(transformer["patch_size"]) > 4096:
        wrong = f"transformer: attention_head_dim {transformer['attention_head_dim']} is odd"
        raise FpsgenError(f"the model in {show(where)} is not intact: {wrong}", "choose another with --model", MODEL)
