"""Write docs/api.md: every exported name, from signatures, docstrings and validators. `python docs/make_api.py`.

What a field may be is asked of the validators themselves: an instance is made while they are listened to.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dali_imagenet.recipe import RESIZE_FILTERS

PAGE = Path(__file__).with_name("api.md")
PACKAGES = ("dali_imagenet", "dali_imagenet.policy")
HEAD = """# API

Every exported name, made by `python docs/make_api.py` from signatures, docstrings and validators: do not edit it.
What the examples call `imagenet` is a folder with `train/<class>/*.JPEG` and `val/<class>/*.JPEG`. A value that is out
of its range is a ValueError that names the argument and what is allowed. Ranges are those with the other arguments at
their defaults.

"""
MADE_ELSEWHERE = {
    "Loader": "Made by `create_loader`.",
    "SampleIndex": "Made by one of its `from_...`.",
    "BatchPlan": "Made by `Plan.batch`.",
    "AugMixPlan": "Made by `AugmentPolicy.draw`.",
    "OpPlan": "Made by `AugmentPolicy.draw`.",
    "TimmPolicy": "A base class: made by its heirs.",
    "AugmentPolicy": "A base class: made by its heirs.",
    "Op": "",
    "Source": "",
}
NOTES = {
    "create_loader": '`backend` also takes `"reference"` and `"reference-tensor"`: the plan carried out by\n'
    "torchvision's and timm's own functions on PIL images or uint8 tensors, serially and slowly, to compare with.",
    "resolve": "The names are in [augmentation.md](augmentation.md#policies).",
    "Op": "How exact each is: [augmentation.md](augmentation.md#operations).",
    "Source": "An implementation: [CONTRIBUTING.md](../CONTRIBUTING.md#a-data-source).",
}
WHAT: dict[str, Callable[..., str]] = {  # validators that say themselves what they take
    "_size": lambda: "a side in [1, 4096], or (height, width)",
    "_short_or_both": lambda: "a side in [1, 4096], or (height, width)",
    "_sizes": lambda: "a side in [1, 4096], or (height, width), or a schedule of them",
    "_strengths": lambda: "4 numbers in [0, 1], the hue in [0, 0.5]",
    "_odd": lambda low, high: f"an odd number in [{low}, {high}]",
    "_counts": lambda low, high: f"(low, high), whole numbers in [{low}, {high}]",
    "_interpolation": lambda more=(): " or ".join(f"`{v!r}`" for v in (*RESIZE_FILTERS, *more)),
    "_colour": lambda: "a gray level or 3, whole numbers in [0, 255]",
    "_erase_value": lambda: "a number or 3, in [0, 1]",
    "_range": lambda low, high: f"(low, high) in [{low:g}, {high:g}]",
    "_color": lambda: "3 whole numbers in [0, 255]",
    "whole": lambda low, high: f"a whole number in [{low:g}, {high}]",
    "real": lambda low, high: f"a number in [{low:g}, {high:g}]",
    "probability": lambda: "in [0, 1]",
    "pair": lambda low, high: f"(low, high) in [{low:g}, {high:g}]",
    "reals": lambda count, low, high: f"{count} numbers in [{low:g}, {high:g}]",
    "choice": lambda allowed: " or ".join(f"`{v!r}`" for v in allowed),
    "boolean": lambda: "True or False",
}
# what a class cannot be made without
NEEDED = {"TablePolicy": {"sub_policies": [[(1,)]]}} | {n: {"parts": [(1,)]} for n in ("Apply", "Choice", "Shuffled")}
WORDS = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises", "Attributes": "Attributes"}
EXAMPLES = {
    "create_loader": """
        from dali_imagenet import TrainRecipe, create_loader

        with create_loader("imagenet", TrainRecipe.classic(), batch_size=4, device="cpu", num_workers=0) as loader:
            for images, targets in loader:
                assert images.shape == (4, 3, 224, 224) and targets.shape == (4,)
        """,
    "from_dataloader": """
        from torch.utils.data import DataLoader
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import Compose, Normalize, RandomResizedCrop, ToTensor

        from dali_imagenet import from_dataloader

        steps = [RandomResizedCrop(64), ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        dataloader = DataLoader(ImageFolder("imagenet/train", Compose(steps)), batch_size=4, shuffle=True)
        with from_dataloader(dataloader, device="cpu") as loader:
            for images, targets in loader:
                assert images.shape == (4, 3, 64, 64) and targets.shape == (4,)
        """,
    "UntranslatableError": """
        import torchvision.transforms as T

        from dali_imagenet import EvalRecipe, UntranslatableError

        try:
            EvalRecipe.from_transforms([T.Resize(256), T.TenCrop(224), T.ToTensor()])
        except UntranslatableError as error:
            assert error.what.startswith("TenCrop")
        """,
    "Loader": """
        from dali_imagenet import TrainRecipe, create_loader

        with create_loader("imagenet", TrainRecipe.strong(), batch_size=4, device="cpu", num_workers=0) as loader:
            images, targets = next(iter(loader))
            state = loader.state_dict()  # after one step of epoch 0
            row = loader.explain(step=0)[0]
            print(row["path"], row["box"], [step["op"] for step in row["program"][0]])
            loader.load_state_dict(state)  # the next iteration starts at the second step
        """,
    "TrainRecipe": """
        from dali_imagenet import TrainRecipe

        recipe = TrainRecipe.strong(input_size=(192, 256), auto_augment="trivialaugment")
        assert recipe.replace(re_prob=0.0).re_prob == 0.0
        assert TrainRecipe(scale=[0.5, 1]) == TrainRecipe(scale=(0.5, 1.0))
        """,
    "EvalRecipe": """
        from dali_imagenet import EvalRecipe

        assert EvalRecipe(input_size=224, crop_pct=0.875).scale_size == (256, 256)
        EvalRecipe.from_pretrained_cfg({"input_size": (3, 288, 288), "crop_pct": 0.95, "interpolation": "bicubic"})
        """,
    "SampleIndex": """
        from dali_imagenet import SampleIndex

        index = SampleIndex.from_folder("imagenet", split="train")
        print(len(index), index.classes, index.path(0), index.reason(0), index.fingerprint)
        """,
    "Source": """
        from dali_imagenet import SampleIndex, Source

        source: Source = SampleIndex.from_folder("imagenet", split="val").source
        assert source.read(0)[:2] == b"\\xff\\xd8"  # as a JPEG begins
        """,
    "Plan": """
        from dali_imagenet import Plan, SampleIndex, TrainRecipe

        index = SampleIndex.from_arrays(labels=[0, 1] * 8, height=300, width=400)  # no file is looked at
        plan = Plan(index, TrainRecipe.strong(), batch_size=4, seed=1)
        batch = plan.batch(epoch=0, step=2)
        print(batch.source_index, batch.crop_box, batch.mix.lam)
        """,
    "BatchPlan": """
        from dali_imagenet import Plan, SampleIndex, TrainRecipe

        index = SampleIndex.from_arrays(labels=[0, 1] * 8, height=300, width=400)
        batch = Plan(index, TrainRecipe.classic(), batch_size=4).batch(epoch=0, step=0)
        assert batch.size == (224, 224) and batch.crop_box.shape == (4, 4)
        assert len(batch.select_rows([0, 2])) == 2
        """,
    "Op": """
        from dali_imagenet import Op

        assert Op.ROTATE.name == "ROTATE" and Op(5) is Op.ROTATE
        """,
    "BadImageError": """
        from dali_imagenet import BadImageError, EvalRecipe, create_loader

        try:
            create_loader("imagenet", EvalRecipe(), batch_size=4, device="cpu", num_workers=0).close()
        except BadImageError as error:
            print(error)  # every broken image by path and reason
        """,
    "Accuracy": """
        import torch
        from dali_imagenet import Accuracy

        accuracy = Accuracy(topk=(1, 2))
        accuracy.update(torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3]]), torch.tensor([1, -100]))  # one is padding
        shares, samples = accuracy.compute()
        assert shares == {1: 1.0, 2: 1.0} and samples == 1
        """,
    "save_preview": """
        from dali_imagenet import TrainRecipe, create_loader, save_preview

        with create_loader("imagenet", TrainRecipe.strong(), batch_size=4, device="cpu", num_workers=0) as loader:
            save_preview(loader, "preview.png", count=4)
        """,
    "AugmentPolicy": """
        from dataclasses import dataclass
        from typing import ClassVar

        import numpy as np
        from dali_imagenet import Op
        from dali_imagenet.policy import AugmentPolicy, OpPlan


        @dataclass(frozen=True, kw_only=True)
        class Inverted(AugmentPolicy):
            name: ClassVar[str] = "inverted"  # under which saved states know it
            chance: float = 0.5
            num_slots = num_uniforms = 1

            def draw(self, u, size):
                op = np.where(u < self.chance, Op.INVERT, Op.IDENTITY).astype(np.int16)
                return OpPlan(op, np.zeros_like(op, np.float32), np.zeros_like(op))


        assert Inverted(chance=1).draw(np.zeros((2, 1)), (224, 224)).op.tolist() == [[Op.INVERT], [Op.INVERT]]
        """,
    "TablePolicy": """
        from dali_imagenet import Op, TrainRecipe
        from dali_imagenet.policy import Step, TablePolicy

        policy = TablePolicy(sub_policies=[[Step(Op.ROTATE, 0.7, (0, 30), sign=True)], [(Op.COLOR, 1.0, 1.4)]])
        TrainRecipe.strong(auto_augment=policy)
        """,
    "resolve": """
        from dali_imagenet.policy import RandAugment, resolve

        assert resolve("randaugment-n3-m5") == RandAugment(num_ops=3, magnitude=5)
        assert resolve(None) is None
        """,
}


def exported() -> list[tuple[str, str]]:
    """Package and name of everything that is exported."""
    return [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


def examples() -> dict[str, str]:
    """Code by the name that it shows."""
    return {name: textwrap.dedent(code).strip() for name, code in EXAMPLES.items()}


def annotation(given: Any) -> str:
    """A type as it is written in the source."""
    text = given if isinstance(given, str) else getattr(given, "__name__", str(given))
    return text.strip("'\"")


def signature(name: str, made: Callable[..., Any], skip: int = 0) -> str:
    """The call, on one line where it fits, else one parameter a line."""
    found = inspect.signature(made)
    parts, stars = [], False
    for p in list(found.parameters.values())[skip:]:
        if p.kind is p.KEYWORD_ONLY and not stars:
            parts.append("*")
        stars = stars or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        text = prefix + p.name + ("" if p.annotation is p.empty else f": {annotation(p.annotation)}")
        parts.append(text if p.default is p.empty else f"{text} = {default(p.default)}")
    back = (
        "" if found.return_annotation in (found.empty, None, "None") else f" -> {annotation(found.return_annotation)}"
    )
    line = f"{name}({', '.join(parts)}){back}"
    return line if len(line) <= 110 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){back}"


def default(value: Any) -> str:
    """A default as it is written; numbers short."""
    if isinstance(value, tuple):
        return f"({', '.join(map(default, value))}{',' * (len(value) == 1)})"
    return f"{value:.4g}" if isinstance(value, float) else value.name if isinstance(value, enum.Enum) else repr(value)


def prose(doc: str | None, names_of: Iterable[str] = ()) -> list[str]:
    """A docstring as Markdown: sections and lines that begin with a field become lists; a block stays a block."""
    out: list[str] = []
    literal = False
    for line in (doc or "").splitlines():
        bare = line.strip()
        if bare == "::":
            literal = True
            out += ["```"]
            continue
        if literal:
            if bare and not line.startswith(" "):
                literal = False
                out += ["```", ""]
            else:
                out += [line[4:]] if bare or out[-1] != "```" else []
                continue
        if re.fullmatch(r"[A-Z][a-z]+:", bare) and bare[:-1] in WORDS:
            out += ["", f"**{WORDS[bare[:-1]]}**", ""]
        elif re.match(r"    [A-Za-z_]+(, [A-Za-z_]+)*: ", line) or bare.partition(":")[0] in names_of:
            names, _, text = bare.partition(": ")
            out.append("- " + ", ".join(f"`{name}`" for name in names.split(", ")) + f": {text}")
        else:
            out.append(f"  {bare}" if bare and out and out[-1].startswith(("- ", "  ")) and line[:1] == " " else bare)
    return [*out, ""]


def checks(cls: type) -> dict[str, str]:
    """What each field may be, as its validator has it."""
    heard: dict[str, str] = {}
    owner = next((base for base in cls.__mro__ if "_set" in vars(base)), None)
    if owner is None or cls.__name__ in ("AugmentPolicy", "TimmPolicy"):
        return heard
    original: Any = vars(owner)["_set"]

    def listen(self: Any, field: str, validate: Any, *bounds: Any) -> None:
        heard[field] = WHAT[validate.__name__](*bounds)
        original(self, field, validate, *bounds)

    spied: Any = owner
    spied._set = listen
    try:
        cls(**NEEDED.get(cls.__name__, {}))
    finally:
        spied._set = original
    return heard


def field_docs(cls: type) -> dict[str, str]:
    """The strings below the fields of a class."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("dali_imagenet"):
            continue
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        body = tree.body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                )
                found[node.target.id] = " ".join(str(text).split())
    return found


