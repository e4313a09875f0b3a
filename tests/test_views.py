"""Several views of each sample: one read, draws of their own, and each exactly what a loader of it alone would give."""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from dali_imagenet import EvalRecipe, Plan, SampleIndex, TrainRecipe, create_loader, image, rng, save_preview
from dali_imagenet.data.source import read_each
from dali_imagenet.engine import EngineOptions, make_engine
from dali_imagenet.plan.batch_plan import BatchPlan
from tests import helpers
from tests.helpers import BACKENDS, ENGINES, make_folder, needs_dali, saved

pytestmark = pytest.mark.usefixtures("one_thread")
GLOBAL = TrainRecipe.strong(
    input_size=40, mixup_alpha=0, cutmix_alpha=0, label_smoothing=0, re_prob=0.6, re_mode="pixel"
)
LOCAL = TrainRecipe(  # of another size, colour, normalization, crop and filter
    input_size=(24, 32), scale=(0.05, 0.4), interpolation="random", vflip=0.5, color_jitter=(0.4, 0.4, 0.2, 0.1),
    gaussian_blur_prob=0.5, gaussian_blur_kernel=7, mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4),
)  # fmt: skip
CROP = TrainRecipe(
    input_size=48, crop="random", crop_padding=6, crop_fill=(9, 99, 200), color_twist=(0.4, 0.4, 0.4, 0.1)
)
VIEWS = (GLOBAL, GLOBAL, LOCAL, CROP)
WEAK = TrainRecipe(input_size=40, vflip=0.5, interpolation="random")
STRONG = WEAK.replace(input_size=24, auto_augment="randaugment", color_twist=(0.4, 0.4, 0.4, 0.1), re_prob=0.5)
load = functools.partial(helpers.load, seed=5)
Batches = list[tuple[list[Tensor], Tensor]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    """26 images: three global batches of 8, and a rest."""
    return SampleIndex.from_folder(make_folder(tmp_path_factory.mktemp("views") / "data", 26, seed=3))


def copied(loader: Any, most: int | None = None) -> Batches:
    return [([view.clone() for view in views], targets) for views, targets in itertools.islice(loader, most)]


def same(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        torch.equal(y, v) and len(x) == len(u) and all(map(torch.equal, x, u))
        for (x, y), (u, v) in zip(a, b, strict=True)
    )


def made_up(n: int = 64, height: int = 300, width: int = 400) -> SampleIndex:
    return SampleIndex.from_arrays(np.arange(n) % 10, height, width)


def fields_of(plan: BatchPlan) -> dict[str, Any]:
    return {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan) if f.name not in ("view", "others")}


def equal(a: BatchPlan, b: BatchPlan) -> bool:
    return all(map(_equal, fields_of(a).values(), fields_of(b).values()))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(np.array_equal(a, b))


# ---- draws


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"world_size": 2, "rank": 1},
        {"drop_last": False},
        {"epoch_size": 100},
        {"weights": range(1, 65)},
        {"steps_per_epoch": 7},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_view_0_draws_what_a_plan_without_views_draws(options: dict[str, Any]) -> None:
    recipe = GLOBAL.replace(num_aug_repeats=2)
    alone = Plan(made_up(), recipe, batch_size=12, seed=7, **options)
    plan = Plan(made_up(), recipe, batch_size=12, seed=7, **options, views=[recipe, LOCAL.replace(num_aug_repeats=2)])
    assert len(plan) == len(alone)
    for epoch, step in ((0, 0), (3, len(plan) - 1)):
        batch = plan.batch(epoch, step)
        assert equal(batch, alone.batch(epoch, step))
        assert [view.view for view in batch.views] == [0, 1]
        for name in ("position", "sampled_index", "source_index", "repeat", "label", "source_size"):
            assert np.array_equal(getattr(batch, name), getattr(batch.views[1], name)), name


RECORDED = [
    [[37, 105, 74, 82], [82, 213, 155, 174], [21, 181, 214, 219]],
    [[68, 77, 185, 228], [2, 168, 162, 216], [144, 79, 146, 112]],
    [[47, 50, 220, 200], [11, 136, 144, 174], [16, 233, 104, 87]],
]
RECORDED_UNIFORMS = [0.934701272752136, 0.04517277656123042]


def test_what_a_view_draws_is_recorded() -> None:
    """Part of what a seed means, as the golden plans."""
    views = Plan(made_up(), LOCAL, batch_size=3, seed=11, views=3).batch(2, 1).views
    assert [view.crop_box.tolist() for view in views] == RECORDED
    assert rng.uniforms(5, 3, rng.STREAM_CROP, [7, 2**40], 1, view=255)[:, 0].tolist() == RECORDED_UNIFORMS


