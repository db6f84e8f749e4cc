"""Students that integers are hard on: named in recipes of ``quantization_aware``, made in the torch toolchain only."""

from __future__ import annotations

import torch
from torch import nn


class Separable(nn.Module):
    """A convolution of each channel by itself and one across channels, with a way around where shapes allow it."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(fan_in, fan_in, 3, stride, 1, groups=fan_in, bias=False), nn.BatchNorm2d(fan_in), activation(),
            nn.Conv2d(fan_in, fan_out, 1, bias=False), nn.BatchNorm2d(fan_out), activation(),
        )  # fmt: skip
        self.has_way_around = fan_in == fan_out and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.body(x)
        return x + made if self.has_way_around else made


def separable(width: int, activation: type[nn.Module]) -> nn.Module:
    """Build [N, 64] -> logits [N, 10], as MobileNets are (Howard et al., arXiv 1704.04861)."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), activation(),
        Separable(width, width, 1, activation), Separable(width, 2 * width, 2, activation),
        Separable(2 * width, 2 * width, 1, activation), Separable(2 * width, 4 * width, 2, activation),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


def hardswish() -> nn.Module:
    return separable(8, nn.Hardswish)


def silu() -> nn.Module:
    return separable(8, nn.SiLU)


def relu6() -> nn.Module:
    return separable(4, nn.ReLU6)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
