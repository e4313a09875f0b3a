"""Zip archives of stored members, as Swin's and ImageNet-22k's: the directory and the members' headers are read."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

from dali_imagenet.data.container import Part, Reader
from dali_imagenet.data.scan import Found
from dali_imagenet.data.tar import is_image, refuse_packed
from dali_imagenet.escape import escaped, listed

_LOCAL = b"PK\3\4"
_HEADER = 30  # bytes of a local header before the name and what else is there
_ENCRYPTED = 1
_PART = 4096  # members that a thread takes at a time


class Zip:
    """A `Kind`: zip archives. What it remembers: nothing besides its images."""

    name = json.dumps(["zip 1"])

    def parts(self, reader: Reader) -> list[Any]:
        """The images in the order in which they lie in the archive: [[name, place of the header, size], ...]."""
        name = reader.container.name
        # The last member of a name is what unpacking leaves.
        members = {info.filename.removeprefix("./").lstrip("/"): info for info in _directory(reader)}
        images = [(path, info) for path, info in members.items() if is_image(path)]
        packed = [path for path, info in images if info.compress_type or info.compress_size != info.file_size]
        locked = [path for path, info in images if info.flag_bits & _ENCRYPTED]
        for bad, what in (locked, "encrypted"), (packed, "compressed"):
            if bad:
                raise ValueError(
                    f"{escaped(name)}: {len(bad)} of {len(images)} images are {what} ({listed(bad, 3)}): none of them "
                    "can be read as it lies there; unpack it once and pack it without: zip -q -0 -r new.zip FOLDERS"
                )
        found = sorted((info.header_offset, path, info.file_size) for path, info in images)
        return [found[k : k + _PART] for k in range(0, len(found), _PART)]

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        for at, path, size in part:
            header = found.read(at, _HEADER) if 0 <= at < reader.container.size else b""
            if len(header) < _HEADER or not header.startswith(_LOCAL):
                found.add(path, 0, size, f"the archive is damaged: no header of it at byte {at}")
                continue
            # Both lengths may be others than those in the directory.
            found.add(path, at + _HEADER + sum(struct.unpack_from("<HH", header, 26)), size)
        return {}

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        return {}


def _directory(reader: Reader) -> list[zipfile.ZipInfo]:
    name, size = reader.container.name, reader.container.size
    try:
        with io.BufferedReader(Part(reader.read, size), 1 << 16) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OverflowError, ValueError) as error:
        head = reader.read(0, 16)
        refuse_packed(name, head, "then pack it with zip -0")
        if not head.startswith(_LOCAL):
            raise ValueError(f"{escaped(name)} is no zip archive: it starts with {head!r}") from error
        raise ValueError(
            f"{escaped(name)}: the directory at the end of the archive is missing or damaged ({error}): it was "
            "probably cut short; copy or download it again"
        ) from error
