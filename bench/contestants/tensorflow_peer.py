"""tf.data as its guide to performance and the official ResNet write it: crops decoded alone, a parallel map, batches
made ahead, and a thread pool of the workers' size. Handed to PyTorch without a copy.

torchvision is not imported: it imports Triton, which ends with a segmentation fault where TensorFlow is loaded already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from torch.utils.dlpack import from_dlpack

from ..core import images
from ..core.job import MEAN, STD, Job

SHUFFLED = 16_384  # paths in the window, as in the official ResNet


def _random_window(encoded: Any) -> Any:
    """top, left, height, width of RandomResizedCrop's box."""
    shape = tf.io.extract_jpeg_shape(encoded)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
        min_object_covered=0.0,
        aspect_ratio_range=[3 / 4, 4 / 3],
        area_range=[0.08, 1.0],
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    top, left, _ = tf.unstack(begin)
    height, width, _ = tf.unstack(size)
    return tf.stack([top, left, height, width])


def _central_window(encoded: Any) -> Any:
    """What the centre crop of 224 sees of an image that is resized to 256."""
    shape = tf.io.extract_jpeg_shape(encoded)
    height, width = shape[0], shape[1]
    side = tf.cast(tf.round(tf.cast(tf.minimum(height, width), tf.float32) * 224 / 256), tf.int32)
    return tf.stack([(height - side) // 2, (width - side) // 2, side, side])


class Batches:
    def __init__(self, job: Job) -> None:
        threads = max(1, job.workers)
        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        spec, training = job.spec, job.spec.crop == "random"
        mean, std = (tf.constant([255 * v for v in values], tf.float32) for values in (MEAN, STD))

        def decode(path: Any, label: Any) -> Any:
            encoded = tf.io.read_file(path)
            window = _random_window(encoded) if training else _central_window(encoded)
            image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
            image = tf.image.resize(image, [job.size, job.size], method=spec.interpolation)
            if spec.flip:
                image = tf.image.random_flip_left_right(image)
            return tf.transpose((image - mean) / std, [2, 0, 1]), label

        paths = images.image_files(Path(job.root))
        classes = {name: number for number, name in enumerate(sorted({path.parent.name for path in paths}))}
        labels = [classes[path.parent.name] for path in paths]
        data = tf.data.Dataset.from_tensor_slices(([str(path) for path in paths], labels))
        if training:
            data = data.shuffle(min(len(paths), SHUFFLED), seed=job.seed, reshuffle_each_iteration=True)
        data = data.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False if training else None)
        data = data.batch(job.batch_size, drop_remainder=training).prefetch(tf.data.AUTOTUNE)
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.autotune.cpu_budget = threads
        self.data, self.device = data.with_options(options), job.device

    def __iter__(self) -> Iterator[Any]:
        for pixels, labels in self.data:
            yield from_dlpack(pixels).to(self.device), from_dlpack(labels).long().to(self.device)


def build(job: Job) -> Iterable[Any]:
    return Batches(job)
