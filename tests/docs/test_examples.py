"""The examples of the README and the documentation work as they stand there.

A page's Python blocks are one program, run in an empty directory in a process of its own. A block with a title such as
`title="my_method.py"` is a file beside that program. A block after `<!-- no-run -->` is left out. So that this takes
seconds, more than three epochs become three, and a list of seeds becomes one seed.

YAML blocks that are whole recipes are read. A title makes one a file that later blocks may have as their base.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)(.*)$")
NO_RUN = "<!-- no-run"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind it, the page's line where its text begins, its lines."""

    language: str
    info: str
    first: int
    lines: list[str]
    skipped: bool

    @property
    def title(self) -> str | None:
        found = re.search(r'title="([^"]+)"', self.info)
        return found.group(1) if found else None


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    position, before = 0, ""
    while position < len(lines):
        opened = FENCE.match(lines[position])
        if not opened:
            before = lines[position].strip() or before
            position += 1
            continue
        indent, language, info = opened.groups()
        end = position + 1
        while lines[end].strip() != "```":
            end += 1
        body = [line.removeprefix(indent) for line in lines[position + 1 : end]]
        found.append(Block(language, info, position + 1, body, before.startswith(NO_RUN)))
        position, before = end + 1, ""
    return found


def with_language(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


def name(page: Path) -> str:
    return page.stem


def tiny(code: str) -> str:
    code = re.sub(r"""(\bepochs(?:=|": ))(\d+)""", lambda m: m[1] + str(min(3, int(m[2]))), code)
    return re.sub(r"\bseeds=\[[^\]]*\]", "seeds=[0]", code)


@pytest.mark.parametrize("page", with_language("python"), ids=name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    # Lines outside of the examples become empty, so that a traceback shows the page's own line numbers.
    program = [""] * len(page.read_text(encoding="utf-8").splitlines())
    for block in blocks(page):
        if block.language != "python" or block.skipped:
            continue
        if block.title:
            (tmp_path / block.title).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
        else:
            program[block.first : block.first + len(block.lines)] = block.lines
    script = tmp_path / f"{page.stem}_examples.py"
    script.write_text(tiny("\n".join(program)) + "\n", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, f"{page.name}:\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's shell blocks, split into words; a quoted word may span lines."""
    found: list[list[str]] = []
    for block in blocks(page):
        if block.language not in ("bash", "console", "sh") or block.skipped:
            continue
        pending = ""
        for line in block.lines:
            pending += line.removeprefix("$ ")
            if pending.endswith("\\"):
                pending = pending.removesuffix("\\")
                continue
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # a quote is still open
                pending += "\n"
                continue
            if words:
                found.append(words)
            pending = ""
        assert not pending, f"{page.name}: the block at line {block.first} ends within a command"
    return found


@pytest.mark.parametrize("page", with_language("bash", "console", "sh"), ids=name)
def test_commands_exist_with_their_options(page: Path) -> None:
    from understudy.cli.commands import cli

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:2]) <= set(targets), f"{page.name}: make {words[1]}"
        elif words[0] == "understudy" and len(words) > 1 and not words[1].startswith("-"):
            verb = cli.commands.get(words[1])
            assert verb is not None, f"{page.name}: understudy {words[1]}"
            if isinstance(verb, click.Group):
                assert words[2] in verb.commands, f"{page.name}: {shlex.join(words)}"
                verb = verb.commands[words[2]]
            valid = {
                option
                for parameter in verb.params
                if isinstance(parameter, click.Option)
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
            used = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert used <= valid | {"--help"}, f"{page.name}: {shlex.join(words)}"


@pytest.mark.parametrize("page", with_language("yaml"), ids=name)
def test_recipes_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.recipe.loading import load

    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "yaml" and not block.skipped:
            file = Path(block.title or f"line-{block.first}.yaml")
            file.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            assert values is not None, f"{page.name}:{block.first}"
            # A whole recipe, or one over a base; the others show a part of one.
            if {"data", "student"} <= set(values) or "base" in values:
                load(file)


def test_commands_are_read_as_a_shell_does(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nmake demo   # it's quick\nunderstudy run a \\\n  'b={c: 1,\n  d: 2}' x=1\n```\n",
        encoding="utf-8",
    )
    assert commands(page) == [
        ["make", "demo"],
        ["understudy", "run", "a", "b={c: 1,\n  d: 2}", "x=1"],
    ]


def test_the_reader_of_pages_sees_every_kind_of_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n```python\na = 1\n```\n\n<!-- no-run: needs a cluster -->\n\n```python\nb = 2\n```\n"
        '```python title="m.py"\nc = 3\n```\n- item\n\n    ```bash\n    ls\n    ```\n',
        encoding="utf-8",
    )
    seen = blocks(page)
    assert [(block.language, block.first, block.skipped, block.title) for block in seen] == [
        ("python", 2, False, None),
        ("python", 8, True, None),
        ("python", 11, False, "m.py"),
        ("bash", 16, False, None),
    ]
    assert [block.lines for block in seen] == [["a = 1"], ["b = 2"], ["c = 3"], ["ls"]]
