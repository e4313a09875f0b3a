"""Train a classifier on images, to start from: it reads from top to bottom, and every line is yours to change.

    dali-imagenet train imagenet --model resnet50 --recipe strong --epochs 90 --output runs/resnet50
    torchrun --nproc-per-node 8 -m dali_imagenet.train imagenet --model resnet50 ...

The data are whatever the loader reads, with a part to train and one to validate. Batch size is per process; processes
together see the batches of one process with the product. A run that was stopped goes on from its --output, at the very
next step, on another number of processes with the same product, too.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # later, its defaults would hold the group: Gloo's threads must end before Python does
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dali_imagenet import Accuracy, EvalRecipe, TrainRecipe, create_loader
from dali_imagenet.presets import PRESETS


class Block(nn.Module):
    """Two convolutions and what goes past them (He et al. 2015, the basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.past: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.past = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.past(images) + self.body(images))


def small(classes: int) -> nn.Module:
    """A residual net for CPUs and small images: 91,930 parameters with 10 classes."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def build_model(name: str, classes: int) -> nn.Module:
    """`small`, a name in torchvision.models, or one of timm's."""
    if name == "small":
        return small(classes)
    import torchvision

    if name in torchvision.models.list_models():
        model: nn.Module = torchvision.models.get_model(name, num_classes=classes)
        return model
    import timm

    if not timm.is_model(name):
        raise ValueError(f"--model {name}: must be small, or a name in torchvision.models or timm.list_models()")
    made: nn.Module = timm.create_model(name, num_classes=classes)
    return made


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Norms and biases do not decay (He et al. 2018, bag of tricks)."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, args.lr)
    return torch.optim.SGD(groups, args.lr, momentum=args.momentum, nesterov=args.momentum > 0)


def build_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer, epoch_updates: int) -> LRScheduler:
    """The learning rate of each update: up for --warmup epochs, then down to nothing."""
    total, warmup = args.epochs * epoch_updates, round(args.warmup * epoch_updates)
    if args.schedule == "onecycle":
        share = min(1.0, max(2, warmup) / total)  # it divides by the first phase's length less one
        return OneCycleLR(optimizer, args.lr, total_steps=total, pct_start=share, cycle_momentum=False)
    falling = CosineAnnealingLR(optimizer, max(1, total - warmup))
    if not warmup:
        return falling
    rising = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rising, falling], milestones=[warmup])


def build_recipes(args: argparse.Namespace) -> tuple[TrainRecipe, EvalRecipe]:
    """The recipe of --recipe with --size and --set, and an evaluation in the last size with its mean and std."""
    size = {} if args.size is None else {"input_size": args.size}
    recipe: TrainRecipe = getattr(TrainRecipe, args.recipe)().replace(**size, **dict(args.set))
    sizes = recipe.input_size
    last = args.val_size or (sizes[-1][1] if isinstance(sizes, tuple) and isinstance(sizes[0], tuple) else sizes)
    evaluation = EvalRecipe(input_size=last, crop_pct=args.val_crop_pct, mean=recipe.mean, std=recipe.std)
    if recipe.interpolation != "random":
        evaluation = evaluation.replace(interpolation=recipe.interpolation)
    return recipe, evaluation


class Stopwatch:
    """How long the loop has run, and how much of that it waited for the loader.

    On a GPU the loop is ahead of the model: it waits for the loader only where the loader is the slower one.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.reset()

    def reset(self) -> None:
        self.waiting, self.images, self.start = 0.0, 0, time.perf_counter()

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, each waited for by the clock."""
        coming = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(coming, None)
            self.waiting += time.perf_counter() - before
            if batch is None:
                return
            self.images += len(batch[0])
            yield batch

    def read(self) -> dict[str, float]:
        """Since the last reading: images a second of all ranks, and the share of the time that went into waiting."""
        seconds = time.perf_counter() - self.start
        found = {"images_per_second": self.images * self.world_size / seconds, "waiting": self.waiting / seconds}
        self.reset()
        return found


