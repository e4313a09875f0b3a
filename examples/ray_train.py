"""Train with Ray Train: each worker's loader takes its share from the process group that Ray makes.

    python examples/ray_train.py DATA --workers 2 --batch-size 64 --storage /tmp/ray_runs

DATA is an ImageFolder tree, or a folder with train/ and val/. The batch size is per worker. A checkpoint holds model,
optimizer and loader; one is reported after every epoch and every --save-every steps, and a worker that fails, or the
whole run started again with the same --storage, goes on from the last one, in the middle of an epoch too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn

from dali_imagenet import Accuracy, EvalRecipe, TrainRecipe, create_loader


def build(classes: int) -> nn.Module:
    """A small net without batch statistics; put your own here."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def train_worker(config: dict[str, Any]) -> None:
    """What runs in each worker; Ray has made the process group, from which the loaders take rank and world size."""
    device = get_device()
    common: dict[str, Any] = {"batch_size": config["batch_size"], "device": device, "num_workers": config["threads"]}
    train = create_loader(config["data"], TrainRecipe.classic(input_size=config["size"]), **common)
    val = create_loader(config["data"], EvalRecipe(input_size=config["size"]), padding="short", **common)

    torch.manual_seed(0)
    net = build(train.num_classes).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=config["lr"], momentum=0.9)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"), map_location=device)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        train.load_state_dict(state["loader"])
    model = prepare_model(net)

    def report(metrics: dict[str, Any]) -> None:
        """Every worker reports; the first one saves, for all are the same."""
        if ray.train.get_context().get_world_rank():
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "loader": train.state_dict()}
            torch.save(state, Path(folder, "state.pt"))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    for epoch in range(train.epoch, config["epochs"]):
        train.set_epoch(epoch)
        model.train()
        for images, targets in train:
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step = train.state_dict()["step"]
            if config["save_every"] and step % config["save_every"] == 0 and step < len(train):
                report({"epoch": epoch, "step": step, "loss": float(loss.detach())})
        model.eval()
        accuracy = Accuracy()
        with torch.inference_mode():
            for images, targets in val:
                accuracy.update(model(images), targets)
        top, count = accuracy.compute()
        report({"epoch": epoch, "step": len(train), "loss": float(loss.detach()), "top1": top[1], "images": count})


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--batch-size", type=int, default=64, help="per worker")
    p.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--lr", type=float, default=0.05)
    p.add_argument("--threads", type=int, default=2, help="decoding processes or threads of each worker")
    p.add_argument("--save-every", type=int, default=0, help="report a checkpoint every so many steps, too")
    p.add_argument("--storage", type=Path, default=Path("ray_runs"), help="where checkpoints are kept")
    p.add_argument("--name", default="imagenet", help="of the run: the same one goes on")
    args = p.parse_args()
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    gpu = torch.cuda.is_available()
    ray.init(num_cpus=args.workers + 1, include_dashboard=False)
    settings = {name.replace("-", "_"): getattr(args, name) for name in ("batch_size", "size", "epochs", "lr")}
    settings |= {"threads": args.threads, "save_every": args.save_every, "data": os.path.abspath(args.data)}
    result = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=args.workers, use_gpu=gpu),
        run_config=ray.train.RunConfig(
            name=args.name,
            storage_path=str(args.storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
    ).fit()
    print(", ".join(f"{name} {result.metrics[name]}" for name in ("epoch", "step", "loss", "top1", "images")))
    ray.shutdown()


if __name__ == "__main__":
    main()
