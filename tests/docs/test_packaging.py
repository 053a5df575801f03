"""The package declares what it imports and carries what it reads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

DISTRIBUTION_OF = {
    "PIL": "pillow",
    "huggingface_hub": "datasets",  # comes with it, and with transformers
    "mlflow": "mlflow-skinny",
    "pandas": "datasets",
    "pydantic_core": "pydantic",
    "faiss": "faiss-cpu",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, object]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {canonical(Requirement(text).name) for text in requirements}


def third_party_imports(package: Path) -> dict[str, str]:
    """Return top-level module -> a file that imports it."""
    found: dict[str, str] = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], str(path.relative_to(package)))
    return {
        name: path
        for name, path in found.items()
        if name not in sys.stdlib_module_names and name != "understudy"
    }


def test_every_import_is_declared(repository: Path, project: dict) -> None:
    known = declared(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        if extra != "dev":
            known |= declared(requirements)
    imported = third_party_imports(repository / "src" / "understudy")
    undeclared = {
        name: path
        for name, path in imported.items()
        if canonical(DISTRIBUTION_OF.get(name, name)) not in known
    }
    assert not undeclared


def test_constraints_pin_every_dependency_within_its_range(repository: Path, project: dict) -> None:
    pins = {}
    for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            name, separator, version = text.partition("==")
            assert separator, f"'{text}' is no pin"
            assert "+" not in version, f"'{text}' is bound to one build"
            pins[canonical(name)] = Version(version)
    requirements = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        requirements += extra
    for text in requirements:
        requirement = Requirement(text)
        if canonical(requirement.name) != "understudy":
            assert pins[canonical(requirement.name)] in requirement.specifier, text


def test_wheel_carries_recipes_templates_and_type_marker(repository: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=repository,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    package = repository / "src" / "understudy"
    wanted = {
        f"understudy/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "cache" not in str(path) and path.suffix != ".pyc"
    }
    assert wanted - carried == set()
    assert "understudy/py.typed" in carried
    assert any(
        name.startswith("understudy/recipes/") and name.endswith(".yaml") for name in carried
    )
    assert any(name.endswith("licenses/LICENSE") for name in carried)