class Training:
    """The state of a run, and how it is kept: everything that the next step depends on."""

    def __init__(self, args: argparse.Namespace, device: torch.device, rank: int, world_size: int) -> None:
        self.args, self.device, self.rank, self.world_size = args, device, rank, world_size
        recipe, evaluation = build_recipes(args)
        form = torch.channels_last if args.channels_last else torch.contiguous_format
        common: dict[str, Any] = {
            "backend": args.backend,
            "device": device,
            "num_workers": args.workers,
            "memory_format": form,
            "seed": args.seed,
        }
        self.train = create_loader(
            args.data, recipe, batch_size=args.batch_size, accumulate=args.accumulate, on_error=args.on_error, **common
        )
        self.val = create_loader(
            args.val_data or args.data,
            evaluation,
            batch_size=args.val_batch_size or args.batch_size,
            classes=self.train,
            **common,
        )
        if self.train.state_dict()["data"] == self.val.state_dict()["data"]:
            told = f"--val-data {args.val_data}" if args.val_data else args.data
            raise ValueError(f"{told} gives the images of training to validate: give --val-data, or train/ and val/")
        torch.manual_seed(args.seed)  # the same weights on every rank
        self.net = build_model(args.model, self.train.num_classes).to(device).to(memory_format=form)
        torch.manual_seed(args.seed + 1 + rank)  # dropout and the like differ
        self.parallel: Any = self.net
        if world_size > 1:
            self.parallel = DistributedDataParallel(self.net, [device.index] if device.type == "cuda" else None)
        self.model: Any = torch.compile(self.parallel) if args.compile else self.parallel
        self.optimizer = build_optimizer(args, self.net)
        self.schedule = build_schedule(args, self.optimizer, len(self.train) // args.accumulate)
        # torch does not annotate it
        averaged = get_ema_multi_avg_fn(args.ema) if args.ema else None  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.net, multi_avg_fn=averaged, use_buffers=True) if averaged else None
        self.loss = nn.CrossEntropyLoss()  # takes class numbers, and the soft labels of mixing and smoothing
        self.best, self.done = 0.0, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds. Every rank calls it."""
        random = [torch.get_rng_state()]
        if self.device.type == "cuda":
            random.append(torch.cuda.get_rng_state(self.device))
        everyone: list[Any] = [random]
        if self.world_size > 1:
            everyone = [None] * self.world_size
            dist.all_gather_object(everyone, random)
        kept = {name: getattr(self, name) for name in ("train", "net", "optimizer", "schedule")}
        kept |= {"ema": self.ema} if self.ema else {}
        return {name: part.state_dict() for name, part in kept.items()} | {"random": everyone, "best": self.best}

    def save(self, name: str = "last.pt") -> None:
        """Whole, or not at all."""
        state = self.state()
        if self.rank == 0 and self.args.output:
            part = self.args.output / f"{name}.part"
            torch.save(state, part)
            part.replace(self.args.output / name)

    def restore(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("train", "net", "optimizer", "schedule", "ema"):
            if name in state and getattr(self, name) is not None:
                getattr(self, name).load_state_dict(state[name])
        self.best = state["best"]
        if len(state["random"]) == self.world_size:  # else they cannot go on as they were
            torch.set_rng_state(state["random"][self.rank][0])
            if self.device.type == "cuda" and len(state["random"][self.rank]) > 1:
                torch.cuda.set_rng_state(state["random"][self.rank][1], self.device)

    def log(self, **values: Any) -> None:
        """A line for people and one for programs."""
        if self.rank:
            return
        text = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
        print(", ".join(f"{name} {value}" for name, value in text.items()), flush=True)
        if self.args.output:
            with (self.args.output / "log.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")

    def forward(self, model: Any, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            outputs: Tensor = model(images)
        return outputs.float()

    def train_epoch(self, epoch: int) -> bool:
        """One pass, or what is left of it; False where --stop-after ends the run in it."""
        args, accumulate = self.args, self.args.accumulate
        self.model.train()
        watch, sums = Stopwatch(self.world_size), torch.zeros(3, device=self.device)
        for images, targets in watch.watch(self.train):
            step = self.train.state_dict()["step"]  # handed out in this epoch, this one among them
            update = step % accumulate == 0
            alone = self.world_size > 1 and not update  # gradients meet once an update
            with self.parallel.no_sync() if alone else contextlib.nullcontext():
                outputs = self.forward(self.model, images)
                loss = self.loss(outputs, targets)
                torch.autograd.backward(loss / accumulate)
            # The class of a soft label is its larger share; comparing with the label as it is would never be true.
            classes = targets.argmax(1) if targets.is_floating_point() else targets
            hits = (outputs.argmax(1) == classes).sum()
            mean = loss.detach()
            sums += torch.stack([mean * len(images), hits.float(), torch.full_like(mean, len(images))])
            if update:
                self.update()
            if args.log_every and step % args.log_every == 0:
                self.report(epoch, step, sums, watch)
                sums.zero_()
            self.done += 1
            if args.save_every and step % args.save_every == 0:
                self.save()
            if self.done == args.stop_after:
                self.save()
                return False
        if sums[2]:  # since the last report
            self.report(epoch, step, sums, watch)
        return True

    def update(self) -> None:
        if self.args.clip_grad:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.args.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.ema:
            self.ema.update_parameters(self.net)

    def report(self, epoch: int, step: int, sums: Tensor, watch: Stopwatch) -> None:
        """Loss and accuracy in training since the last report, on this rank."""
        loss, hits, images = sums.tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {epoch} before step {step}: take a smaller --lr")
        rate = self.optimizer.param_groups[0]["lr"]
        self.log(epoch=epoch, step=step, loss=loss / images, train_top1=hits / images, lr=rate, **watch.read())

    @torch.inference_mode()
    def evaluate(self) -> float:
        """Top-1 in which each image counts once, over all ranks; of the averaged weights where there are some."""
        model: nn.Module = self.ema.module if self.ema else self.net
        if self.world_size > 1:
            for buffer in model.buffers():  # running statistics are each rank's own
                dist.broadcast(buffer, 0)
        model.eval()
        accuracy, losses = Accuracy((1, 5)), torch.zeros(2, device=self.device)
        for images, targets in self.val:
            outputs = self.forward(model, images)
            accuracy.update(outputs, targets)
            losses[0] += nn.functional.cross_entropy(outputs, targets, reduction="sum")  # without padding's -100
            losses[1] += (targets >= 0).sum()
        if self.world_size > 1:
            dist.all_reduce(losses)
        shares, images_seen = accuracy.compute()
        self.log(val_loss=float(losses[0] / losses[1]), top1=shares[1], top5=shares[5], val_images=images_seen)
        return shares[1]

    def run(self) -> None:
        for epoch in range(self.train.epoch, self.args.epochs):
            self.train.set_epoch(epoch)
            if not self.train_epoch(epoch):
                return
            top1 = self.evaluate()
            better, self.best = top1 > self.best, max(top1, self.best)
            self.save()
            if better:
                self.save("best.pt")

    def close(self) -> None:
        self.train.close()
        self.val.close()


def field(text: str) -> tuple[str, Any]:
    """FIELD=VALUE of a recipe, the value as Python writes it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: must be FIELD=VALUE, such as re_prob=0.1")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def sizes(text: str) -> int | tuple[tuple[int, int], ...]:
    """SIDE, or EPOCH:SIDE,EPOCH:SIDE of a training that grows."""
    try:
        if ":" not in text:
            return int(text)
        return tuple((int(first), int(side)) for first, _, side in (part.partition(":") for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a side in pixels, or 0:128,10:160,20:192") from None


def build_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="dali-imagenet train",
        usage="%(prog)s DATA [options]",
        description="Train a classifier on images. The script is made to be copied and changed: examples/train.py.",
        epilog="On several GPUs: torchrun --nproc-per-node 8 -m dali_imagenet.train DATA [options]",
    )
    add = p.add_argument
    add("data", help="what the loader reads: a folder with train/ and val/, shards, ...")
    add("--val-data", metavar="DATA", help="to validate with, where DATA has no such part of its own")
    add("--output", type=Path, metavar="DIR", help="checkpoints and log.jsonl; a run goes on from what is there")
    add("--model", default="resnet50", metavar="NAME", help="small, or one of torchvision's or timm's (resnet50)")
    group = p.add_argument_group("images")
    add = group.add_argument
    add("--recipe", choices=tuple(PRESETS), default="strong", metavar="NAME", help=", ".join(PRESETS))
    add("--set", type=field, action="append", default=[], metavar="FIELD=VALUE", help="of the recipe; again and again")
    add("--size", type=sizes, metavar="SIDE", help="in training; 0:128,10:160,20:192 grows by epoch")
    add("--val-size", type=int, metavar="SIDE", help="in evaluation (the last of --size)")
    add("--val-crop-pct", type=float, default=0.875, metavar="SHARE", help="of the resized image (0.875)")
    add("--backend", choices=("auto", "dali", "torchvision"), default="auto", help="of the loader (auto)")
    add("--workers", type=int, metavar="N", help="of the loader, per process (the cores, 16 at most)")
    add("--on-error", choices=("raise", "replace"), default="raise", help="what a broken image does (raise)")
    group = p.add_argument_group("training")
    add = group.add_argument
    add("--epochs", type=int, default=90, metavar="N", help="(90)")
    add("--batch-size", type=int, default=256, metavar="N", help="per process (256)")
    add("--val-batch-size", type=int, metavar="N", help="(that of training)")
    add("--accumulate", type=int, default=1, metavar="N", help="steps whose gradients make one update (1)")
    add("--optimizer", choices=("sgd", "adamw"), default="sgd", help="(sgd)")
    add("--lr", type=float, default=0.1, metavar="RATE", help="the highest; it is not scaled by the batch (0.1)")
    add("--momentum", type=float, default=0.9, metavar="M", help="of sgd, Nesterov's (0.9)")
    add("--weight-decay", type=float, default=5e-5, metavar="W", help="not of norms and biases (5e-5)")
    add("--schedule", choices=("cosine", "onecycle"), default="cosine", help="of the learning rate (cosine)")
    add("--warmup", type=float, default=5, metavar="EPOCHS", help="until the highest rate (5)")
    add("--clip-grad", type=float, default=0, metavar="NORM", help="0: not (0)")
    add("--ema", type=float, default=0, metavar="DECAY", help="average the weights, and evaluate these; 0: not (0)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, order and augmentation (0)")
    group = p.add_argument_group("machine")
    add = group.add_argument
    add("--device", help="cpu, cuda or cuda:N; by default the GPU where there is one")
    add("--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast to bfloat16 (no)")
    add("--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format (yes)")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile (no)")
    group = p.add_argument_group("reports")
    add = group.add_argument
    add("--log-every", type=int, default=50, metavar="STEPS", help="0: only after an epoch (50)")
    add("--save-every", type=int, default=0, metavar="STEPS", help="besides the end of each epoch (0)")
    add("--stop-after", type=int, default=0, metavar="STEPS", help="save and end, for jobs that are short of time (0)")
    return p


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name in ("epochs", "batch_size", "accumulate"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    for name in ("save_every", "stop_after"):
        if getattr(args, name) % args.accumulate:
            option = f"--{name.replace('_', '-')} {getattr(args, name)}"
            parser.error(f"{option}: must be a multiple of --accumulate {args.accumulate}")
    if not 0 <= args.ema < 1:
        parser.error(f"--ema {args.ema}: must be in [0, 1), such as 0.9999")
    if not 0 <= args.warmup <= args.epochs:
        parser.error(f"--warmup {args.warmup:g}: must be in [0, {args.epochs}], the epochs")


def main(words: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(words)
    check(args, parser)
    cuda = torch.cuda.is_available() if args.device is None else torch.device(args.device).type == "cuda"
    device = torch.device(args.device or ("cuda" if cuda else "cpu"))
    rank, world_size = 0, 1
    if "RANK" in os.environ:  # set by torchrun
        if cuda:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo")  # the loaders take their shares from it
        rank, world_size = dist.get_rank(), dist.get_world_size()
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    try:
        training = Training(args, device, rank, world_size)
    except (TypeError, ValueError, OSError) as error:  # of the recipe, the data, the model
        parser.error(str(error))
    try:
        if args.output and (args.output / "last.pt").exists():
            training.restore(args.output / "last.pt")
        training.run()
    finally:
        training.close()
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
