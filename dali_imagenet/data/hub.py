"""Data sets on the Hugging Face Hub: `hf://datasets/owner/name@revision/path` as addresses that can be read."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from dali_imagenet.errors import StorageError
from dali_imagenet.escape import escaped, printable

_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")


class Hosted(NamedTuple):
    """A file of a data set: where it can be read, and its path in the repository."""

    place: str
    path: str


def resolve_hf(url: str) -> list[Hosted]:
    """The files that `hf://datasets/owner/name[@revision][/path]` means, in the order of their paths.

    The revision is asked for once and pinned in every address. With HF_HUB_OFFLINE set they are those of the snapshot
    that huggingface_hub has downloaded before.

    Args:
        url: the address; its path is a file, or a folder, all of whose files are meant. A revision with slashes has
            them as `%2F`.

    Returns:
        https addresses (those of HF_ENDPOINT, where it is set), or local paths of the snapshot.

    Raises:
        FileNotFoundError: no such data set, revision or file, or none that may be read.
        ImportError: huggingface_hub is not installed.
        StorageError: the Hub does not answer.
        ValueError: another address.
    """
    found = _ADDRESS.fullmatch(url)
    if not found:
        raise ValueError(f"{url!r}: must be hf://datasets/owner/name, with @revision and /path where they matter")
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise ImportError(f"{escaped(url)} is found with huggingface_hub: pip install huggingface_hub") from error
    repository, revision, inside = found[1], found[2] and found[2].replace("%2F", "/"), (found[3] or "").strip("/")
    if constants.HF_HUB_OFFLINE:
        hosted = _snapshot(huggingface_hub, errors, repository, revision)
    else:
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        try:
            info = huggingface_hub.HfApi(endpoint=endpoint).dataset_info(repository, revision=revision)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise FileNotFoundError(
                f"{escaped(url)}: no such data set or revision, or none that may be read without `hf auth login`"
            ) from error
        except (errors.HfHubHTTPError, OSError) as error:
            raise StorageError(f"{escaped(url)}: the Hub does not answer: {printable(str(error))}") from error
        except Exception as error:  # of the HTTP library that huggingface_hub uses, which changes with its version
            if not type(error).__module__.startswith(("http", "requests", "urllib3")):
                raise
            raise StorageError(f"{escaped(url)}: the Hub does not answer: {printable(str(error))}") from error
        paths = sorted(one.rfilename for one in info.siblings or ())
        options: dict[str, Any] = {"repo_type": "dataset", "revision": info.sha, "endpoint": endpoint}
        hosted = [Hosted(huggingface_hub.hf_hub_url(repository, path, **options), path) for path in paths]
    meant = [one for one in hosted if not inside or one.path == inside or one.path.startswith(inside + "/")]
    if not meant:
        raise FileNotFoundError(f"{escaped(url)}: the data set holds no file {inside!r}")
    return meant


def _snapshot(hub: Any, errors: Any, repository: str, revision: str | None) -> list[Hosted]:
    try:
        root = hub.snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{escaped(repository)}: HF_HUB_OFFLINE is set, and no snapshot of it has been downloaded: run "
            f"`hf download {escaped(repository)} --repo-type dataset` where there is a network"
        ) from error
    found = []
    for folder, _, files in os.walk(root, followlinks=True):
        for name in files:
            file = os.path.join(folder, name)
            found.append(Hosted(file, os.path.relpath(file, root).replace(os.sep, "/")))
    return sorted(found, key=lambda one: one.path)
