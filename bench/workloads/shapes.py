"""The models of the benchmarks: the parameters of well-known networks, with gradients ready.

The networks are built from torch.nn on the meta device, layer by layer as published; only the shapes of their
parameters count here, so they have no ``forward``. bench/tests/test_workloads.py compares their sizes with the
published ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

Shapes = tuple[tuple[int, ...], ...]
Grads = list[list[Tensor]]  # [K][parameters]


def mlp(*widths: int) -> nn.Module:
    """Make linear layers of these widths."""
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Make a convolution without bias and its batch normalization."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs))


def srresnet() -> nn.Module:
    """Make SRGAN's generator for four times the resolution (arXiv 1609.04802, figure 4): 16 residual blocks."""

    def block() -> list[nn.Module]:
        return [
            nn.Conv2d(64, 64, 3),
            nn.BatchNorm2d(64),
            nn.PReLU(),
            nn.Conv2d(64, 64, 3),
            nn.BatchNorm2d(64),
        ]

    blocks = [layer for _ in range(16) for layer in block()]
    doublings = [layer for _ in range(2) for layer in (nn.Conv2d(64, 256, 3), nn.PixelShuffle(2), nn.PReLU())]
    last = [nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), *doublings, nn.Conv2d(64, 3, 9)]
    return nn.Sequential(nn.Conv2d(3, 64, 9), nn.PReLU(), *blocks, *last)


def cyclegan() -> nn.Module:
    """Make CycleGAN's generator of nine residual blocks (arXiv 1703.10593). Its instance norms have no parameters."""
    blocks = [nn.Conv2d(256, 256, 3) for _ in range(2 * 9)]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7),
        nn.Conv2d(64, 128, 3),
        nn.Conv2d(128, 256, 3),
        *blocks,
        nn.ConvTranspose2d(256, 128, 3),
        nn.ConvTranspose2d(128, 64, 3),
        nn.Conv2d(64, 3, 7),
    )


def pix2pix() -> nn.Module:
    """Make pix2pix's U-Net for 256 x 256 images (arXiv 1611.07004), with the batch normalization of its release."""
    down = [64, 128, 256, 512, 512, 512, 512, 512]
    contracting = [conv(a, b, 4) for a, b in pairwise(down[:-1])]
    expanding = []
    for a, b in [(512, 512), (1024, 512), (1024, 512), (1024, 512), (1024, 256), (512, 128), (256, 64)]:
        expanding += [nn.ConvTranspose2d(a, b, 4, bias=False), nn.BatchNorm2d(b)]
    outer = nn.Conv2d(3, 64, 4, bias=False)
    inner = nn.Conv2d(512, 512, 4, bias=False)
    return nn.Sequential(outer, *contracting, inner, *expanding, nn.ConvTranspose2d(128, 3, 4))