def fields(cls: type) -> Iterator[str]:
    """A table of the fields of a dataclass or named tuple."""
    docs, allowed = field_docs(cls), checks(cls)
    if dataclasses.is_dataclass(cls):
        rows = [(f.name, f.type, f.default, f.default is dataclasses.MISSING) for f in dataclasses.fields(cls)]
    else:
        named: Any = cls
        rows = [(n, named.__annotations__[n], named._field_defaults.get(n), n not in named._field_defaults)
                for n in named._fields]  # fmt: skip
    rows = [row for row in rows if not row[0].startswith("_")]
    has_defaults = not all(row[3] for row in rows)
    yield "| field | type | default | allowed | |" if has_defaults else "| field | type | |"
    yield "|---|---|---|---|---|" if has_defaults else "|---|---|---|"
    for name, kind, value, required in rows:
        kind = annotation(getattr(kind, "__forward_arg__", kind)).replace("|", "\\|")
        start = f"| `{name}` | `{kind}` |"
        text = docs.get(name, "").replace("|", "\\|")
        if has_defaults:
            shown = "" if required else f"`{default(value)}`"
            limits = allowed.get(name, "")
            limits += ", or None" if limits and value is None and "None" not in limits else ""
            start += f" {shown} | {limits} |"
        yield f"{start} {text} |".replace("  |", " |")
    yield ""


