"""Real networks exported from torch: the models of the races, with random weights, in fp16 and fp32.

Needs torch, torchvision, transformers and onnxscript; nothing of trtcli. ``python benchmarks/models.py NAME FILE --batch=8``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A torch module in eval mode, example inputs for a batch, and the names of inputs and outputs."""

    module: Any
    inputs: Callable[[int], tuple[Any, ...]]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ("output",)


def _image_model(module: Any, size: int = 224) -> Source:
    import torch

    return Source(module.eval(), lambda batch: (torch.randn(batch, 3, size, size),), ("input",))


def _torchvision(name: str) -> Source:
    import torchvision

    return _image_model(getattr(torchvision.models, name)(weights=None))


def _bert(sequence: int = 128) -> Source:
    import torch
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]

    def inputs(batch: int) -> tuple[Any, ...]:
        mask = torch.ones(batch, sequence, dtype=torch.int64)
        return torch.randint(0, 30000, (batch, sequence)), mask

    return Source(Encoder().eval(), inputs, ("input_ids", "attention_mask"), ("last_hidden_state",))


def _unet(size: int = 256, widths: Sequence[int] = (64, 128, 256, 512, 1024)) -> Source:
    import torch
    from torch import nn

    def double(inside: int, outside: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True),
        )  # fmt: skip

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths), widths, strict=False))
            pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
            self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
            self.merge = nn.ModuleList(double(2 * b, b) for _, b in pairs)
            self.head = nn.Conv2d(widths[0], 2, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for level, block in enumerate(self.down):
                x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
                skips.append(x)
            for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
                x = merge(torch.cat([skip, up(x)], 1))
            return self.head(x)

    return _image_model(UNet(), size)


MODELS: dict[str, Callable[[], Source]] = {
    "resnet50": lambda: _torchvision("resnet50"),
    "mobilenet_v2": lambda: _torchvision("mobilenet_v2"),
    "efficientnet_b0": lambda: _torchvision("efficientnet_b0"),
    "vit_b_16": lambda: _torchvision("vit_b_16"),
    "densenet121": lambda: _torchvision("densenet121"),
    "convnext_tiny": lambda: _torchvision("convnext_tiny"),
    "swin_t": lambda: _torchvision("swin_t"),
    "bert_base": _bert,
    "unet": _unet,
}


def source(name: str, seed: int = 0) -> Source:
    """The model ``name`` with seeded random weights; normalisation statistics and constant parameters are made plausible."""
    import torch

    torch.manual_seed(seed)
    made = MODELS[name]()
    with torch.no_grad():
        for module in made.module.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
        for parameter in made.module.parameters():  # zeros and ones would hide work and errors
            if not parameter.any():
                parameter.normal_(0, 0.02)
            elif bool((parameter == 1).all()):
                parameter.uniform_(0.8, 1.2)
    return made


def half(made: Source) -> Source:
    """The same model and inputs in float16 (integer inputs stay)."""

    def inputs(batch: int) -> tuple[Any, ...]:
        return tuple(one.half() if one.is_floating_point() else one for one in made.inputs(batch))

    return Source(made.module.half(), inputs, made.input_names, made.output_names)


def export(made: Source, path: Path, batch: int = 1, dynamic_batch: bool = False, dynamo: bool = True) -> None:
    """Write the model to an ONNX file, with a fixed batch or a dynamic one named ``batch``."""
    import torch

    example = made.inputs(max(batch, 2) if dynamic_batch else batch)
    options: dict[str, Any] = {"input_names": list(made.input_names), "output_names": list(made.output_names)}
    if dynamic_batch and dynamo:
        size = torch.export.Dim("batch", min=1, max=1024)
        options["dynamic_shapes"] = tuple({0: size} for _ in example)
    elif dynamic_batch:
        options["dynamic_axes"] = {name: {0: "batch"} for name in (*made.input_names, *made.output_names)}
    torch.onnx.export(made.module, example, str(path), dynamo=dynamo, external_data=False, verbose=False, **options)


def main() -> None:
    """Export one model from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dynamicBatch", action="store_true")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--torchScript", action="store_true")
    given = parser.parse_args()
    made = source(given.name)
    export(made if given.fp32 else half(made), given.file, given.batch, given.dynamicBatch, not given.torchScript)


if __name__ == "__main__":
    main()