def test_keys_of_views_meet_no_others() -> None:
    """Not those of other samples, copies of them, streams or epochs."""
    at = np.array([0, 1, 2, 2**31, 2**32, 2**40, 2**56 - 1])
    found = [
        rng.uniforms(1, epoch, stream, at, 4, repeat, view).ravel()
        for epoch in (0, 1)
        for stream in (1, 2)
        for repeat in (0, 1, 255)
        for view in (0, 1, 2, 255)
    ]
    assert len(np.unique(np.concatenate(found))) == sum(map(len, found))


def test_views_are_drawn_alike_and_independently() -> None:
    plan = Plan(made_up(4096), LOCAL.replace(interpolation="bilinear"), batch_size=4096, seed=2, views=3)
    views = plan.batch(0, 0).views

    def numbers(view: BatchPlan) -> dict[str, Any]:
        found = {name: view.crop_box[:, i] for i, name in enumerate(("top", "left", "height", "width"))}
        jitter = view.ops[0]
        return {**found, "hflip": view.hflip, "vflip": view.vflip, "first op": jitter.op[:, 0], "arg": jitter.arg[:, 0]}

    for a, b in itertools.combinations(map(numbers, views), 2):
        for name in a:
            assert stats.ks_2samp(a[name], b[name]).pvalue > 1e-3, name
            assert abs(np.corrcoef(a[name], b[name])[0, 1]) < 0.06, name


def test_shared_geometry_is_of_view_0_and_nothing_else_is_shared() -> None:
    plan = Plan(made_up(4096), WEAK, batch_size=4096, views=[WEAK, STRONG, STRONG], share_geometry=True)
    first, *others = plan.batch(1, 0).views
    assert equal(first, Plan(made_up(4096), WEAK, batch_size=4096).batch(1, 0))
    for other in others:
        for name in ("crop_box", "hflip", "vflip", "interpolation"):
            assert np.array_equal(getattr(first, name), getattr(other, name)), name
        assert (other.resize == 24).all()
        assert other.size == (24, 24)
    a, b = (other.color_factors for other in others)
    assert a is not None
    assert b is not None
    assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.06


def test_shared_geometry_of_other_crops() -> None:
    views = (CROP, CROP.replace(color_twist=None, re_prob=0.5))
    batch = Plan(made_up(height=100), CROP, batch_size=32, views=views, share_geometry=True).batch(0, 0)
    assert np.array_equal(batch.window, batch.others[0].window)
    assert np.array_equal(batch.crop_box, batch.others[0].crop_box)


def test_each_view_has_its_own_sizes() -> None:
    growing = TrainRecipe(input_size=((0, 32), (2, 48)))
    plan = Plan(made_up(), growing, batch_size=8, views=[growing, TrainRecipe(input_size=((0, 16), (1, 24)))])
    sizes = [[view.size[0] for view in plan.batch(epoch, 0).views] for epoch in range(3)]
    assert sizes == [[32, 16], [32, 24], [48, 24]]


# ---- batches


class OneView(Plan):
    """One of the views as a plan of its own."""

    def __init__(self, plan: Plan, view: int) -> None:
        super().__init__(plan.index, plan.recipes[view], batch_size=plan.batch_size, seed=plan.seed)
        self._all, self._view = plan, view

    def batch(self, epoch: int, step: int, failed: Collection[int] = ()) -> BatchPlan:
        return dataclasses.replace(self._all.batch(epoch, step, failed).views[self._view], others=())


