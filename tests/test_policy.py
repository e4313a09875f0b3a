"""Policies against the libraries that they are named after: the same outcomes, equally likely.

The references run for real on stand-ins for images that record the final arguments of each pixel operation.
"""

from __future__ import annotations

import math
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import auto_augment as timm_aa
from torchvision.transforms import v2
from torchvision.transforms.v2 import _auto_augment as tv_aa

from dali_imagenet import rng
from dali_imagenet.ops import Op
from dali_imagenet.policy import (
    AugmentPolicy,
    AugMix,
    AugMixPlan,
    AutoAugment,
    OpPlan,
    RandAugment,
    TablePolicy,
    TimmAugMix,
    TimmAutoAugment,
    TimmRandAugment,
    TrivialAugmentWide,
    resolve,
)
from dali_imagenet.policy.base import table_of
from tests.helpers import script

H, W = 24, 40  # every reference runs on this size
DRAWS = 100_000
P_MIN = 1e-4
TORCHVISION = ["randaugment", "randaugment-n3-m30", "trivialaugment", "autoaugment", "autoaugment-cifar10",
               "autoaugment-svhn"]  # fmt: skip
TIMM_RAND = ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.8", "rand-m9-mstd101", "rand-m15-mmax20-inc1-mstd2-n1",
             "rand-m6-n2-p1-tweights", "rand-m8-n3-t3aw-mstd1", "rand-m5-t3a-p0.7"]  # fmt: skip
TIMM_AUTO = ["original", "originalr-mstd0.5", "v0", "v0r-mstd1", "3a", "3a-mstd2"]
MIXES = ["augmix", "augmix-m3-w3", "augmix-m5-w2-d4-a0.5-b1", "augmix-m8-mstd1", "augmix-m10-mstd0-d1"]
NAMES = [*TORCHVISION, *TIMM_RAND, *TIMM_AUTO, *MIXES, "rand-m5-w0", "3-augment"]

Applied = tuple[tuple[str, float, int], ...]  # (operation, argument, filter), in order


def drawn(policy: AugmentPolicy, n: int, seed: int = 0) -> OpPlan | AugMixPlan:
    return policy.draw(np.random.default_rng(seed).random((n, policy.num_uniforms)), (H, W))


def named(name: str) -> AugmentPolicy:
    policy = resolve(name)
    assert policy is not None
    return policy


NOTHING = "IDENTITY"
STILL = "PIL_AFFINE"


def key(op: str, arg: float, aux: int) -> tuple[str, float, int] | None:
    """What an image shows of an operation: no trace of those that do nothing, one name for moves by nothing."""
    if op == NOTHING or (op == "PIL_POSTERIZE" and arg >= 8):
        return None
    if op in ("PIL_SHEAR_X", "PIL_SHEAR_Y", "PIL_TRANSLATE_X", "PIL_TRANSLATE_Y") and arg == 0:
        op = STILL
    return op, math.floor(arg * 1e4 + 0.5) / 1e4, aux


def applied(plan: OpPlan | AugMixPlan) -> list[Applied]:
    """The visible operations of each row of a plan: ``key`` of them, for arrays."""
    known = {int(o): o.name for o in Op}
    names = np.array([known.get(i, NOTHING) for i in range(max(known) + 1)], dtype=object)[plan.op]
    names[(plan.op == Op.PIL_POSTERIZE) & (plan.arg >= 8)] = NOTHING
    names[(plan.op >= Op.PIL_SHEAR_X) & (plan.op <= Op.PIL_TRANSLATE_Y) & (plan.arg == 0)] = STILL
    args = np.floor(plan.arg.astype(np.float64) * 1e4 + 0.5) / 1e4
    rows = zip(names.tolist(), args.tolist(), plan.aux.tolist(), strict=True)
    return [tuple(step for step in zip(*row, strict=True) if step[0] != NOTHING) for row in rows]


# ---------------------------------------------------------------------------------------------------- references


