"""The pages of the documentation that are made of methods' cards."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import markdown
import pytest

from understudy.methods.families import FAMILIES, by_family
from understudy.methods.method import Family, methods

PLAIN = "A field's text: <K, L> * |x|_2 * a_i, `a * b`, [B, C]"


@pytest.fixture
def scripts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.setattr(sys, "path", [str(repository / "scripts"), *sys.path])
    found = {}
    for name in ("card_fields", "docs_pages", "method_table"):
        spec = importlib.util.spec_from_file_location(name, repository / "scripts" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


def card(name: str) -> str:
    return (inspect.getdoc(methods.get(name)) or "").partition("\n\nArgs:")[0]


def test_every_method_has_a_family_that_is_described() -> None:
    assert tuple(FAMILIES) == get_args(Family)
    listed = by_family()
    assert sorted(name for names in listed.values() for name in names) == methods.names()
    assert all(listed.values())
    assert listed["feature"][:2] == ["ab", "at"]


@pytest.mark.parametrize("name", methods.names())
def test_every_field_of_a_card_is_one_item_of_a_list(
    name: str, scripts: dict[str, ModuleType]
) -> None:
    fields = re.findall(r"^([A-Z][a-z]+(?: [a-z]+)?): ", card(name), re.M)
    assert len(fields) >= 3 and set(fields) <= set(scripts["card_fields"].FIELDS)
    summary, _, rest = scripts["card_fields"].as_list(card(name)).partition("\n\n")
    assert summary == card(name).partition("\n\n")[0]
    assert [line.partition(":**")[0] for line in rest.splitlines()] == [
        f"- **{field}" for field in fields
    ]


def test_plain_text_of_a_card_stays_plain(scripts: dict[str, ModuleType]) -> None:
    text = f"Summary\ngoes on.\n\nPaper: Someone, section\n2. More.\nEquation: {PLAIN}\n\nArgs:\n    x: <y>"
    made = scripts["card_fields"].as_list(text)
    assert made.startswith("Summary\ngoes on.\n\n- **Paper:** Someone, section 2. More.\n- **")
    assert made.endswith("\n\nArgs:\n    x: <y>")
    html = markdown.markdown(made)
    shown = "<strong>Equation:</strong> A field's text: &lt;K, L&gt; * |x|_2 * a_i, <code>a * b</code>, [B, C]"
    assert shown in html
    assert html.count("<li>") == 2 and "<em>" not in html


def test_what_has_no_fields_is_left_as_it_is(scripts: dict[str, ModuleType]) -> None:
    for text in ("Summary.\n\nPaper: only one.", "Summary.\n\nReturns:\n    x: y"):
        assert scripts["card_fields"].as_list(text) == text


def test_a_card_stands_on_its_family_s_page_and_is_linked(scripts: dict[str, ModuleType]) -> None:
    pages = {family: scripts["docs_pages"].family_page(family) for family in by_family()}
    tables = scripts["method_table"].tables()
    for family, names in by_family().items():
        assert re.findall(r"^## `(\w+)` \{ #\1 \}$", pages[family], re.M) == names
        for name in names:
            method = methods.get(name)
            assert f"::: {method.__module__}.{method.__qualname__}\n" in pages[family]
            assert f"| [`{name}`](methods/{family}.md#{name}) |" in tables
    assert "`ft_paraphraser` before" in tables
    assert "understudy.methods.kd" not in scripts["docs_pages"].public_modules("methods")
    assert "understudy.methods.wiring" in scripts["docs_pages"].public_modules("methods")
