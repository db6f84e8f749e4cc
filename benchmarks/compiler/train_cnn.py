"""Trains the benchmark's CNN: a program for the torch toolchain (``penstock.toolchain.call``), never imported here.

A ResNet of four stages of basic blocks (He et al., arXiv 1512.03385) as wide as ResNet-18, on small grey images. The
same seed and versions give the same weights on one machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from protocol import progress, serve
from torch import nn
from torch.nn import functional

BATCH = 64
CHECKED_ROWS = 256


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(fan_out)
        self.second = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(fan_out)
        self.around = nn.Sequential()
        if stride != 1 or fan_in != fan_out:
            self.around = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.around(x))


def network(widths: list[int], classes: int) -> nn.Module:
    """Build [N, 1, S, S] -> logits [N, classes]; the first convolution and each later stage halve the image."""
    layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    channels = widths[0]
    for stage, width in enumerate(widths):
        layers += [Block(channels, width, 1 if stage == 0 else 2), Block(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def shifted(x: torch.Tensor, generator: torch.Generator, reach: int = 3) -> torch.Tensor:
    """Move each batch by up to ``reach`` pixels: a thousand digits are few."""
    down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    return torch.roll(x, (down, right), dims=(2, 3))


def train(job: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    generator = torch.Generator().manual_seed(job["seed"])
    with np.load(job["data"]) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    net = network(job["widths"], int(y.max()) + 1)
    steps = job["epochs"] * -(-len(x) // BATCH)
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    began = time.monotonic()
    for epoch in range(job["epochs"]):
        net.train()
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(shifted(x[rows], generator)), y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
        progress((epoch + 1) / job["epochs"], f"epoch {epoch + 1}, loss {loss.item():.3f}")
    net.eval()
    with torch.no_grad():
        accuracy = float((net(x[:CHECKED_ROWS]).argmax(1) == y[:CHECKED_ROWS]).float().mean())
    torch.onnx.export(
        net,
        (x[:2],),
        job["model"],
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    return {"accuracy_fit": accuracy, "seconds": time.monotonic() - began}


serve(train)
