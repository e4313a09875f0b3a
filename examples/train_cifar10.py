"""Train a small network on CIFAR-10 stored as JPEGs, through either backend: minutes on two cores.

    python examples/train_cifar10.py CIFAR --backend torchvision

CIFAR holds train/<class>/<image> and test/<class>/<image>. Prints the mean loss every few steps and the accuracy at the
end; --log writes the losses as JSON. The same seed gives the same batches on both backends, so the losses fall alike.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

from dali_imagenet import EvalRecipe, TrainRecipe, create_loader
from dali_imagenet.metrics import Accuracy

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)  # of CIFAR-10's training images, in 0..1


def network() -> nn.Module:
    """Three strided convolutions, 0.1 million parameters."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("--backend", choices=("auto", "dali", "torchvision"), default="auto")
    p.add_argument("--recipe", choices=("classic", "strong"), default="strong")
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--steps", type=int, help="stop after that many steps")
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--device", help="cpu or cuda; by default the GPU where there is one")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--log", type=Path, help="write the losses there")
    args = p.parse_args()
    torch.manual_seed(args.seed)
    options = {"backend": args.backend, "device": args.device, "num_workers": args.workers, "seed": args.seed}
    # Mild crops: an object of 32 pixels does not survive ImageNet's 8% of the area.
    recipe = getattr(TrainRecipe, args.recipe)(input_size=32, scale=(0.4, 1.0), mean=MEAN, std=STD)
    train = create_loader(args.data / "train", recipe, batch_size=args.batch_size, **options)
    test = create_loader(
        args.data / "test", EvalRecipe(input_size=32, crop_pct=1.0, mean=MEAN, std=STD), batch_size=500, **options
    )
    model = network().to(train.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    total = args.steps or args.epochs * len(train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
    loss_of = nn.CrossEntropyLoss()
    losses: list[float] = []
    start = time.perf_counter()
    while len(losses) < total:
        for images, targets in train:
            loss = loss_of(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if len(losses) % 25 == 0:
                print(f"step {len(losses):4d}/{total}: loss {sum(losses[-25:]) / 25:.4f}", flush=True)
            if len(losses) == total:
                break
    accuracy = Accuracy()
    model.eval()
    with torch.inference_mode():
        for images, targets in test:
            accuracy.update(model(images), targets)
    shares, samples = accuracy.compute()
    seconds = time.perf_counter() - start
    print(f"{train.backend}: top-1 {shares[1]:.2%} of {samples} images after {seconds:.0f} s")
    if args.log:
        args.log.write_text(json.dumps({"backend": train.backend, "losses": losses, "top1": shares[1]}))
    train.close()
    test.close()


if __name__ == "__main__":
    main()
