"""The page: one file of HTML with all that it shows in it, and nothing that comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import re
from typing import Any


def page(scene: dict[str, Any]) -> str:
    """The page that shows a scene, with "recipe" ({"name", "fields", "code"}), "recipes" and "serve" beside it.

    Names get into it as JSON in which no tag can begin, and are shown as text alone; its policy allows the one script
    that belongs to it, and images within it.
    """
    text = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    found = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert found
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    data = json.dumps(scene).replace("<", "\\u003c")
    return text.replace("SCRIPT_HASH", digest).replace("SCENE", data, 1)