def resnet50() -> nn.Module:
    """Make ResNet-50 (arXiv 1512.03385) for 1000 classes."""
    layers: list[nn.Module] = [conv(3, 64, 7)]
    inputs = 64
    for width, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        for number in range(blocks):
            layers += [conv(inputs, width, 1), conv(width, width, 3), conv(width, 4 * width, 1)]
            if number == 0:
                layers.append(conv(inputs, 4 * width, 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.Linear(2048, 1000))


def parameter(*shape: int) -> nn.Module:
    """Make a module of one parameter."""
    return nn.ParameterList([nn.Parameter(torch.empty(shape))])


def vit_b16() -> nn.Module:
    """Make ViT-B/16 (arXiv 2010.11929) for 224 x 224 images and 1000 classes: 14 x 14 patches and a class token."""
    layers = [nn.TransformerEncoderLayer(768, 12, 3072) for _ in range(12)]
    embeddings = [parameter(768), parameter(14 * 14 + 1, 768), nn.Conv2d(3, 768, 16)]
    return nn.Sequential(*embeddings, *layers, nn.LayerNorm(768), nn.Linear(768, 1000))


def bert_base() -> nn.Module:
    """Make BERT-base, uncased (arXiv 1810.04805), with its pooler and without the heads of pre-training."""

    def layer() -> list[nn.Module]:
        attention = [nn.Linear(768, 768) for _ in range(4)]
        return [*attention, nn.LayerNorm(768), nn.Linear(768, 3072), nn.Linear(3072, 768), nn.LayerNorm(768)]

    embeddings = [nn.Embedding(n, 768) for n in (30522, 512, 2)]
    layers = [part for _ in range(12) for part in layer()]
    return nn.Sequential(*embeddings, nn.LayerNorm(768), *layers, nn.Linear(768, 768))


def gpt2_small() -> nn.Module:
    """Make GPT-2 small (Radford et al., 2019). The output layer shares the token embedding."""

    def layer() -> list[nn.Module]:
        attention = [nn.LayerNorm(768), nn.Linear(768, 3 * 768), nn.Linear(768, 768)]
        return [*attention, nn.LayerNorm(768), nn.Linear(768, 3072), nn.Linear(3072, 768)]

    layers = [part for _ in range(12) for part in layer()]
    return nn.Sequential(nn.Embedding(50257, 768), nn.Embedding(1024, 768), *layers, nn.LayerNorm(768))


def decoder_1b() -> nn.Module:
    """Make TinyLlama (arXiv 2401.02385): 22 layers of width 2048, 4 heads of keys and values, gated MLPs, no biases."""

    def linear(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs, bias=False)

    def layer() -> list[nn.Module]:
        attention = [linear(2048, 2048), linear(2048, 256), linear(2048, 256), linear(2048, 2048)]
        gated = [linear(2048, 5632), linear(2048, 5632), linear(5632, 2048)]
        return [nn.RMSNorm(2048), *attention, nn.RMSNorm(2048), *gated]

    layers = [part for _ in range(22) for part in layer()]
    return nn.Sequential(nn.Embedding(32000, 2048), *layers, nn.RMSNorm(2048), linear(2048, 32000))


def equal_tensors(count: int, *shape: int) -> nn.Module:
    """Make so many parameters of one shape."""
    return nn.Sequential(*(parameter(*shape) for _ in range(count)))


# By name. "mnist" is the network of MTAdam's published experiment.
WORKLOADS: dict[str, Callable[[], nn.Module]] = {
    "mnist": lambda: mlp(784, 500, 1000, 300, 10),
    "srresnet": srresnet,
    "cyclegan": cyclegan,
    "pix2pix": pix2pix,
    "resnet50": resnet50,
    "vit_b16": vit_b16,
    "bert_base": bert_base,
    "gpt2_small": gpt2_small,
    "decoder_1b": decoder_1b,
    "tiny_1000": lambda: equal_tensors(1000, 64),
    "small_300": lambda: equal_tensors(300, 1024),
    "equal_20m": lambda: equal_tensors(20, 1000, 1000),
    "equal_100m": lambda: equal_tensors(25, 2000, 2000),
    "equal_40": lambda: equal_tensors(40, 500_000),
    "one_20m": lambda: equal_tensors(1, 20_000_000),
}
GPU_ONLY = {"decoder_1b"}


@cache
def param_shapes(workload: str) -> Shapes:
    """Return the shapes of the workload's parameters."""
    with torch.device("meta"):
        return tuple(tuple(p.shape) for p in WORKLOADS[workload]().parameters())


@dataclass(frozen=True)
class Case:
    """A workload with K terms, which a rule of CombinedAdam weights if it is named."""

    workload: str
    terms: int
    dtype: torch.dtype = torch.float32
    rule: str = ""

    def __str__(self) -> str:
        """Return the id of its benchmarks."""
        bf16 = "-bf16" if self.dtype == torch.bfloat16 else ""
        return f"{self.workload}-K{self.terms}{bf16}" + (f"-{self.rule}" if self.rule else "")

    @property
    def shapes(self) -> Shapes:
        """Return the shapes of the parameters."""
        return param_shapes(self.workload)

    @property
    def element(self) -> int:
        """Return the bytes of an element of parameters and gradients."""
        return self.dtype.itemsize

    def params(self, device: torch.device) -> list[nn.Parameter]:
        """Make fresh parameters, the same each time."""
        generator = torch.Generator(device).manual_seed(0)
        return [nn.Parameter(random_normal(shape, 0.02, self.dtype, generator)) for shape in self.shapes]

    def grads(self, device: torch.device) -> Grads:
        """Make ``[K][parameters]`` gradients: of norm 0.1 in each layer, 10 to the k % 4 times as large for term k.

        Those for a rule conflict: all pairs are at an obtuse angle, and term k is 2 to the k times as large. They are
        below Adam's eps, for with larger ones Adam's first step shows no more of them than their signs.
        """
        generator = torch.Generator(device).manual_seed(1)
        if self.rule:
            grads = [
                [random_normal(shape, 1e-9, self.dtype, generator) for shape in self.shapes] for _ in range(self.terms)
            ]
            for of_param in zip(*grads, strict=True):
                half_mean = sum(of_param) / (2 * self.terms)
                for k, grad in enumerate(of_param):
                    grad.sub_(half_mean).mul_(2**k)
            return grads
        norms = [0.1 * 10 ** (k % 4) for k in range(self.terms)]
        return [
            [random_normal(shape, norm / math.sqrt(math.prod(shape)), self.dtype, generator) for shape in self.shapes]
            for norm in norms
        ]


def random_normal(shape: tuple[int, ...], deviation: float, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return normal random values."""
    return torch.empty(shape, dtype=dtype, device=generator.device).normal_(0, deviation, generator=generator)


def count_elements(tensors: Sequence[Tensor]) -> int:
    """Return the number of elements in all tensors."""
    return sum(t.numel() for t in tensors)
