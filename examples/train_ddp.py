"""Train on several processes or GPUs: what DistributedDataParallel adds to a script that uses this loader.

    torchrun --nproc-per-node 2 examples/train_ddp.py DATA --batch-size 128

DATA is an ImageFolder tree, or a folder with train/ and val/. The batch size is per process. Processes together see
exactly the batches of one process with the product of both, mixing included. A run that was stopped goes on from
--checkpoint where it was, in the middle of an epoch too, and on another number of processes with the same product.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # later, its defaults would hold the group: Gloo's threads must end before Python does
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dali_imagenet import EvalRecipe, TrainRecipe, create_loader
from dali_imagenet.metrics import Accuracy


def build(name: str, classes: int) -> nn.Module:
    """A small net without batch statistics, or any model of torchvision's."""
    if name != "small":
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, num_classes=classes)
        return model
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data")
    p.add_argument("--model", default="small", help="small, or a name in torchvision.models")
    p.add_argument("--batch-size", type=int, default=64, help="per process")
    p.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--lr", type=float, default=0.05)
    p.add_argument("--backend", choices=("auto", "dali", "torchvision"), default="auto")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--checkpoint", type=Path, help="saved after every epoch; goes on from it where it exists")
    p.add_argument("--save-every", type=int, default=0, help="save the checkpoint every so many steps, too")
    return p.parse_args()


def main() -> None:
    args = arguments()
    distributed = "RANK" in os.environ  # set by torchrun
    rank = 0
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if distributed:
        dist.init_process_group("nccl" if cuda else "gloo")  # the loader takes rank and world size from it
        rank = dist.get_rank()
    common: dict[str, Any] = {
        "batch_size": args.batch_size,
        "backend": args.backend,
        "device": device,
        "num_workers": args.workers,
        "seed": args.seed,
    }
    train = create_loader(args.data, TrainRecipe.strong(input_size=args.size), **common)
    val = create_loader(args.data, EvalRecipe(input_size=args.size), **common)

    torch.manual_seed(args.seed)
    model = build(args.model, train.num_classes).to(device)
    wrapped = DistributedDataParallel(model, device_ids=[device.index] if cuda else None) if distributed else model
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()  # takes the soft labels of mixing
    if args.checkpoint and args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        train.load_state_dict(state["loader"])

    def save() -> None:
        if rank == 0 and args.checkpoint:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": train.state_dict()}
            torch.save(parts, args.checkpoint.with_suffix(".part"))
            args.checkpoint.with_suffix(".part").replace(args.checkpoint)  # whole, or not at all

    for epoch in range(train.epoch, args.epochs):
        train.set_epoch(epoch)
        wrapped.train()
        for step, (images, targets) in enumerate(train, 1):
            loss = loss_of(wrapped(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if args.save_every and step % args.save_every == 0:
                save()
        model.eval()
        accuracy = Accuracy()
        with torch.inference_mode():
            for images, targets in val:
                accuracy.update(model(images), targets)
        share, samples = accuracy.compute()
        if rank == 0:
            print(
                f"epoch {epoch}: loss {float(loss.detach()):.4f}, top-1 {share[1]:.2%} of {samples} images", flush=True
            )
            save()
    train.close()
    val.close()
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