def images_of(plan: Plan, engine: str, device: str = "cpu", **options: Any) -> list[Tensor]:
    """The first batch, in each view."""
    maker = make_engine(engine, plan, EngineOptions(device=torch.device(device), **options))
    try:
        plan_made, images, failures = next(maker.batches(0, 0))
        assert not failures
        assert len(images) == len(plan_made.views)
        return [view.clone() for view in images]
    finally:
        maker.close()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("torchvision", {}),
        ("torchvision", {"dtype": torch.float16, "memory_format": torch.channels_last}),
        ("torchvision", {"num_workers": 1}),
        *(
            pytest.param("dali", {"in_graph": in_graph, "roi_decode": roi}, marks=needs_dali)
            for in_graph in (False, True)
            for roi in (False, True)
        ),
        ("reference", {}),
        ("reference-tensor", {}),
    ],
    ids=str,
)
def test_each_view_is_what_a_plan_of_it_alone_gives(
    index: SampleIndex, engine: str, options: dict[str, Any], share: bool
) -> None:
    views = (WEAK, STRONG) if share else VIEWS
    plan = Plan(index, views[0], batch_size=6, seed=4, views=views, share_geometry=share)
    for view, images in enumerate(images_of(plan, engine, **options)):
        [alone] = images_of(OneView(plan, view), engine, **options)
        assert torch.equal(images, alone), view
        assert images.stride() == alone.stride()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_view_is_what_a_plan_of_it_alone_gives_on_a_gpu(index: SampleIndex, backend: str) -> None:
    plan = Plan(index, VIEWS[0], batch_size=6, seed=4, views=VIEWS)
    for view, images in enumerate(images_of(plan, backend, "cuda:0")):
        [alone] = images_of(OneView(plan, view), backend, "cuda:0")
        assert images.device == torch.device("cuda:0")
        assert float((images - alone).abs().mean()) < 0.01  # half a grey level: decoders do not repeat themselves


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_view_is_the_reference_s(index: SampleIndex, backend: str) -> None:
    plan = Plan(index, GLOBAL, batch_size=8, seed=6, views=VIEWS)
    for view, ours, reference in zip(VIEWS, images_of(plan, backend), images_of(plan, "reference-tensor"), strict=True):
        std = torch.tensor(view.std)[:, None, None]
        assert float(((ours - reference) * std * 255).abs().mean()) < 0.05


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_an_epoch_is_that_of_a_loader_without_views(index: SampleIndex, backend: str, workers: int) -> None:
    options = {"backend": backend, "num_workers": workers}
    with load(index, GLOBAL, **options) as alone, load(index, GLOBAL, views=VIEWS, **options) as loader:
        assert len(loader) == len(alone)
        assert loader.recipes == VIEWS
        for _ in range(2):
            for (images, targets), (views, labels) in zip(alone, loader, strict=True):
                assert [tuple(view.shape) for view in views] == [(8, 3, *recipe.size_at(0)) for recipe in VIEWS]
                assert torch.equal(views[0], images)
                assert torch.equal(targets, labels)
                assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_run_goes_on_exactly(index: SampleIndex, backend: str, workers: int) -> None:
    options = {"backend": backend, "num_workers": workers, "views": [GLOBAL, LOCAL]}
    with load(index, GLOBAL, **options) as loader:
        whole = copied(loader) + copied(loader)
    with load(index, GLOBAL, **options) as loader:
        assert same(copied(loader, 2), whole[:2])
        state = saved(loader)
    with load(index, GLOBAL, **options) as loader:
        loader.load_state_dict(state)
        assert same(copied(loader) + copied(loader), whole[2:])


