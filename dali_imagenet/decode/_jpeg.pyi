from collections.abc import Buffer

def decode_region(
    data: Buffer,
    size: tuple[int, int],
    region: tuple[int, int, int, int],
    out: Buffer,
    simd: bool = True,
    pairs: int = 1,
    slot: Buffer = b"",
) -> tuple[int, bytes]: ...
