"""A small transformer whose sizes are multiples of 16, with weights of a natural size, and its forward."""

import torch
from diffusers import WanTransformer3DModel

from fpsgen.attention.schedule import Profile, Schedule

LAYERS, DIM = 3, 64
DENSE = Schedule("dense", (Profile("all", "bf16"),), ((0.0, 1.0, "all"),))


def transformer(**config):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 192, "num_layers": LAYERS, "text_dim": 48}
    made = WanTransformer3DModel(**sizes | config).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1 and "scale_shift_table" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "scale_shift_table" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        else:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return made


def inputs(batch=2):
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 16, 3, 8, 8),
        "timestep": torch.linspace(400, 600, batch),
        "encoder_hidden_states": torch.randn(batch, 20, 48),
    }


@torch.no_grad()
def forward(made, given=None):
    return made(**(given or inputs()), return_dict=False)[0]
