"""A training step to put behind a loader: how long does the model wait?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .job import Job


def _small(classes: int) -> nn.Module:
    """A net that a CPU steps through at a few hundred images a second: 4x4 patches, two strided convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 8, stride=8),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def trainer(job: Job) -> Callable[[Any], None]:
    """One forward, backward and optimizer step a batch: "small", or a name in torchvision.models."""
    classes = 1000
    if job.model == "small":
        model = _small(classes)
    else:
        import torchvision

        model = torchvision.models.get_model(job.model, num_classes=classes)
    device = torch.device(job.device)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(batch: Any) -> None:
        images, targets = batch[0], batch[1]
        if targets.is_floating_point():
            targets = nn.functional.pad(targets, (0, classes - targets.shape[1]))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = nn.functional.cross_entropy(model(images), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