def test_any_number_of_ranks_sees_the_same(index: SampleIndex) -> None:
    def rows(rank: int, world: int) -> dict[int, list[Tensor]]:
        with load(index, GLOBAL, views=[GLOBAL, LOCAL], batch_size=8 // world, rank=rank, world_size=world) as loader:
            found = {}
            for step, (views, _) in enumerate(loader):
                for row, position in enumerate(loader.plan.positions(step).tolist()):
                    found[position] = [view[row].clone() for view in views]
            return found

    one, two = rows(0, 1), rows(0, 2) | rows(1, 2)
    assert one.keys() == two.keys()
    assert all(map(torch.equal, itertools.chain(*one.values()), itertools.chain(*(two[at] for at in one))))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_any_view_is_explained_and_made_again(index: SampleIndex, backend: str) -> None:
    with load(index, GLOBAL, views=VIEWS, backend=backend, batch_size=4) as loader:
        views, _ = next(iter(loader))
        rows = json.loads(json.dumps(loader.explain(0)))
        assert [(row["view"], row["row"]) for row in rows] == list(itertools.product(range(4), range(4)))
        for row in rows[::3]:
            assert torch.equal(loader.render(row), views[row["view"]][row["row"]])
    with load(index, GLOBAL, backend=backend) as loader, pytest.raises(ValueError, match="view 3"):
        loader.render(rows[-1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_breaks_is_replaced_in_all_views_alike(new_folder: Callable[..., Path], backend: str) -> None:
    data = SampleIndex.from_folder(new_folder(12))
    lost = data.source.read(5)[:-40]
    Path(data.path(5)).write_bytes(lost.ljust(int(data.file_size[5]), b"\xff"))  # found when it is decoded
    options: dict[str, Any] = {"batch_size": 12, "on_error": "replace", "max_broken": 0.5, "views": [GLOBAL, LOCAL]}
    with load(data, GLOBAL, backend=backend, **options) as loader:
        [(views, targets)] = list(loader)
        assert list(loader.failures) == [data.path(5)]
        rows = loader.explain(0, 0)
    replaced = [row for row in rows if row["drawn"] == 5]
    assert [(row["view"], row["index"]) for row in replaced] == [(0, 6), (1, 6)]
    assert targets[replaced[0]["row"]] == data.labels[6]
    with load(data.subset([*range(5), *range(6, 12)]), GLOBAL, backend=backend) as healthy:
        for row in replaced:  # that image, by the draws of the one that was lost
            healthy.plan.recipes = (GLOBAL, LOCAL)
            assert torch.equal(healthy.render({**row, "index": 5}), views[row["view"]][row["row"]])


class Counted:
    """Images in memory that knows how often each was read."""

    fork_safe = True

    def __init__(self, index: SampleIndex) -> None:
        self.files = [index.source.read(i) for i in range(len(index))]
        self.reads = [0] * len(index)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, sample: int) -> bytes:
        self.reads[sample] += 1
        return self.files[sample]

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        return read_each(self, samples)

    def will_read(self, samples: Sequence[int]) -> None: ...

    def name(self, sample: int) -> str:
        return f"counted:{sample}"

    def local_path(self, sample: int) -> str | None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_sample_is_read_and_decoded_once(index: SampleIndex, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = image.read_pixels

    def read_pixels(samples: SampleIndex, sample: int, *rest: Any) -> Any:
        decoded.append(sample)
        return real(samples, sample, *rest)

    monkeypatch.setattr(image, "read_pixels", read_pixels)
    source = Counted(index)
    data = SampleIndex.from_source(source, index.labels)
    source.reads = [0] * len(index)
    with load(data, GLOBAL, views=VIEWS, backend=backend, prefetch=1, batch_size=26) as loader:
        next(iter(loader))
        assert source.reads == [1 if backend != "dali" else source.reads[0]] * 26
        assert source.reads[0] <= 2  # DALI's next batch is being made
    assert len(decoded) == (26 if backend == "torchvision" else 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_view_that_is_held_keeps_its_pixels(index: SampleIndex, workers: int) -> None:
    with load(index, LOCAL, views=[LOCAL, GLOBAL], num_workers=workers, prefetch=1) as loader:
        held, expected = [], []
        for epoch in range(3):
            for views, _ in loader:
                held.append(views[epoch % 2])  # the other one is let go
                expected.append(held[-1].clone())
            del views
            gc.collect()
    assert all(map(torch.equal, held, expected))
    held[0].fill_(3)  # writable, and nobody else's
    assert all(map(torch.equal, held[1:], expected[1:]))


def test_peek_shows_all_views(index: SampleIndex) -> None:
    with load(index, GLOBAL, views=[GLOBAL, LOCAL]) as loader:
        views, targets = loader.peek()
        images, labels = next(iter(loader))
        assert torch.equal(targets, labels)
        assert all(map(torch.equal, views, images))
        assert views[1].data_ptr() != images[1].data_ptr()


def test_views_are_where_images_are(index: SampleIndex) -> None:
    own = torch.arange(26) + 100

    def halved(images: list[Tensor], targets: Tensor) -> tuple[list[Tensor], Tensor]:
        return [image / 2 for image in images], targets

    with (
        load(index, GLOBAL, views=[GLOBAL, LOCAL]) as plain,
        load(
            index, GLOBAL, views=[GLOBAL, LOCAL], output="dict", with_index=True, targets=own, transform=halved
        ) as loader,
    ):
        for (views, _), batch in zip(plain, loader, strict=True):
            assert batch.keys() == {"pixel_values", "labels", "index"}
            assert all(torch.equal(view / 2, half) for view, half in zip(views, batch["pixel_values"], strict=True))
            assert torch.equal(batch["labels"], batch["index"] + 100)


def test_targets_are_smoothed_once(index: SampleIndex) -> None:
    recipe = GLOBAL.replace(label_smoothing=0.1, num_classes=7)
    with load(index, recipe) as alone, load(index, recipe, views=3) as loader:
        for (_, targets), (views, labels) in zip(alone, loader, strict=True):
            assert len(views) == 3
            assert torch.equal(targets, labels)


# ---- what a state says, and what is refused


def test_states_and_ranks_tell_views_apart(index: SampleIndex) -> None:
    def state(**options: Any) -> Any:
        with load(index, WEAK, **options) as loader:
            return saved(loader)

    def refused(before: Any, **options: Any) -> str:
        with load(index, WEAK, **options) as loader, pytest.raises(ValueError, match="another run") as caught:
            loader.load_state_dict(before)
        return str(caught.value)

    assert "views" not in state()
    two = state(views=[WEAK, STRONG])
    assert two["views"] == [STRONG.fingerprint]
    assert "view 1: recipe: re_prob: saved 0.5, here 0.25" in refused(two, views=[WEAK, STRONG.replace(re_prob=0.25)])
    assert "share_geometry: saved False, here True" in refused(two, views=[WEAK, STRONG], share_geometry=True)
    assert "views: saved [" in refused(two)
    assert "views: saved None, here [" in refused(state(), views=2)
    assert "views: saved" in refused(state(views=2), views=3)
    with load(index, WEAK, views=[WEAK, STRONG]) as loader:
        loader.load_state_dict(two)  # as it was


@pytest.mark.parametrize(
    ("recipe", "options", "error", "said"),
    [
        (WEAK, {"views": 0}, ValueError, r"views=0: must be a whole number in \[1, 256\]"),
        (WEAK, {"views": "2"}, ValueError, "views='2': must be a whole number"),
        (WEAK, {"views": []}, ValueError, r"views=\[\]: must be 2 to 256 recipes"),
        (WEAK, {"views": [WEAK]}, ValueError, "must be 2 to 256 recipes; for one image a sample leave it out"),
        (WEAK, {"views": [STRONG, STRONG]}, ValueError, r"recipe and views\[0\] differ: .* create_loader\(data, views"),
        (WEAK, {"views": [WEAK, "strong"]}, TypeError, r"views\[1\]='strong': must be a TrainRecipe"),
        (WEAK, {"views": [WEAK, EvalRecipe()]}, TypeError, r"views\[1\].*crop='center', resize_size=256, hflip=0"),
        (EvalRecipe(), {"views": 2}, TypeError, "recipe=EvalRecipe.*must be a TrainRecipe where there are views"),
        (TrainRecipe.strong(), {"views": 2}, ValueError, r"views\[0\] mixes"),
        (WEAK, {"views": [WEAK, WEAK.replace(mixup_alpha=1)]}, ValueError, r"views\[1\] mixes"),
        (WEAK, {"views": [WEAK, WEAK.replace(label_smoothing=0.1)]}, ValueError, r"views\[1\] label_smoothing=0.1"),
        (WEAK, {"views": [WEAK, WEAK.replace(num_aug_repeats=2)]}, ValueError, "num_aug_repeats=2: must be equal"),
        (WEAK, {"share_geometry": True}, ValueError, "share_geometry=True: must be False where there is one view"),
        (WEAK, {"views": 2, "share_geometry": 1}, ValueError, "share_geometry=1: must be True or False"),
        (WEAK, {"views": [WEAK, LOCAL], "share_geometry": True}, ValueError, r"scale=\(0.08, 1.0\), views\[1\] scale="),
        (CROP, {"views": [CROP, CROP.replace(input_size=40)], "share_geometry": True}, ValueError, "input_size=48"),
    ],
    ids=lambda value: None,
)
def test_what_does_not_go_together_is_refused(
    folder: Path, recipe: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        create_loader(folder, recipe, batch_size=8, device="cpu", **options)


def test_presets_for_views() -> None:
    dino = (TrainRecipe.dino_global(), TrainRecipe.dino_global2(), *[TrainRecipe.dino_local()] * 8)
    views = Plan(made_up(), dino[0], batch_size=32, views=dino).batch(0, 0).views
    assert [view.size[0] for view in views] == [224, 224, *[96] * 8]
    area = [view.crop_box[:, 2:].prod(1) / (300 * 400) for view in views]
    assert min(map(np.min, area[:2])) > 0.39
    assert max(map(np.max, area[2:])) < 0.41
    assert len({view.crop_box.tobytes() for view in views}) == 10
    simclr = Plan(made_up(), TrainRecipe.simclr(), batch_size=32, views=2).batch(0, 0).views
    assert {view.size for view in simclr} == {(224, 224)}


def test_the_preview_has_a_row_for_each_view(index: SampleIndex, tmp_path: Path) -> None:
    def height(**options: Any) -> int:
        with load(index, GLOBAL, **options) as loader:
            save_preview(loader, tmp_path / "views.png", count=3)
            return int(Image.open(tmp_path / "views.png").height)

    assert height(views=VIEWS) > 3.5 * height()
