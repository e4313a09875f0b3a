"""Tar archives: plain ones, tars of tars as ImageNet is downloaded, and WebDataset's shards. Headers only are read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dali_imagenet.data.container import Reader
from dali_imagenet.data.scan import Found, ahead
from dali_imagenet.escape import escaped
from dali_imagenet.formats import IMG_EXTENSIONS

logger = logging.getLogger("dali_imagenet")

_BLOCK = 512
_FILES = (b"0", b"\0", b"7")
_LINK, _LONG_NAME, _PAX, _PAX_GLOBAL, _SPARSE = b"1", b"L", b"x", b"g", b"S"
_LONGEST = 1 << 20  # bytes of a name, of a pax header, or of a label
# What an archive may be packed with; no member of these can be read alone.
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: bytes that are not valid text are surrogate-escaped.
        offset: of its contents in the container.
        size: bytes.
        problem: why it cannot be read, "" for nothing.
    """

    name: str
    offset: int
    size: int
    problem: str = ""


def refuse_packed(name: str, head: bytes, what: str) -> None:
    """ValueError for a packed archive."""
    for magic, kind in _PACKED.items():
        if head.startswith(magic):
            raise ValueError(
                f"{escaped(name)} is compressed ({kind}): no image in it can be read alone; unpack it once ({what})"
            )


