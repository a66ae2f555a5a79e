"""A model folder of a true shape with random weights, to time whole videos without a checkpoint.

    python -m tools.random_model wan2.1-1.3b FOLDER
    fpsgen generate "a cat surfing" -m FOLDER --res 720p --schedule paper

Its videos are noise. Text encoder and VAE have the shapes of Wan2.1's as well (umt5-xxl, AutoencoderKLWan), so loading
takes what it takes. The tokenizer alone is small: one token a character. Weights are made on a GPU where there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from fpsgen.models.catalog.registry import ModelSpec, find_spec
from tools.command_line import parser_of

TEXT_ENCODER = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


def write_random_model(spec: ModelSpec, folder: Path, text_encoder: dict[str, Any], vae: dict[str, Any]) -> None:
    """Write a WanPipeline in bf16 (VAE in fp32). text_encoder, vae: arguments of UMT5Config and AutoencoderKLWan."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with torch.device(device):
        decoder = AutoencoderKLWan(**vae)
        torch.set_default_dtype(torch.bfloat16)
        try:
            width = text_encoder["d_model"]
            transformer = WanTransformer3DModel(**(dict(spec.transformer) | {"text_dim": width}))
            encoder = UMT5EncoderModel(UMT5Config(**text_encoder))
        finally:
            torch.set_default_dtype(torch.float32)
    _scale_output(decoder)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=spec.shift)
    WanPipeline(
        tokenizer=character_tokenizer(),
        text_encoder=encoder,
        transformer=transformer,
        vae=decoder,
        scheduler=scheduler,
    ).save_pretrained(folder)


@torch.no_grad()
def _scale_output(vae: Any) -> None:
    """Let decoded pixels vary by about half of their range: fpsgen refuses videos of one flat colour."""
    latents = torch.randn(1, vae.config.z_dim, 1, 8, 8, device=vae.device)
    vae.decoder.conv_out.weight.mul_(0.5 / vae.decode(latents, return_dict=False)[0].std())


def character_tokenizer() -> Any:
    """One token per printable ASCII character, so that any two prompts differ."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(models.Unigram([(piece, -5.0) for piece in pieces], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(
        tokenizer_object=tokenizer, extra_ids=0, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def main() -> None:
    parser = parser_of("random_model", __doc__)
    parser.add_argument("name", help="wan2.1-1.3b or wan2.1-14b")
    parser.add_argument("folder", type=Path, help="where the model goes")
    chosen = parser.parse_args()
    spec = find_spec(chosen.name)
    if spec is None or not spec.transformer:
        sys.exit(f"no shape is known of {chosen.name}")
    write_random_model(spec, chosen.folder, TEXT_ENCODER, {})


if __name__ == "__main__":
    main()
