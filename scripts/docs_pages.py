"""Pages of the documentation that are made from the code when the site is built (a hook of MkDocs).

- One reference page per room, listing every public module of its package.
- One page per family of methods with their cards.
- The cards of sources, transforms, schedules and model prefixes, and the tables of methods and objectives.
- A check that the site asks no other server for anything, so that it can be read without a network.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "src")]

import method_table
from understudy.cli.listing import in_recipe
from understudy.methods.families import FAMILIES, by_family
from understudy.methods.method import methods

PACKAGE = ROOT / "src" / "understudy"
ROOMS = {
    "recipe": "Recipes, overrides, the schema and `distill()`.",
    "training": "The loop, stages, optimisers, schedules, checkpoints, the run directory.",
    "methods": "What a method is and what it sees. The methods themselves have [cards](../methods.md).",
    "teachers": "Where targets come from.",
    "sampling": "Text that a model or a server writes, and data sets made of it.",
    "evaluation": "Predictions, accuracy, fidelity, calibration and cost.",
    "tasks": "What a batch means.",
    "data": "Sources, splits, views and the loader.",
    "models": "The model zoo, taps, projectors and export.",
    "objectives": "Pure functions: tensors in, loss out.",
    "report": "From a run directory to one HTML file.",
}
REGISTRIES = {
    "source": ("understudy.data.source", "sources"),
    "prefix": ("understudy.models.build", "builders"),
    "transform": ("understudy.data.views", "transforms"),
    "schedule": ("understudy.training.schedules", "schedules"),
}
"""What `<!-- KIND-cards -->` on a page stands for: one card per member of a registry."""
CARD = """    options:
      show_root_heading: false
      show_root_toc_entry: false
      show_bases: false
      members: false
"""
SINGLE_MODULES = ["errors", "seeding", "registry"]
EXTERNAL = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect))[^>]*\bhref=["']?(?:https?:)?//"""
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the families behind that of the methods."""
    for section in config.nav or []:
        pages = section.get("Methods") if isinstance(section, dict) else None
        if pages is not None:
            pages += [{f.capitalize(): method_table.card_page(f)} for f in by_family()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages and the cards of methods."""
    for family in by_family():
        path = method_table.card_page(family)
        files.append(File.generated(config, path, content=family_page(family)))
    for room, summary in ROOMS.items():
        body = "\n\n".join(entry(room, module) for module in public_modules(room))
        content = f"# `understudy.{room}`\n\n{summary}\n\n{body}\n"
        files.append(File.generated(config, f"reference/{room}.md", content=content))
    body = "\n\n".join(f"::: understudy.{module}" for module in SINGLE_MODULES)
    content = f"# Errors, seeds and registries\n\nSingle modules that any room may use.\n\n{body}\n"
    files.append(File.generated(config, "reference/foundations.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page asks for by a marker."""
    if "<!-- method-table -->" in markdown:
        markdown = markdown.replace("<!-- method-table -->", method_table.tables())
    if "<!-- objective-table -->" in markdown:
        markdown = markdown.replace("<!-- objective-table -->", objective_table())
    for kind, (module, attribute) in REGISTRIES.items():
        marker = f"<!-- {kind}-cards -->"
        if marker in markdown:
            registry = getattr(importlib.import_module(module), attribute)
            colon = ":" if kind == "prefix" else ""
            cards = [f"### `{name}{colon}`\n\n{card(member)}" for name, member in registry]
            markdown = markdown.replace(marker, "\n\n".join(cards))
    return markdown


def family_page(family: str) -> str:
    """Return the page with the cards of a family's methods."""
    parts = [
        f"# {family.capitalize()} methods",
        f"{FAMILIES[family][0].upper()}{FAMILIES[family][1:]}.",
    ]
    for name in by_family()[family]:
        method = methods.get(name)
        needs = ", ".join(method_table.needs(method)) or "nothing"
        parts += [
            f"## `{name}` {{ #{name} }}",
            card(method),
            f"Needs: {needs}. In Python: `understudy.methods.{method.__qualname__}`. In a recipe, with its defaults:",
            f"```text\n{in_recipe(name)}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def card(member: Any) -> str:
    """Return what shows the docstring of a member of a registry."""
    return f"::: {member.__module__}.{member.__qualname__}\n{CARD}"


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads anything from elsewhere."""
    for page in Path(config.site_dir).rglob("*.html"):
        found = EXTERNAL.search(page.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{page.name} loads something from another server: {found.group(0)}")


def entry(room: str, module: str) -> str:
    """Return what documents a module; the package itself only re-exports, so that only its docstring is shown."""
    options = "\n    options:\n      members: false" if module == f"understudy.{room}" else ""
    return f"::: {module}{options}"


def objective_table() -> str:
    """Return the table of all objectives, by family, each linked to its reference."""
    importlib.import_module("understudy.objectives")
    cards = importlib.import_module("understudy.objectives.card").cards
    lines = ["| objective | takes | what it is |", "|---|---|---|"]
    for _, (function, card) in sorted(cards.items()):
        target = f"reference/objectives.md#{function.__module__}.{function.__name__}"
        summary = (inspect.getdoc(function) or "").splitlines()[0].replace("|", "\\|")
        family = function.__module__.split(".")[2]
        lines.append(f"| [`{function.__name__}`]({target}) | {family}: {card.takes} | {summary} |")
    return "\n".join(lines)


def public_modules(room: str) -> list[str]:
    """Return the dotted names of a room's package and of every public module in it that has something to say.

    Modules of methods are left out: they have cards.
    """
    names = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if any(part.startswith("_") for part in parts if part != "__init__"):
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
            if parts != (room,) or not path.read_text(encoding="utf-8").strip():
                continue
        names.append(".".join(("understudy", *parts)))
    with_card = {method.__module__ for _, method in methods}
    return [name for name in names if name not in with_card]
