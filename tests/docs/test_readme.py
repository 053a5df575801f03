"""What the README says about the package is what the package says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from understudy.methods import methods


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_list_of_methods_is_the_registry(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert load(repository / "scripts" / "method_table.py").written(text) == text, (
        "run `python scripts/method_table.py`"
    )
    listed = text.partition("<!-- method-table -->")[2].partition("<!-- /method-table -->")[0]
    assert sorted(re.findall(r"`(\w+)`", listed)) == methods.names()


def test_example_is_ten_lines(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```python\n(.*?)```", text, re.S)
    assert first is not None
    assert len([line for line in first.group(1).splitlines() if line.strip()]) <= 10


def test_links_lead_somewhere(repository: Path) -> None:
    for page in [repository / "README.md", repository / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:")):
                assert (repository / target).exists(), f"{page.name} links to {target}"
