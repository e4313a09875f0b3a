"""The C code under sanitizers, for some seconds; by hand for hours: `python -m bench native --seconds 36000`."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rich")
from bench.checks import native
from bench.checks.fuzz import mutate_metadata
from bench.checks.inputs import encoded
from dali_imagenet.decode import decode as decode_module

SECONDS = 5


@pytest.mark.skipif(bool(native.missing_fuzzer()), reason=native.missing_fuzzer())
def test_the_decoder_survives_the_fuzzer_and_shows_what_pillow_shows(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    native.write_seeds(corpus)
    seeds = len(list(corpus.iterdir()))
    assert native.fuzz_decoder(corpus, SECONDS, 1, seed=1) == []
    assert len(list(corpus.iterdir())) > seeds
    count, wrong = native.compare_with_pillow(corpus)
    assert wrong == []
    assert decode_module._jpeg is None or count > 100


@pytest.mark.skipif(bool(native.missing_sanitizer()), reason=native.missing_sanitizer())
def test_the_kernels_stay_within_their_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert native.run_kernels(SECONDS, seed=1) == []
    assert "calls" in capsys.readouterr().out


def test_mutated_metadata_change_no_pixel_of_any_decoder() -> None:
    rng, plain = np.random.default_rng(3), encoded()
    expected = decode_module._pillow(plain, (70, 90), (0, 0, 70, 90))
    stumbled = 0
    for _ in range(300):
        data = mutate_metadata(plain, rng)
        for decoder in decode_module.DECODERS:
            if (found := decoder.decode(data, (70, 90), (0, 0, 70, 90), None)) is not None:
                assert np.array_equal(found, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                Image.open(io.BytesIO(data)).convert("RGB")
            except Exception:
                stumbled += 1
    assert stumbled > 4
