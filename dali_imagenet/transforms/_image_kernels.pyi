from collections.abc import Buffer

def markers(data: Buffer, start: int) -> list[int]: ...
def recolor(pixels: Buffer, matrix: Buffer, out: Buffer) -> None: ...
def normalize(pixels: Buffer, numbers: Buffer, out: Buffer, dtype: int = 0) -> None: ...
def resize(  # on x86-64 alone
    pixels: Buffer,
    size: tuple[int, int],
    factors: tuple[float, float],
    cubic: bool,
    window: tuple[int, int, int, int],
    flips: tuple[bool, bool],
    out: Buffer,
    plain: bool = False,
) -> None: ...
