"""One run of one contestant, and the recipes in terms that every contestant can build from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, Self

MEAN = (0.485, 0.456, 0.406)  # ImageNet, torchvision's reference scripts
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Spec:
    """What a recipe asks for, in no library's terms."""

    crop: str = "random"  # "random": RandomResizedCrop(scale 0.08-1, ratio 3/4-4/3); "center": resize 256, crop 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip: float = 0.5
    rand_augment: tuple[int, int] | None = None  # operations, magnitude
    auto_augment: str = ""  # a timm string, for the advanced recipe
    jitter: tuple[float, float, float, float] | None = None  # brightness, contrast, saturation, hue (turns)
    gray: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    @property
    def mixing(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


JITTER = (0.4, 0.4, 0.4, 0.1)
SPECS = {
    "classic": Spec(),
    "strong": Spec(
        interpolation="bicubic",
        rand_augment=(2, 9),
        jitter=JITTER,
        erase=0.25,
        mixup=0.2,
        cutmix=1.0,
        smoothing=0.1,
    ),
    "eval": Spec(crop="center", flip=0.0),
    # augmentation modes: what each step costs over none
    "none": Spec(crop="center", flip=0.0),
    "conservative": Spec(jitter=(0.2, 0.2, 0.0, 0.0)),
    "moderate": Spec(rand_augment=(1, 9), jitter=JITTER, erase=0.25),
    "aggressive": Spec(
        interpolation="bicubic",
        rand_augment=(2, 9),
        jitter=JITTER,
        gray=0.1,
        blur=0.1,
        erase=0.25,
        mixup=0.2,
        cutmix=1.0,
        smoothing=0.1,
    ),
    "advanced": Spec(),  # whatever TrainRecipe.advanced says; peers that have the same policy only
}
RECIPES_IN_WORDS = {
    "classic": "RandomResizedCrop(224, bilinear), flip, normalize",
    "strong": "RandomResizedCrop(224, bicubic), flip, colour 0.4/0.4/0.4/0.1, RandAugment(2, 9), normalize, "
    "RandomErasing 0.25, Mixup 0.2 or CutMix 1.0",
    "eval": "resize 256 (bilinear), centre crop 224, normalize",
    "advanced": "TrainRecipe.advanced()",
    "none": "resize 256, centre crop 224, normalize",
    "conservative": "RandomResizedCrop, flip, brightness and contrast 0.2, normalize",
    "moderate": "RandomResizedCrop, flip, colour, RandAugment(1, 9), normalize, RandomErasing",
    "aggressive": "strong, with gaussian blur 0.1 and grayscale 0.1",
}


@dataclass(frozen=True)
class Job:
    """Everything a contestant needs to know; travels to its process as JSON."""

    contestant: str
    recipe: str
    root: str  # ImageFolder tree: <root>/<class>/<image>
    batch_size: int = 64  # images a batch
    workers: int = 2  # processes or threads; 0 is in-process where the contestant can
    device: str = "cpu"  # where the batch must arrive: "cpu" or "cuda"
    seed: int = 0
    size: int = 224  # side of the output in pixels
    seconds: float = 5.0  # measured time
    warmup_batches: int = 4  # not measured, beyond what the queues hold
    section: str = "loaders"  # which part of the comparison it is for
    model: str = ""  # train this model on the loader instead of only iterating
    cold: bool = False  # drop the files from the page cache first
    cache: str = ""  # folder for converted data sets (tar, raw pixels)

    @property
    def spec(self) -> Spec:
        return SPECS[self.recipe]

    @property
    def key(self) -> str:
        """Names the cell of the comparison that this run belongs to."""
        return "|".join((self.section, self.contestant, self.recipe, str(self.workers), str(self.batch_size)))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))