def operations(cls: type[enum.IntEnum]) -> Iterator[str]:
    """The members of `Op` with their comments and ranges."""
    table = importlib.import_module("dali_imagenet.ops").OPS
    comments = dict(re.findall(r"^    ([A-Z_]+) = \d+  # (.*)$", inspect.getsource(cls), re.MULTILINE))
    yield "| operation | number | argument | range |"
    yield "|---|---:|---|---|"
    for op in cls:
        info = table[op]
        limits = (
            ""
            if info.low == -float("inf")
            else f"from {info.low:g}" + ("" if info.high == float("inf") else f" to {info.high:g}")
        )
        yield f"| `{op.name}` | {int(op)} | {comments.get(op.name, '')} | {limits} |"
    yield ""


def methods(cls: type) -> Iterator[str]:
    """What a class offers, its own and what it has from unexported bases."""
    own = [b for b in cls.__mro__ if b is cls or b.__name__ == "_Recipe"]
    for name, value in {n: v for base in reversed(own) for n, v in vars(base).items()}.items():
        if name.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod):
            call, doc = signature(f"{cls.__name__}.{name}", getattr(cls, name)), value.__func__.__doc__
        elif inspect.isfunction(value):
            call, doc = signature(f".{name}", value, skip=1), value.__doc__
        elif isinstance(value, property | functools.cached_property):
            get = value.fget if isinstance(value, property) else value.func
            back = annotation(inspect.signature(get).return_annotation)  # type: ignore[arg-type]  # none has no getter
            call, doc = f".{name}: {back}", value.__doc__
        else:
            continue
        yield from (f"#### `{call}`", "") if "\n" not in call else (f"#### `{name}`", "", "```text", call, "```", "")
        yield from prose(inspect.cleandoc(doc) if doc else None)


