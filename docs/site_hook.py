"""What mkdocs needs to be told: pages link to files of the repository, which the site shows below repository/."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
AREA = "repository/"  # of the site
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
SHOWN = {".py": "python", ".diff": "diff", ".json": "json"}  # files that become pages, and how they are coloured


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside the folder, and what that links to."""
    pages = [file.src_uri for file in files.documentation_pages()]
    wanted = [place_in_repository(uri) for uri in [*pages, AREA + "CONTRIBUTING.md", AREA + "CHANGELOG.md"]]
    seen = set(wanted)
    while wanted:
        path = wanted.pop()
        uri = place_on_site(path)
        if not path.startswith("docs/") and files.get_file_from_path(uri) is None:
            files.append(added(path, uri, config))
        if path.endswith(".md"):
            linked = {target for _, target in LINK.findall(FENCE.sub("", (ROOT / path).read_text(encoding="utf-8")))}
            found = {posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) for target in linked}
            new = {path for path in found if (ROOT / path).is_file()} - seen  # mkdocs warns of the others
            wanted += sorted(new)
            seen |= new
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the repository become links of the site; blocks of code stay."""
    here = page.file.src_uri
    folder = posixpath.dirname(place_in_repository(here))

    def moved(match: re.Match[str]) -> str:
        target = place_on_site(posixpath.normpath(posixpath.join(folder, match[2])))
        return match[1] + posixpath.relpath(target, posixpath.dirname(here) or ".")

    def table_row(match: re.Match[str]) -> str:
        return CODE.sub(lambda code: code[0].replace(r"\|", "|"), match[0])  # escaped for GitHub's sake alone

    def diagram(match: re.Match[str]) -> str:
        name = picture_of(match[1])  # docs/make_diagrams.py drew it, if the block is still the same
        return match[0] if files.get_file_from_path(name) is None else f"![Diagram: {match[1].split()[0]}]({name})"

    markdown = DIAGRAM.sub(diagram, markdown)
    parts = re.split(f"({FENCE.pattern})", markdown, flags=FENCE.flags)
    parts[::2] = [re.sub(r"^\|.*", table_row, LINK.sub(moved, part), flags=re.MULTILINE) for part in parts[::2]]
    return "".join(parts)


def picture_of(code: str) -> str:
    """The picture of a mermaid block, on the site."""
    return f"images/diagram-{hashlib.sha256(code.encode()).hexdigest()[:12]}.svg"


def place_in_repository(uri: str) -> str:
    """`data.md` of the site is `docs/data.md`, `repository/README.md` is `README.md`."""
    if not uri.startswith(AREA):
        return f"docs/{uri}"
    path = uri.removeprefix(AREA)
    return path.removesuffix(".md") if Path(path).with_suffix("").suffix in SHOWN else path


def place_on_site(path: str) -> str:
    """`docs/data.md` is `data.md` of the site, `examples/train.py` is a page that shows it."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return AREA + path + (".md" if Path(path).suffix in SHOWN else "")


def added(path: str, uri: str, config: Any) -> File:
    """A file of the repository as a page, or as it is."""
    suffix = Path(path).suffix
    if suffix in SHOWN:
        code = (ROOT / path).read_text(encoding="utf-8")
        return File.generated(config, uri, content=f"# {path}\n\n~~~~~~{SHOWN[suffix]}\n{code}\n~~~~~~\n")
    return File.generated(config, uri, abs_src_path=os.fspath(ROOT / path))
