"""Write any data as WebDataset's tar shards, with their index beside them."""

from __future__ import annotations

import argparse
import re

from dali_imagenet.cli.common import FINE, add_source, number, source
from dali_imagenet.validation import wrong

NAME = "pack"
HELP = "write any data as WebDataset's tar shards, with their index"
WORDS = {"num_threads": "--threads"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("output", help="a folder; what is there from the same command is left")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="write in a permuted order, for other readers")
    parser.add_argument("--shard-size", default="1GB", metavar="SIZE", help="of each tar (default: 1GB)")
    parser.add_argument("--max-side", type=int, metavar="N", help="make images with a longer side smaller, as JPEGs")
    parser.add_argument("--quality", type=int, metavar="Q", help="of these JPEGs (default: 90)")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="write the I-th of N parts of the shards")
    parser.add_argument("--threads", type=number(1), metavar="N", help="shards written at once (default: the cores)")


def run(options: argparse.Namespace) -> int:
    part = re.fullmatch(r"(\d+)/(\d+)", options.part)
    if part is None:
        raise wrong("part", options.part, "I/N: the I-th of N parts, as 1/4")
    from dali_imagenet.packing import pack

    done = pack(
        options.data,
        options.output,
        shuffle=options.shuffle,
        shard_size=options.shard_size,
        max_side=options.max_side,
        quality=options.quality,
        part=(int(part[1]), int(part[2])),
        num_threads=options.threads,
        **source(options),
    )
    where = f"{len(done.shards)} shard(s) of {options.output}"
    print(f"{done.images} images in {where}, {done.written / 1e6:,.1f} MB written, {len(done.left_out)} left out")
    if done.size_ratio is not None:
        print(
            f"{done.reencoded} images made smaller, to {done.size_ratio:.0%} of their bytes; evaluation's pixels "
            f"differ by {done.pixel_difference:.2f} of 255 on average, decoding takes {done.time_ratio:.0%} of the time"
        )
    return FINE