@pytest.fixture
def tv_log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace torchvision's functional by recorders; entries are (operation, argument, filter, image it was given)."""
    log: list[Any] = []

    def record(op: str, argument: Callable[..., float], move: bool = False) -> Callable[..., torch.Tensor]:
        def run(image: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            aux = 0
            if move:  # a name, or in torchvision 0.24 the member of an enumeration
                aux = {"nearest": 0, "bilinear": 2}[getattr(kwargs["interpolation"], "value", kwargs["interpolation"])]
            log.append((key(op, argument(kwargs), aux), image))
            return image.clone()

        return run

    def affine(image: torch.Tensor, **kw: Any) -> torch.Tensor:
        x, y = kw["shear"]
        right, down = kw["translate"]
        assert (kw["angle"], kw["scale"]) == (0.0, 1.0)
        if kw.get("center") == [0, 0]:
            # A magnitude is never 0 in the bins under test, so the angle tells which shear it is.
            op, arg = ("SHEAR_X", x) if x else ("SHEAR_Y", y)
            return record(op, lambda _: math.tan(math.radians(arg)), True)(image, **kw)
        op, arg = ("TRANSLATE_X", right) if right else ("TRANSLATE_Y", down)
        return record(op, lambda _: arg, True)(image, **kw)

    fake = SimpleNamespace(
        affine=affine,
        rotate=record("ROTATE", lambda kw: kw["angle"], True),
        adjust_brightness=record("BRIGHTNESS", lambda kw: kw["brightness_factor"]),
        adjust_saturation=record("COLOR", lambda kw: kw["saturation_factor"]),
        adjust_contrast=record("CONTRAST", lambda kw: kw["contrast_factor"]),
        adjust_sharpness=record("SHARPNESS", lambda kw: kw["sharpness_factor"]),
        posterize=record("POSTERIZE", lambda kw: kw["bits"]),
        solarize=record("SOLARIZE", lambda kw: kw["threshold"]),
        autocontrast=record("AUTO_CONTRAST", lambda kw: 0),
        equalize=record("EQUALIZE", lambda kw: 0),
        invert=record("INVERT", lambda kw: 0),
    )
    monkeypatch.setattr(tv_aa, "F", fake)
    return log


def tv_transform(name: str) -> Any:
    policy: Any = named(name)
    if isinstance(policy, RandAugment):
        return v2.RandAugment(policy.num_ops, policy.magnitude, policy.num_magnitude_bins)
    if isinstance(policy, TrivialAugmentWide):
        return v2.TrivialAugmentWide(policy.num_magnitude_bins)
    return v2.AutoAugment(v2.AutoAugmentPolicy(policy.policy))


def zero_move(row: Applied) -> Applied:
    """The recorder cannot tell the moves by nothing apart (TrivialAugment's first bin): one name for them."""
    moves = ("SHEAR_X", "SHEAR_Y", "TRANSLATE_X", "TRANSLATE_Y")
    return tuple(("STILL", 0.0, x) if o in moves and a == 0 else (o, a, x) for o, a, x in row)


class Recorder:
    """Stands in for a PIL image; remembers what was done to it. ``ends`` collects what was done to each array read."""

    size = (W, H)
    mode = "RGB"
    ends: list[Applied]

    def __init__(self, done: Applied = (), ends: list[Applied] | None = None) -> None:
        self.done = done
        self.ends = [] if ends is None else ends

    def then(self, op: str, arg: float, aux: int = 0) -> Recorder:
        step = key(op, arg, aux)
        return Recorder((*self.done, step) if step else self.done, self.ends)

    def transform(self, size: Any, method: Any, c: Any, fillcolor: Any, resample: int) -> Recorder:
        assert size == self.size
        assert fillcolor == (124, 116, 104)
        found = [("PIL_SHEAR_X", c[1]), ("PIL_TRANSLATE_X", c[2]), ("PIL_SHEAR_Y", c[3]), ("PIL_TRANSLATE_Y", c[5])]
        moved = [(op, arg) for op, arg in found if arg] or [("PIL_SHEAR_X", 0.0)]
        assert len(moved) == 1
        return self.then(*moved[0], int(resample))

    def rotate(self, degrees: float, fillcolor: Any, resample: int) -> Recorder:
        assert fillcolor == (124, 116, 104)
        return self.then("PIL_ROTATE", degrees, int(resample))

    def filter(self, blur: Any) -> Recorder:
        return self.then("PIL_GAUSSIAN_BLUR", blur.radius)

    def point(self, lut: list[int]) -> Recorder:
        assert lut[128] == 128
        return self.then("PIL_SOLARIZE_ADD", lut[0])

    def copy(self) -> Recorder:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if self.done:
            self.ends.append(self.done)
        return np.zeros((1, 1, 3), dtype)


@pytest.fixture
def timm_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the PIL functions that timm calls record on a ``Recorder``."""

    def enhance(op: str) -> Callable[[Recorder], Any]:
        return lambda image: SimpleNamespace(enhance=lambda factor: image.then(op, factor))

    operations = SimpleNamespace(
        autocontrast=lambda image: image.then("PIL_AUTO_CONTRAST", 0),
        equalize=lambda image: image.then("PIL_EQUALIZE", 0),
        invert=lambda image: image.then("PIL_INVERT", 0),
        solarize=lambda image, threshold: image.then("PIL_SOLARIZE", threshold),
        posterize=lambda image, bits: image.then("PIL_POSTERIZE", max(0, bits)),
    )
    enhancers = {name: enhance(f"PIL_{name.upper()}") for name in ("Contrast", "Color", "Brightness", "Sharpness")}
    monkeypatch.setattr(timm_aa, "ImageOps", operations)
    monkeypatch.setattr(timm_aa, "ImageEnhance", SimpleNamespace(**enhancers))
    random.seed(1)
    np.random.seed(1)


def timm_params(**more: Any) -> dict[str, Any]:
    """What create_transform passes for this size and ImageNet's mean."""
    return {"translate_const": int(min(H, W) * 0.45), "img_mean": (124, 116, 104), **more}


def timm_transform(name: str, **more: Any) -> Any:
    if name.startswith("rand"):
        return timm_aa.rand_augment_transform(name, timm_params(**more))
    if name.startswith("augmix"):
        return timm_aa.augment_and_mix_transform(name, timm_params(translate_pct=0.3, **more))
    return timm_aa.auto_augment_transform(name, timm_params(**more))


# ---------------------------------------------------------------------------------------------------- comparisons


def same_counts(ours: Iterable[Any], reference: Iterable[Any]) -> list[float]:
    """The p value of a two-sample chi-square test over categories, rare ones together; none for a single category."""
    a, b = Counter(ours), Counter(reference)
    assert not [k for k in b if k not in a and b[k] > 20], "the reference has outcomes that we never draw"
    n, m = a.total(), b.total()
    common = [k for k in {*a, *b} if (a[k] + b[k]) * min(n, m) / (n + m) >= 5]
    columns = [(a[k], b[k]) for k in common]
    rest = n - sum(x for x, _ in columns), m - sum(y for _, y in columns)
    columns += [rest] if sum(rest) else []
    return [float(stats.chi2_contingency(columns).pvalue)] if len(columns) > 1 else []


def assert_same_distribution(ours: list[Applied], reference: list[Applied], joint: bool = False) -> None:
    """Compare the operations and their order, the filters, and each operation's arguments; ``joint``: all at once too.

    The least p value counts by the number of tests (Bonferroni), so that a policy fails by chance once in 1 / P_MIN.
    """
    p = same_counts(*([tuple(s[0] for s in row) for row in side] for side in (ours, reference)))
    p += same_counts(*([(s[0], s[2]) for row in side for s in row] for side in (ours, reference)))
    if joint:
        p += same_counts(ours, reference)
    args: list[dict[str, list[float]]] = [{}, {}]
    for side, rows in zip(args, (ours, reference), strict=True):
        for op, arg, _ in (step for row in rows for step in row):
            side.setdefault(op, []).append(arg)
    a, b = args
    assert {*a} == {*b}
    for op in a:
        if len({*a[op], *b[op]}) < 100:  # a table of values: the same ones, as often
            p += same_counts(a[op], b[op])
        else:
            p.append(float(stats.ks_2samp(a[op], b[op]).pvalue))
    assert min(p) * len(p) > P_MIN


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_distribution(name: str, tv_log: list[Any]) -> None:
    plan = drawn(named(name), DRAWS)
    transform, image = tv_transform(name), torch.zeros(3, H, W, dtype=torch.uint8)
    torch.manual_seed(1)
    reference = []
    for _ in range(8000):
        tv_log.clear()
        transform(image)
        reference.append(zero_move(tuple(k for k, _ in tv_log)))
    ours = [zero_move(row) for row in applied(plan)]
    assert_same_distribution(ours, reference, joint=name.startswith("autoaugment"))  # whose table is small


@pytest.mark.parametrize("name", [*TIMM_RAND, *TIMM_AUTO])
def test_timm_distribution(name: str, timm_ops: None) -> None:
    plan = drawn(named(name), DRAWS)
    transform = timm_transform(name)
    reference = [transform(Recorder()).done for _ in range(8000)]
    assert_same_distribution(applied(plan), reference)


def test_timm_named_filter_is_used(timm_ops: None) -> None:
    policy = resolve("rand-m9-inc1", interpolation="bicubic")
    assert policy is not None
    transform = timm_transform("rand-m9-inc1", interpolation=3)
    assert_same_distribution(applied(drawn(policy, DRAWS)), [transform(Recorder()).done for _ in range(3000)])
    assert resolve("v0", interpolation="random") == resolve("v0")


def test_w0_weights() -> None:
    """timm 0.6's ``w0``, which current timm no longer has: weights proportional to these, none put back."""
    weights = {"ROTATE": 0.3, "SHEAR_X": 0.2, "SHEAR_Y": 0.2, "TRANSLATE_X": 0.1, "TRANSLATE_Y": 0.1, "COLOR": 0.025,
               "SHARPNESS": 0.025, "AUTO_CONTRAST": 0.025, "SOLARIZE": 0.005, "SOLARIZE_ADD": 0.005,
               "CONTRAST": 0.005, "BRIGHTNESS": 0.005, "EQUALIZE": 0.005}  # fmt: skip
    rows = applied(drawn(named("rand-m5-p1-w0"), DRAWS))
    counts = Counter(row[0][0].removeprefix("PIL_") for row in rows)
    assert {*counts} == {*weights}
    expected = np.array([*weights.values()]) / sum(weights.values()) * DRAWS
    assert stats.chisquare([counts[k] for k in weights], expected).pvalue > P_MIN
    assert all(a[0] != b[0] for a, b in rows)


# ---------------------------------------------------------------------------------------------------- exact outcomes


def outcomes(policy: AugmentPolicy, size: tuple[int, int]) -> Counter[tuple[str, float]]:
    """Every (operation, argument) of a policy with one entry and no noise, each as often as it has equal shares."""
    n = 14 * 2 * getattr(policy, "num_magnitude_bins", 31) * 9
    u = np.full((n, policy.num_uniforms), 0.999)
    u[:, 0] = (np.arange(n) + 0.5) / n
    plan = policy.draw(u, size)
    names = {int(o): o.name for o in Op}
    return Counter((names[o], a) for o, a in zip(plan.op[:, 0].tolist(), plan.arg[:, 0].tolist(), strict=True))


def tv_outcomes(
    space: dict[str, Any], bins: int, picked: Iterable[int], size: tuple[int, int]
) -> dict[tuple[str, float], float]:
    """The (operation, argument) of torchvision's space with their probabilities."""
    picked, found = list(picked), dict[tuple[str, float], float]()
    for name, (magnitudes_of, signed) in space.items():
        op = "".join("_" + c if c.isupper() else c.upper() for c in name)[1:]
        magnitudes = magnitudes_of(bins, *size)
        for i in picked:
            for sign in (1, -1) if signed else (1,):
                m = 0.0 if magnitudes is None else sign * float(magnitudes[i])
                if op in ("TRANSLATE_X", "TRANSLATE_Y", "POSTERIZE"):
                    m = int(m)
                elif op in ("BRIGHTNESS", "COLOR", "CONTRAST", "SHARPNESS"):
                    m = 1.0 + m
                elif op == "SOLARIZE":
                    m = 255.0 * m
                outcome = op, float(np.float32(m)) + 0.0
                found[outcome] = found.get(outcome, 0.0) + 1 / len(space) / len(picked) / (2 if signed else 1)
    return found


@pytest.mark.parametrize("size", [(224, 224), (H, W), (33, 129)])
@pytest.mark.parametrize("bins", [31, 10, 2])
def test_torchvision_outcomes_are_exact(size: tuple[int, int], bins: int) -> None:
    cases: list[tuple[AugmentPolicy, dict[str, Any], Iterable[int]]] = [
        (RandAugment(1, m, bins), v2.RandAugment._AUGMENTATION_SPACE, [m]) for m in range(bins)
    ]
    cases.append((TrivialAugmentWide(bins), v2.TrivialAugmentWide._AUGMENTATION_SPACE, range(bins)))
    for policy, space, picked in cases:
        ours, reference = outcomes(policy, size), tv_outcomes(space, bins, picked, size)
        assert {*ours} == {*reference}
        total = ours.total()
        assert all(abs(ours[k] / total - p) < 1e-9 for k, p in reference.items())


@pytest.mark.parametrize("which", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_tables_are_torchvisions(which: str) -> None:
    reference = v2.AutoAugment(v2.AutoAugmentPolicy(which))
    space, policy = reference._AUGMENTATION_SPACE, AutoAugment(which)
    table = table_of(policy, (H, W))
    assert table.subs.shape == (25, 2)
    for sub, entries in zip(reference._policies, table.subs, strict=True):
        for (name, probability, level), entry in zip(sub, entries, strict=True):
            first, count = table.first[entry], table.count[entry]
            rows = [(Op(o).name, a) for o, a in zip(table.op[first : first + count], table.fixed[first:], strict=False)]
            if probability == 0:
                assert rows == [("IDENTITY", 0.0)]
                continue
            assert count / table.scale[entry] == pytest.approx(probability)
            expected = tv_outcomes({name: space[name]}, 10, [level or 0], (H, W))
            assert {(o, float(np.float32(a))) for o, a in rows} == {*expected}


@pytest.mark.parametrize("magnitude", range(21))
@pytest.mark.parametrize("increasing", [0, 1])
def test_timm_outcomes_are_exact(magnitude: int, increasing: int, timm_ops: None) -> None:
    """For every magnitude, up to timm's usual 10 and beyond (mmax), each operation has timm's arguments, filters."""
    name = f"rand-m{magnitude}-mmax20-n1-p1-inc{increasing}"
    transform = timm_transform(name)
    reference = {op(Recorder()).done for op in transform.ops for _ in range(60)}
    policy = named(name)
    u = np.tile((np.arange(600)[:, None] + 0.5) / 600, (1, policy.num_uniforms))
    assert {*applied(policy.draw(u, (H, W)))} == reference


def test_posterize_never_asks_for_impossible_bits() -> None:
    plan = drawn(named("rand-m20-mmax40-mstd8-inc1-p1"), DRAWS)
    bits = plan.arg[plan.op == Op.PIL_POSTERIZE]
    assert {*bits.tolist()} == {0.0, 1.0, 2.0, 3.0, 4.0}
    plan = drawn(named("rand-m20-mmax40-mstd8-p1"), DRAWS)
    assert {*plan.arg[plan.op == Op.PIL_POSTERIZE].tolist()} == set(map(float, range(9)))


def test_three_augment_is_deit_iii() -> None:
    """One of grayscale, solarize at PIL's default 128, blur of radius uniform in 0.1..2 (DeiT's augment.py)."""
    plan = drawn(named("3-augment"), DRAWS)
    op, arg = plan.op[:, 0], plan.arg[:, 0]
    assert plan.op.shape == (DRAWS, 1)
    counts = [np.count_nonzero(op == o) for o in (Op.PIL_COLOR, Op.PIL_SOLARIZE, Op.PIL_GAUSSIAN_BLUR)]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts).pvalue > P_MIN
    assert {*arg[op == Op.PIL_COLOR].tolist()} == {0.0}
    assert {*arg[op == Op.PIL_SOLARIZE].tolist()} == {128.0}
    assert stats.kstest(arg[op == Op.PIL_GAUSSIAN_BLUR], stats.uniform(0.1, 1.9).cdf).pvalue > P_MIN


# ---------------------------------------------------------------------------------------------------- AugMix


def chains_of(plan: OpPlan | AugMixPlan) -> list[Applied]:
    chains = [OpPlan(plan.op[:, i], plan.arg[:, i], plan.aux[:, i]) for i in range(plan.op.shape[1])]
    return [row for chain in chains for row in applied(chain)]


@pytest.mark.parametrize("all_ops", [True, False])
def test_augmix_chains_are_torchvisions(all_ops: bool, tv_log: list[Any]) -> None:
    plan = drawn(AugMix(severity=4, all_ops=all_ops), DRAWS // 3)
    image = torch.zeros(3, H, W, dtype=torch.uint8)
    transform = v2.AugMix(severity=4, all_ops=all_ops)
    torch.manual_seed(2)
    for _ in range(2500):
        transform(image)
    reference: list[Applied] = []
    for step, before in tv_log:  # a chain starts from the image itself
        started = before.data_ptr() == image.data_ptr()
        reference = [*reference, (step,)] if started else reference
        if not started:
            reference[-1] = (*reference[-1], step)
    assert_same_distribution([zero_move(r) for r in chains_of(plan)], [zero_move(r) for r in reference])
    assert plan.op.shape == (DRAWS // 3, 3, 3)


@pytest.mark.parametrize("name", MIXES[1:])
def test_augmix_chains_are_timms(name: str, timm_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def blend(a: Any, b: Any, alpha: float) -> Any:
        if isinstance(b, Recorder):
            np.asarray(b)  # blended mode never reads arrays
        return a

    monkeypatch.setattr("timm.data.auto_augment.Image.blend", blend)
    plan = drawn(named(name), DRAWS // 6)  # of two or three chains and up to four operations each
    image, transform = Recorder(), timm_transform(name)
    for _ in range(1500):
        transform(image)
    assert_same_distribution([row for row in chains_of(plan) if row], image.ends)


def beta_p_value(x: Any, beta: Any) -> float:
    """Of counts between fixed edges: float32 has ties at 0 and 1, which Kolmogorov's test does not allow."""
    edges = [1e-12, 1e-6, 1e-3, 0.01, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.75, 0.9, 0.99, 1 - 1e-5]
    edges = [-1.0, *(e for e in edges if 1e-3 < beta.cdf(e) < 1 - 1e-3), 2.0]
    counts, _ = np.histogram(x, edges)
    return float(stats.chisquare(counts, np.diff(beta.cdf(edges)) * len(x)).pvalue)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0, 2.0, 30.0])
def test_augmix_weights_are_dirichlet_and_beta(alpha: float) -> None:
    for policy in (AugMix(alpha=alpha), TimmAugMix(alpha=alpha)):
        plan = drawn(policy, DRAWS, seed=3)
        assert isinstance(plan, AugMixPlan)
        np.testing.assert_allclose(plan.weights.sum(axis=1), 1.0, rtol=1e-6)
        shares = [(plan.m, 1), *((w, 2) for w in plan.weights.T)]  # Beta(a, a); of three, each is Beta(a, 2 a)
        p = [beta_p_value(x.astype(np.float64), stats.beta(alpha, n * alpha)) for x, n in shares]
        assert min(p) * len(p) > P_MIN
        first, second = plan.weights[:, 0], plan.weights[:, 1]
        assert np.corrcoef(first, second)[0, 1] == pytest.approx(-0.5, abs=0.02)
        assert np.corrcoef(first, plan.m)[0, 1] == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 3.0, 1000.0])
def test_gamma_quantiles(alpha: float) -> None:
    u = np.concatenate([np.linspace(1e-4, 1 - 1e-4, 999), [1e-9, 1 - 1e-9, 1 - 2.0**-53]])
    expected = stats.gamma(alpha).ppf(u)
    keep = expected > 1e-300
    np.testing.assert_allclose(rng.log_gammas(u, alpha)[keep], np.log(expected[keep]), atol=2e-5, rtol=1e-6)


def test_blended_weights_are_timms() -> None:
    u = np.random.default_rng(0).random((50, TimmAugMix(width=4).num_uniforms))
    plain, blended = TimmAugMix(width=4).draw(u, (H, W)), TimmAugMix(width=4, blended=True).draw(u, (H, W))
    reference: Any = timm_transform("augmix-w4-b1")
    for weights, m, ours in zip(plain.weights, plain.m, blended.weights, strict=True):
        np.testing.assert_allclose(ours, reference._calc_blended_weights(weights, m), rtol=1e-6)
    own = drawn(AugMix(), 1)
    assert isinstance(own, AugMixPlan)
    assert (plain.mode, blended.mode, own.mode) == ("timm", "blend", "torchvision")


def test_blended_weights_where_one_chain_takes_all() -> None:
    """A small alpha draws shares and weights that round to 1: nothing is left for the chains before."""
    plain, blended = (drawn(TimmAugMix(alpha=0.01, blended=b), DRAWS, seed=1) for b in (False, True))
    assert isinstance(plain, AugMixPlan)
    assert isinstance(blended, AugMixPlan)
    assert (blended.weights >= 0).all()
    assert (blended.weights <= 1).all()
    assert (blended.weights[:, -1] == 1).any()
    share = 1 - (1 - blended.weights.astype(np.float64)).prod(1)  # of the image in what comes out
    np.testing.assert_allclose(share, plain.m, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- a user's table


def test_table_policy_draws_what_it_says() -> None:
    policy = TablePolicy(
        sub_policies=[
            [(Op.ROTATE, 0.7, (5, 30), True), (Op.EQUALIZE, 0.5)],
            [(Op.COLOR, 1.0, 1.4, True)],
            [
                (Op.TRANSLATE_X, 1.0, (-3, 2)),
                (Op.PIL_SHEAR_X, 1.0, 0.2),
                (Op.GAUSSIAN_BLUR, 1.0, (0.1, 2.0), False, 23),
            ],
            [],
        ],
        weights=[1, 2, 4, 1],
    )
    plan = drawn(policy, DRAWS)
    n = DRAWS / 8
    assert plan.op.shape == (DRAWS, 3)
    op, arg = plan.op, plan.arg
    rotated, coloured, moved = op[:, 0] == Op.ROTATE, op[:, 0] == Op.COLOR, op[:, 0] == Op.TRANSLATE_X
    empty = (op == Op.IDENTITY).all(axis=1)
    expected = [0.7 * n, 2 * n, 4 * n, 0.3 * 0.5 * n + n]
    counts = [rotated.sum(), coloured.sum(), moved.sum(), empty.sum()]
    rest = DRAWS - sum(counts), DRAWS - sum(expected)
    assert stats.chisquare([*counts, rest[0]], [*expected, rest[1]]).pvalue > P_MIN
    assert stats.kstest(np.abs(arg[rotated, 0]), stats.uniform(5, 25).cdf).pvalue > P_MIN
    assert stats.binomtest(int((arg[rotated, 0] < 0).sum()), int(rotated.sum())).pvalue > P_MIN
    assert stats.binomtest(int((op[rotated, 1] == Op.EQUALIZE).sum()), int(rotated.sum())).pvalue > P_MIN
    assert {*arg[coloured, 0].tolist()} == {float(np.float32(0.6)), float(np.float32(1.4))}
    whole = Counter(arg[moved, 0].tolist())
    assert {*whole} == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0}
    assert stats.chisquare([*whole.values()]).pvalue > P_MIN
    assert {*arg[moved, 1].tolist()} == {float(np.float32(0.2))}
    assert stats.kstest(arg[moved, 2], stats.uniform(0.1, 1.9).cdf).pvalue > P_MIN
    assert {*plan.aux[moved].ravel().tolist()} == {0, 3, 23}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ((Op.ROTATE, 1.5, 10), "probability"),
        ((Op.POSTERIZE, 1.0, 9), r"in \[0, 8\]"),
        ((Op.POSTERIZE, 1.0, 2.5), "whole"),
        ((Op.ROTATE, 1.0, (30, 10)), "low <= high"),
        ((Op.ROTATE, 1.0, math.nan), "low <= high"),
        ((Op.EQUALIZE, 1.0, 0, True), "sign=True: must be False"),
        ((Op.COLOR, 1.0, 2.5, True), "stays in"),
        ((Op.HUE, 1.0, 0.7), "stays in"),
        ((Op.GAUSSIAN_BLUR, 1.0, 1.0), "odd"),
        ((Op.PIL_ROTATE, 1.0, 1.0, False, 7), "bicubic"),
        ((99, 1.0), "99"),
    ],
)
def test_table_policy_refuses(step: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TablePolicy(sub_policies=[[step]])


def test_table_policy_refuses_bad_weights() -> None:
    for weights in ([1.0], [-1.0, 1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="weights"):
            TablePolicy(sub_policies=[[(Op.INVERT,)], [(Op.EQUALIZE,)]], weights=weights)
    with pytest.raises(ValueError, match="empty"):
        TablePolicy(sub_policies=[[]])


# ---------------------------------------------------------------------------------------------------- names


def test_names() -> None:
    timm: Any = {"fill": (124, 116, 104)}
    assert resolve(None) is None
    assert resolve("") is None
    assert resolve("randaugment") == RandAugment(2, 9, 31)
    assert resolve("randaugment-n3-m5-bins11", fill=(1, 2, 3)) == RandAugment(3, 5, 11, fill=(1, 2, 3))
    assert resolve("trivialaugment-bins16") == TrivialAugmentWide(16)
    assert resolve("autoaugment") == resolve("autoaugment-imagenet") == AutoAugment("imagenet")
    assert resolve("autoaugment-svhn") == AutoAugment("svhn")
    assert resolve("augmix") == AugMix(3, 3, -1, 1.0)
    assert resolve("rand-m9-mstd0.5-inc1") == TimmRandAugment(magnitude=9, magnitude_std=0.5, increasing=True, **timm)
    assert resolve("rand-n3-p0.7-mmax12-mstd101-tweights") == TimmRandAugment(
        num_layers=3, prob=0.7, magnitude_max=12, magnitude_std=math.inf, transforms="weights", **timm
    )
    assert resolve("augmix-m5-w4-d2-b1") == TimmAugMix(magnitude=5, width=4, depth=2, blended=True, **timm)
    assert resolve("originalr-mstd0.5") == TimmAutoAugment(policy="originalr", magnitude_std=0.5, **timm)
    assert resolve("3-augment", mean=(0.5, 0.5, 0.5)) == TimmAutoAugment(policy="3a", fill=(128, 128, 128))
    assert resolve("v0", image_size=64, fill=(0, 0, 0)) == TimmAutoAugment(policy="v0", fill=(0, 0, 0))
    own = RandAugment(fill=(9, 9, 9))
    assert resolve(own, fill=(0, 0, 0)) is own


@pytest.mark.parametrize(
    "bad",
    ["randaug", "randaugment-m31", "randaugment-x3", "randaugment-m", "randaugment-n0", "trivialaugment-bins1",
     "autoaugment-mnist", "rand-m9-q3", "rand-m9.5", "rand-m9-m8", "rand-p1.5", "rand-inc2", "rand-tfoo", "rand-w1",
     "rand-w0-inc1", "rand-n5-tweights", "rand-mmax0", "rand-mstd-1", "rand-mstdnan", "original-m9", "v1",
     "3-augment-m3", "augmix-d-1", "augmix-w0", "augmix-a0", "augmix-z1", "RandAugment", 7],
)  # fmt: skip
def test_bad_names_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"auto_augment=.*must be|must be"):
        resolve(bad)


def test_bad_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RandAugment: magnitude=31: must be a whole number in \[0, 30\]"):
        RandAugment(magnitude=31)
    with pytest.raises(ValueError, match="fill"):
        RandAugment(fill=(0, 0, 256))
    with pytest.raises(ValueError, match="nearest"):
        RandAugment(interpolation="bicubic")
    with pytest.raises(ValueError, match="num_ops=True"):
        RandAugment(num_ops=True)


# ---------------------------------------------------------------------------------------------------- every policy


EVERY = [*map(named, NAMES), TablePolicy(sub_policies=[[(Op.ROTATE, 0.7, (0, 30), True)]], weights=[1])]


@pytest.mark.parametrize("policy", EVERY, ids=[*NAMES, "table"])
def test_draws_are_a_function_of_each_row(policy: AugmentPolicy) -> None:
    u = np.random.default_rng(5).random((7, policy.num_uniforms))
    plan, again = policy.draw(u, (H, W)), policy.draw(u[3:4], (H, W))
    shape: tuple[int, ...] = (7, policy.num_slots)
    if isinstance(plan, AugMixPlan):
        assert isinstance(again, AugMixPlan)
        shape = (7, plan.op.shape[1], policy.num_slots)
        assert str(plan.weights.dtype) == str(plan.m.dtype) == "float32"
        np.testing.assert_array_equal(plan.weights[3], again.weights[0])
        np.testing.assert_array_equal(plan.m[3], again.m[0])
    assert plan.op.shape == plan.arg.shape == plan.aux.shape == shape
    assert [str(x.dtype) for x in (plan.op, plan.arg, plan.aux)] == ["int16", "float32", "int16"]
    for a, b in ((plan.op, again.op), (plan.arg, again.arg), (plan.aux, again.aux)):
        np.testing.assert_array_equal(a[3], b[0])
    for edge in (0.0, 1.0 - 2.0**-53):  # the ends of [0,1) are draws like others
        ends = policy.draw(np.full_like(u, edge), (H, W))
        assert all(np.isfinite(x).all() for x in ends[:5] if isinstance(x, np.ndarray))
        assert {*np.unique(ends.op).tolist()} <= {int(o) for o in Op}
    assert len(policy.draw(u[:0], (H, W)).op) == 0
    with pytest.raises(ValueError, match="shape"):
        policy.draw(u[:, 1:], (H, W))


@pytest.mark.parametrize("policy", EVERY, ids=[*NAMES, "table"])
def test_policies_are_values(policy: AugmentPolicy) -> None:
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    assert hash(copy) == hash(policy)
    assert repr(copy) == repr(policy)
    assert "0x" not in repr(policy)
    assert len(policy.fill) == 3


def test_module_needs_only_numpy() -> None:
    code = """if True:
        import sys
        sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "PIL", "nvidia"]))
        import numpy
        from dali_imagenet.policy import resolve
        policy = resolve("rand-m9-mstd0.5-inc1")
        policy.draw(numpy.zeros((1, policy.num_uniforms)), (8, 8))
    """
    done = script(code)
    assert done.returncode == 0, done.stderr
