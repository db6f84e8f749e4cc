"""A network of timm with random weights, as a recipe names it: ``architecture.py:network``, in toolchain ``torch``.

Reads ``settings.json`` and ``fit.npz`` beside it: timm's name of the network, its classes, where timm is installed,
and rows ``image`` FP32 [N, 3, side, side]. Never imported here.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


def network() -> Any:
    """Make the network, with its last layer balanced on the rows, and two of the rows as examples."""
    settings = json.loads((HERE / "settings.json").read_text())
    sys.path.append(settings["packages"])  # behind the toolchain's own
    # timm imports torchvision, whose wheel on PyPI has operators for CUDA's torch only; no network of timm runs them,
    # and this module of it, which describes them, is all that does not load beside another torch
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
    import timm

    model = timm.create_model(settings["name"], pretrained=False, num_classes=settings["classes"]).eval()
    with np.load(HERE / "fit.npz") as rows:
        images = torch.from_numpy(rows["image"])
    balance(model, model.get_classifier(), images)
    return model, {"x": images[:2]}


def balance(model: Any, head: Any, images: Any) -> None:
    """Give all answers the same mean and spread over the rows; random weights would answer the same to every row."""
    with torch.no_grad():
        logits = model(images)
        spread = logits.std(0) + 1e-6
        head.weight /= spread[:, None]
        head.bias.copy_((head.bias - logits.mean(0)) / spread)
