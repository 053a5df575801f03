from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from understudy.cli.commands import FORMATS, cli
from understudy.cli.listing import in_recipe
from understudy.cli.running import RUNS
from understudy.errors import TrainingError
from understudy.methods import methods
from understudy.recipe.kinds import METHOD
from understudy.recipe.text import read_value

TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0],
    "batch_size": 32,
    "precision": "float32",
    "channels_last": False,
    "preflight": "warn",
    "data": {"source": {"name": "digits", "test": 0.8}},
    "teacher": {"model": {"name": "kd:resnet8", "width": 0.5}, "train": {}},
    "student": {"name": "kd:resnet8", "width": 0.25},
    "epochs": 1,
    "methods": ["kd", "supervised"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, in which the commands of this module run."""
    place = tmp_path_factory.mktemp("place")
    (place / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture
def finished(place: Path, understudy: Any) -> Path:
    """The run directory of the recipe, run once for this module."""
    directory = RUNS / "tiny"
    if not directory.exists():
        ended = understudy("run", "tiny.yaml")
        assert ended.code == 0, ended.err
        assert "Report: runs/tiny/report.html" in ended.out
        for arm in ("teacher", "baseline", "student"):
            assert f"\n{arm}" in ended.out
        assert "validation accuracy" in ended.err
    return directory


def test_every_verb_has_help(understudy: Any) -> None:
    ended = understudy("--help")
    assert ended.code == 0
    for verb in cli.commands:
        assert f"\n  {verb}" in ended.out
        assert understudy(verb, "--help").code == 0
    assert set(cli.commands) == {
        "compare", "demo", "export", "harness", "label", "methods", "models", "plan", "report", "resume", "run",
        "schema", "store", "write",
    }  # fmt: skip


def test_the_formats_are_those_of_the_export() -> None:
    from understudy.models.export import LOADED

    assert set(FORMATS) == set(LOADED)


def test_a_run_can_be_resumed_reported_and_compared(finished: Path, understudy: Any) -> None:
    assert (finished / "report.html").is_file()
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["name"] == "tiny"
    before = (finished / "metrics.jsonl").read_text()
    assert understudy("resume", finished).code == 0
    assert (finished / "metrics.jsonl").read_text() == before
    ended = understudy("report", finished, "-o", "other.html")
    assert (ended.code, ended.out) == (0, "Written to other.html\n")
    assert Path("other.html").is_file()
    ended = understudy(
        "run", "tiny.yaml", "-d", "runs/second", "epochs=2", "teacher.train.epochs=1"
    )
    assert ended.code == 0, ended.err
    ended = understudy("compare", finished, "runs/second", "-o", "compared.html")
    assert ended.code == 0, ended.err
    assert "tiny / student" in ended.out
    assert Path("compared.html").is_file()


def test_a_run_directory_that_exists_is_not_overwritten(finished: Path, understudy: Any) -> None:
    ended = understudy("run", "tiny.yaml")
    assert ended.code == 2
    assert ended.err.startswith("Error: runs/tiny exists already.")
    assert "understudy resume runs/tiny" in ended.err


def test_a_student_is_exported(finished: Path, understudy: Any) -> None:
    ended = understudy("export", finished, "--to", "safetensors", "--arm", "baseline")
    assert ended.code == 0, ended.err
    assert "Exported runs/tiny/student/baseline/seed-0" in ended.out
    assert (finished / "export" / "safetensors" / "model.safetensors").is_file()
    ended = understudy("export", finished, "--to", "onnx", "--arm", "studnt")
    assert ended.code == 2
    assert "no arm called 'studnt'. Did you mean 'student'" in ended.err
    ended = understudy("export", finished, "--to", "onnx", "--seed", "5")
    assert ended.code == 2
    assert "Arm 'student' has the seeds 0, not 5." in ended.err


def test_the_student_that_is_chosen(finished: Path) -> None:
    from understudy.cli.exporting import choose_student

    assert choose_student(finished, None, None) == finished / "student" / "student" / "seed-0"
    folder = finished / "student" / "baseline" / "seed-0"
    assert choose_student(folder, None, None) == folder


def test_a_plan_shows_taps_shapes_and_verdicts(understudy: Any) -> None:
    ended = understudy("plan", "tiny.yaml", "methods=[kd, fitnet]")
    assert ended.code == 0, ended.err
    for text in (
        "tiny: 10 classes",
        "batch size 32",
        "Taps of the student (kd:resnet8)",
        "layer2 *",
        "student tap layer2: 8 x 4 x 4",
        "projector (8, 4, 4) -> (16, 4, 4)",
        "Nothing stands against a run.",
    ):
        assert text in ended.out, text
    assert "Taps of" not in understudy("plan", "tiny.yaml", "--brief").out


def test_a_plan_that_would_be_refused_fails(understudy: Any, tmp_path: Path) -> None:
    Path("narrow.py").write_text(
        "from torch import nn\n\n\ndef narrow():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    ended = understudy("plan", "tiny.yaml", "student=py:narrow:narrow")
    assert ended.code == 1, ended.err
    assert "This recipe runs code of its own:\n  student.model: py:narrow:narrow" in ended.out
    assert "A run would be refused" in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tiny.yml"], "There is no recipe 'tiny.yml'"),
        (["run", "tiny.yaml", "epohcs=3"], "epohcs (override epohcs=3): there is no such key"),
        (["run", "tiny.yaml", "epochs"], "'epochs' is not of the form key=value"),
        (["resume", "nowhere"], "'nowhere' is no run directory"),
        (["report", "nowhere"], "There is no run directory 'nowhere'"),
        (["compare", "nowhere"], "Name at least two run directories"),
        (["methods", "kdd"], "There is no method called 'kdd'. Did you mean 'kd'"),
        (["models", "tim"], "There is no model prefix called 'tim'. Did you mean 'timm'"),
        (["export", "nowhere", "--to", "onnx"], "There is no run directory 'nowhere'"),
        (["export", "nowhere", "--to", "onx"], "'onx' is not one of"),
        (["rnu"], "No such command 'rnu'"),
    ],
)
def test_what_cannot_be_ends_with_2_and_without_a_traceback(
    understudy: Any, arguments: list[str], message: str
) -> None:
    ended = understudy(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


def test_a_failed_run_ends_with_1_and_a_stopped_one_with_130(
    understudy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.training.loop import Interrupted

    def failing(error: Exception) -> Any:
        def run(*_: Any, **__: Any) -> None:
            raise error

        return run

    monkeypatch.setattr("understudy.training.run.run", failing(TrainingError("The loss is NaN.")))
    ended = understudy("run", "tiny.yaml", "name=failed")
    assert (ended.code, ended.err) == (1, "Error: The loss is NaN.\n")
    monkeypatch.setattr("understudy.training.run.run", failing(Interrupted("Stopped as asked.")))
    ended = understudy("run", "tiny.yaml", "name=stopped")
    assert ended.code == 130
    assert ended.err == "Stopped as asked. To go on: understudy resume runs/stopped\n"
    monkeypatch.setattr("understudy.training.run.run", failing(KeyboardInterrupt()))
    assert understudy("run", "tiny.yaml", "name=stopped").code == 130


def test_a_traceback_on_demand(understudy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.cli import main
    from understudy.errors import RecipeError

    monkeypatch.setenv("UNDERSTUDY_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["understudy", "run", "nothing"])
    with pytest.raises(RecipeError):
        main()


def test_only_the_first_rank_prints(
    finished: Path, understudy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.training.run.run", lambda *_, **__: None)
    monkeypatch.setenv("RANK", "1")
    ended = understudy("resume", finished)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert understudy("run", "nothing").err.startswith("[rank 1] Error: ")


def test_methods_are_listed_and_their_cards_shown(understudy: Any) -> None:
    ended = understudy("methods")
    lines = ended.out.splitlines()
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == methods.names()
    family = lines[: next(i for i, line in enumerate(lines) if line.startswith("  fitnet "))]
    assert [line for line in family if not line.startswith("  ")][-1].startswith("feature: ")
    ended = understudy("methods", "fitnet")
    for text in (
        "Romero et al.",
        "student_tap: text; default auto",
        "In a recipe: {name: fitnet, student_tap: auto, teacher_tap: auto}",
    ):
        assert text in ended.out


@pytest.mark.parametrize("name", methods.names())
def test_a_method_reads_back_as_a_card_names_it_in_a_recipe(name: str) -> None:
    read = METHOD.read(read_value(in_recipe(name)))
    assert read == METHOD.read(name)


def test_models_are_listed(understudy: Any) -> None:
    assert "kd:" in understudy("models").out
    assert understudy("models", "kd", "wrn40").out.split() == ["kd:wrn40_1", "kd:wrn40_2"]
    assert "nothing to list" in understudy("models", "py").out
    assert "Similar: resnet" in understudy("models", "kd", "reznet").out


def test_the_schema_is_json(understudy: Any) -> None:
    assert json.loads(understudy("schema").out)["title"] == "understudy recipe"


def test_the_demo_runs_once_and_afresh_on_demand(understudy: Any) -> None:
    tiny = [
        "seeds=[0]",
        "epochs=1",
        "teacher.train.epochs=1",
        "data.source.test=0.8",
        "preflight=warn",
    ]
    assert understudy("demo", *tiny).code == 0
    assert Path("runs/demo/report.html").is_file()
    ended = understudy("demo")
    assert ended.code == 0
    assert "has run already; its report is runs/demo/report.html" in ended.out
    assert "understudy demo --fresh" in ended.out
    assert "fitnet" in ended.out
    assert understudy("demo", "epochs=2").code == 2
    # A demo that was cut short is gone on with.
    Path("runs/demo/report.html").unlink()
    assert understudy("demo").code == 0
    assert Path("runs/demo/report.html").is_file()
    mark = Path("runs/demo/mark")
    mark.touch()
    assert understudy("demo", "--fresh", *tiny).code == 0
    assert not mark.exists()


def test_importing_understudy_and_asking_for_help_import_nothing_heavy() -> None:
    code = (
        "import sys, {module}; heavy = {{'torch', 'pydantic', 'numpy', 'rich', 'yaml'}} & set(sys.modules); "
        "sys.exit(f'imported: {{heavy}}' if heavy else 0)"
    )
    for module in ("understudy", "understudy.cli"):
        begin = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-c", code.format(module=module)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert time.perf_counter() - begin < 2


def test_public_names_are_there_when_asked_for() -> None:
    import understudy as package
    from understudy.models.saved import load
    from understudy.recipe.distill import distill

    assert package.distill is distill
    assert package.load_student is load
    assert package.methods.KD.name == "kd"
    assert callable(package.objectives.kd)
    assert package.__version__
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        package.distil  # noqa: B018