def entry(package: str, name: str) -> Iterator[str]:
    """The text on one exported name."""
    made = getattr(importlib.import_module(package), name)
    is_data = dataclasses.is_dataclass(made)
    yield from (f"## `{name}`", "", f"`from {package} import {name}`", "")
    if isinstance(made, type) and issubclass(made, Exception):
        pass  # raised, not made
    elif name in MADE_ELSEWHERE:
        yield from (MADE_ELSEWHERE[name], "") if MADE_ELSEWHERE[name] else ()
    elif not is_data:
        yield from ("```text", signature(name, made), "```", "")
    names = (
        [f.name for f in dataclasses.fields(made)] if dataclasses.is_dataclass(made) else getattr(made, "_fields", ())
    )
    yield from prose(inspect.getdoc(made), names)
    yield from (NOTES[name], "") if name in NOTES else ()
    if name in EXAMPLES:
        yield from ("```python", examples()[name], "```", "")
    if inspect.isclass(made):
        if issubclass(made, enum.IntEnum):
            yield from operations(made)
            return
        if (dataclasses.is_dataclass(made) and name != "SampleIndex") or hasattr(made, "_fields"):
            yield from fields(made)
        if not issubclass(made, BaseException) and not hasattr(made, "_fields"):
            yield from methods(made) if package == PACKAGES[0] or name == "AugmentPolicy" else ()


def page() -> str:
    """All of docs/api.md."""
    lines = [HEAD.rstrip(), ""]
    for package in PACKAGES:
        names = [name for where, name in exported() if where == package]
        lines += [f"`{package}`: " + ", ".join(f"[`{name}`](#{name.lower()})" for name in names) + "."]
        lines += [""]
    for package, name in exported():
        lines += entry(package, name)
    out: list[str] = []
    for line in lines:  # two empty lines one after the other within a block of code alone
        out += [line.rstrip()] if line.strip() or not out or out[-1] else []
    return "\n".join(out).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