def tar_members(
    read: Callable[[int, int], bytes], name: str, start: int, end: int, cut: list[str] | None = None
) -> Iterator[Member]:
    """The files of a tar archive that lies at `start`..`end` of a container, in order.

    ustar, GNU and pax names and sizes are understood; hard links are what they lead to.

    Args:
        cut: is given the name where the archive has no end.

    Raises:
        ValueError: it is no tar archive, or damaged.
    """
    at, zeros, long_name, pax = start, 0, None, dict[str, bytes]()
    seen: dict[str, Member] = {}
    head = read(start, max(0, min(_BLOCK, end - start)))
    refuse_packed(name, head, "gunzip, or tar without z")
    if len(head) < _BLOCK:
        raise ValueError(f"{escaped(name)} is no tar archive: it has {len(head)} bytes")
    while at + _BLOCK <= end:
        header = read(at, _BLOCK)
        if len(header) < _BLOCK:
            break
        if not header[0] and not any(header):
            zeros += 1
            at += _BLOCK
            if zeros == 2:
                return
            continue
        zeros = 0
        stored = _number(header[148:156])
        # as the standard has it, or as some old programs did, with signed bytes
        if stored != (total := sum(header) - sum(header[148:156]) + 256) and stored != total - 256 * sum(
            byte > 127 for byte in header[:148] + header[156:]
        ):
            if at == start:
                raise ValueError(f"{escaped(name)} is no tar archive: it starts with {header[:16]!r}")
            raise ValueError(f"{escaped(name)} is damaged: no tar header at byte {at}")
        kind, data = header[156:157], at + _BLOCK
        size = _number(header[124:136])
        if size is None or size < 0:
            raise ValueError(f"{escaped(name)} is damaged: a size that is no number at byte {at}")
        if kind in (_LONG_NAME, _PAX, _PAX_GLOBAL, b"K"):
            if size > _LONGEST:
                raise ValueError(f"{escaped(name)} is damaged: a name of {size} bytes at byte {at}")
            body = read(data, size)
            if kind == _LONG_NAME:
                long_name = body.split(b"\0", 1)[0]
            elif kind == _PAX:
                pax |= _pax(body)
        else:
            if "size" in pax:
                size = int(pax["size"]) if pax["size"].isdigit() else size
            member = os.fsdecode(long_name or pax.get("path") or _name(header)).removeprefix("./").lstrip("/")
            if ".." in member.split("/"):
                raise ValueError(f"{escaped(name)} holds {escaped(member)}, a name that leads out of it")
            if kind in _FILES and not member.endswith("/"):
                problem = "a sparse file" if any(key.startswith("GNU.sparse") for key in pax) else ""
                seen[member] = Member(member, data, size, problem)
                yield seen[member]
            elif kind == _LINK:
                target = os.fsdecode(pax.get("linkpath") or header[157:257].split(b"\0", 1)[0]).removeprefix("./")
                there = seen.get(target)
                yield there._replace(name=member) if there else Member(member, data, 0, f"a link to {target!r}")
            elif kind in (b"2", _SPARSE):
                yield Member(member, data, 0, "a symbolic link" if kind == b"2" else "a sparse file")
            if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                size = 0
            long_name, pax = None, {}
        at = data + -(-size // _BLOCK) * _BLOCK
    if cut is not None:
        cut.append(name)
        logger.warning("%s has no end: it was probably cut short", escaped(name))


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's binary numbers."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0", 1)[0], header[345:500].split(b"\0", 1)[0]
    posix = header[257:263] == b"ustar\0"  # GNU's own format has other things there
    return prefix + b"/" + name if posix and prefix else name


def _pax(body: bytes) -> dict[str, bytes]:
    """The records of a pax header: length, space, key=value, newline."""
    found, at = {}, 0
    while at < len(body):
        length, space, _ = body[at : at + 20].partition(b" ")
        if not space or not length.isdigit() or not int(length):
            break
        key, _, value = body[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value
        at += int(length)
    return found


def is_image(name: str) -> bool:
    """Whether a member is an image, by its name."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(IMG_EXTENSIONS) and not base.startswith(("._", "."))


class Tar:
    """A `Kind`: tar archives, in which tars may lie.

    What it remembers: under "labels" the text of each image's `.cls` or the `label_key` of its `.json`, None where it
    has neither; under "nested" whether images lie in tars within.

    Args:
        label_key: of the `.json` members.
        image_key: which of a key's images, as "jpg" or "0.png"; None: each key has one.
    """

    def __init__(self, label_key: str | None = None, image_key: str | None = None) -> None:
        self._label_key, self._image_key = label_key, image_key
        self.name = json.dumps(["tar 1", label_key, image_key])

    def parts(self, reader: Reader) -> list[Any]:
        """The archive, or the archives in it: (start, end, prefix of the names)."""
        read, size, name = ahead(reader.read, 1024), reader.container.size, reader.container.name
        first = next(iter(tar_members(read, name, 0, size)), None)
        if first is None or not first.name.lower().endswith(".tar"):
            return [(0, size, "")]
        inner = []
        for member in tar_members(read, name, 0, size):
            if member.name.lower().endswith(".tar"):
                inner.append((member.offset, min(size, member.offset + member.size), member.name[:-4] + "/"))
            elif is_image(member.name):
                raise ValueError(f"{escaped(name)} holds both tars and images: unpack it")
        return inner

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        start, end, prefix = part
        labels: list[str | None] = []
        keys: dict[str, list[int]] = {}
        texts: dict[str, str] = {}
        wanted = None if self._image_key is None else {"." + key.lower() for key in self._image_key.split(";")}
        cut: list[str] = []
        called = reader.container.name + (f":{prefix[:-1]}" if prefix else "")
        for member in tar_members(found.read, called, start, end, cut):
            folder, slash, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            key = folder + slash + stem
            if is_image(member.name) if wanted is None else dot + extension.lower() in wanted:
                at = found.add(prefix + member.name, member.offset, member.size, member.problem)
                keys.setdefault(key, []).append(at)
                labels.append(None)
            elif extension.lower() in ("cls", "json") and member.size <= _LONGEST and not base.startswith("."):
                text = self._label(extension.lower(), found.read(member.offset, member.size))
                if text is not None and (extension.lower() == "cls" or key not in texts):
                    texts[key] = text
        for key, text in texts.items():
            for at in keys.get(key, ()):
                labels[at] = text
        twice = [found.names[many[0]] for key, many in keys.items() if key in texts and len(many) > 1]
        return {
            "labels": labels if texts else None,
            "count": len(labels),
            "nested": bool(prefix),
            "twice": twice[:3],
            "cut": bool(cut),
        }

    def _label(self, extension: str, data: bytes) -> str | None:
        if extension == "cls":
            return None if self._label_key not in (None, "cls") else data.decode("utf-8", "replace").strip() or None
        if self._label_key == "cls":
            return None
        try:
            found = json.loads(data)
        except ValueError:
            return None
        for step in (self._label_key or "label").split("."):
            found = found.get(step) if isinstance(found, dict) else None
        return str(found) if isinstance(found, int | str) and not isinstance(found, bool) else None

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        labels: list[str | None] | None = None
        if any(about["labels"] for about in abouts):
            labels = [label for about in abouts for label in about["labels"] or [None] * about["count"]]
        return {
            "labels": labels,
            "nested": any(about["nested"] for about in abouts),
            "twice": [name for about in abouts for name in about["twice"]][:3],
            "cut": any(about["cut"] for about in abouts),
        }
