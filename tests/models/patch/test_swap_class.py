"""Another forward for one module, below the hooks that it has, and back again."""

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from fpsgen.models.patch.swap_class import has_hooks, swap_class


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Counts(ModelHook):
    calls = 0

    def pre_forward(self, module, *arguments, **names):
        self.calls += 1
        return arguments, names


def test_below_a_hook_of_accelerate():
    layer, x, hook = torch.nn.Linear(4, 4), torch.randn(2, 4), Counts()
    wanted = layer(x)
    add_hook_to_module(layer, hook)
    undo = swap_class(layer, Doubled, place="here")
    assert undo is not None and torch.equal(layer(x), 2 * wanted) and hook.calls == 1 and has_hooks(layer)
    undo()
    assert torch.equal(layer(x), wanted) and hook.calls == 2 and not hasattr(layer, "place")
    remove_hook_from_module(layer)
    assert type(layer) is torch.nn.Linear and torch.equal(layer(x), wanted) and not has_hooks(layer)
    undo = swap_class(layer, Doubled)
    assert undo is not None and torch.equal(layer(x), 2 * wanted) and not has_hooks(layer)
    undo()
    assert torch.equal(layer(x), wanted)


def test_an_unknown_forward_stays():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    layer.forward = lambda x: 3 * x
    assert swap_class(layer, Doubled) is None
    assert type(layer) is torch.nn.Linear and torch.equal(layer(x), 3 * x)
