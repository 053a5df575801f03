"""The verbs. Each imports what it needs when it is called, so that `understudy --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from understudy.cli.outcome import ended

FORMATS = ("safetensors", "hf", "onnx", "torch-export")
DTYPES = ("float32", "bf16", "float16", "int8")
_FOLDER = click.Path(path_type=Path)
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="understudy", message="%(version)s")
def cli() -> None:
    """Distil a large model into a small one, and show how well it stands in.

    Begin with `understudy demo`.
    """


@cli.command()
@_OVERRIDES
@click.option("--fresh", is_flag=True, help="Delete runs/demo first and run it again.")
def demo(overrides: tuple[str, ...], fresh: bool) -> None:
    """Run the example: a teacher and students on handwritten digits.

    It writes runs/demo with a report.html. Nothing is downloaded: the digits ship inside scikit-learn.
    """
    from understudy.cli.running import run_demo

    run_demo(overrides, fresh=fresh)


@cli.command()
@click.argument("recipe")
@_OVERRIDES
@click.option("--brief", is_flag=True, help="Leave out the table of all tappable modules.")
def plan(recipe: str, overrides: tuple[str, ...], brief: bool) -> None:
    """Check a recipe with one batch: taps, shapes, costs, verdicts.

    RECIPE is a YAML file or the name of a packaged recipe.
    """
    from understudy.cli.planning import print_plan

    if print_plan(recipe, overrides, modules=not brief):
        sys.exit(1)


@cli.command()
@click.argument("recipe")
@_OVERRIDES
@click.option(
    "-d", "--directory", type=_FOLDER, help="The run directory; runs/NAME when not given."
)
def run(recipe: str, overrides: tuple[str, ...], directory: Path | None) -> None:
    """Train, evaluate and report.

    RECIPE is a YAML file or the name of a packaged recipe. Overrides change it: optimizer.lr=0.1 'seeds=[0,1,2]'
    arms.kd.0.temperature=2
    """
    from understudy.cli.running import run_recipe

    run_recipe(recipe, overrides, directory)


@cli.command()
@click.argument("recipe")
@_OVERRIDES
@click.option(
    "--repair", is_flag=True, help="Read finished shards too, and make damaged ones again."
)
@click.option(
    "--part",
    default="1/1",
    metavar="N/OF",
    help="Label only the N-th part, for machines without a common disk; `store merge` joins them.",
)
@click.option(
    "--teacher", metavar="NAME", help="Which teacher, where several have a store: teachers.NAME."
)
def label(
    recipe: str, overrides: tuple[str, ...], repair: bool, part: str, teacher: str | None
) -> None:
    """Run the teacher once and fill the store of its outputs.

    RECIPE names the store: teacher.store=PATH (of several, teachers.NAME.store=PATH). Stopped or killed, give the
    same command to go on; under torchrun the processes share the work.
    """
    from understudy.cli.storing import label_recipe

    label_recipe(recipe, overrides, repair=repair, part=part, teacher=teacher)


@cli.command()
@click.argument("recipe")
@_OVERRIDES
@click.option("--to", "folder", type=_FOLDER, required=True, help="The folder of the texts.")
@click.option(
    "--prompts", type=int, help="How many training documents give a prompt; all when not given."
)
@click.option(
    "--prompt-tokens",
    default=16,
    show_default=True,
    help="Tokens of a text without a prompt of its own that stand for one.",
)
@click.option("--max-new-tokens", default=128, show_default=True, help="Most tokens of a response.")
@click.option("--temperature", default=1.0, show_default=True, help="0 for the most likely token.")
@click.option("--top-p", default=1.0, show_default=True, help="Probability that is drawn from.")
@click.option("--samples", default=1, show_default=True, help="Responses to each prompt.")
@click.option("--seed", default=0, show_default=True, help="Of all draws.")
@click.option("--batch-size", default=64, show_default=True, help="Responses at the same time.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    help="finished, unseen or right_answer; may be given several times.",
)
@click.option("--server", help="An OpenAI-compatible server that writes, up to and including /v1.")
@click.option("--server-model", help="What the server calls the model.")
@click.option("--key-variable", help="The environment variable that holds the server's key.")
def write(
    recipe: str,
    overrides: tuple[str, ...],
    folder: Path,
    filters: tuple[str, ...],
    server: str | None,
    server_model: str | None,
    key_variable: str | None,
    **options: Any,
) -> None:
    """Let the teacher of a language model write texts to learn from.

    RECIPE has a trained teacher and the documents whose prompts it answers. Stopped or killed, give the same command to
    go on; other filters cost no new text.
    """
    from understudy.cli.writing import write_with_teacher

    if (server is None) != (server_model is None):
        raise click.UsageError("--server and --server-model are given together.")
    asked = {"prompts", "prompt_tokens", "batch_size"}
    write_with_teacher(
        recipe,
        overrides,
        folder,
        filters=filters,
        server=None
        if server is None
        else {"url": server, "model": server_model, "key_variable": key_variable},
        order={name: value for name, value in options.items() if name in asked},
        sampling={name: value for name, value in options.items() if name not in asked},
    )


@cli.command()
@click.argument("folder", type=_FOLDER)
@click.option("--task", "tasks", multiple=True, required=True, help="May be given several times.")
@click.option("--limit", type=int, help="Samples of each task; all when not given.")
@click.option("--batch-size", default=8, show_default=True, help="Samples at the same time.")
def harness(folder: Path, tasks: tuple[str, ...], limit: int | None, batch_size: int) -> None:
    """Run tasks of lm-evaluation-harness on an exported language model.

    FOLDER is what `export --to hf` wrote. The harness is a program of its own: pip install lm-eval.
    """
    from understudy.evaluation.harness import run_harness

    for task, measures in run_harness(folder, tasks, limit=limit, batch_size=batch_size).items():
        shown = ", ".join(f"{name} {value}" for name, value in measures.items())
        click.echo(f"{task}: {shown}")


@cli.group()
def store() -> None:
    """Look after stores of teacher outputs."""


@store.command()
@click.argument("place", metavar="PATH")
@click.option("--check", is_flag=True, help="Read every file and compare its checksum.")
def info(place: str, check: bool) -> None:
    """Say what the store in PATH holds, and with what error."""
    from understudy.cli.storing import print_info

    print_info(place, check=check)


@store.command()
@click.argument("recipe")
@_OVERRIDES
@click.option("--samples", default=256, help="How many views of samples to look at.")
@click.option("--seed", default=0, help="Which ones.")
@click.option(
    "--teacher", metavar="NAME", help="Which teacher, where several have a store: teachers.NAME."
)
def verify(
    recipe: str, overrides: tuple[str, ...], samples: int, seed: int, teacher: str | None
) -> None:
    """Run the teacher of RECIPE on random samples and compare with its store."""
    from understudy.cli.storing import verify_store

    if not verify_store(recipe, overrides, samples=samples, seed=seed, teacher=teacher):
        sys.exit(1)


@store.command()
@click.argument("into", metavar="INTO")
@click.argument("places", nargs=-1, required=True, metavar="PATH...")
def merge(into: str, places: tuple[str, ...]) -> None:
    """Put together in INTO what `label --part` made in several places."""
    from understudy.cli.storing import merge_stores

    merge_stores(into, places)


@store.command()
@click.argument("place", metavar="PATH")
@click.argument("into", metavar="INTO")
@click.option("--top-k", type=int, help="Keep only so many of the largest logits, and a tail.")
@click.option("--dtype", type=click.Choice(DTYPES), help="In what logits are kept.")
@click.option("--feature-dtype", type=click.Choice(DTYPES), help="In what features are kept.")
@click.option(
    "--temperature", type=float, multiple=True, help="For which a tail is kept, beside 1; several."
)
def convert(
    place: str,
    into: str,
    top_k: int | None,
    dtype: Any,
    feature_dtype: Any,
    temperature: tuple[float, ...],
) -> None:
    """Make a smaller store, INTO, of one that holds all logits."""
    from understudy.cli.storing import convert_store

    convert_store(place, into, top_k, dtype, feature_dtype, temperature)


@cli.command()
@click.argument("directory", type=_FOLDER)
def resume(directory: Path) -> None:
    """Go on with a run after a crash or a stop, bit for bit."""
    from understudy.cli.running import resume_run

    resume_run(directory)


@cli.command()
@click.argument("directories", nargs=-1, required=True, type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, help="Also write the comparison as an HTML file.")
def compare(directories: tuple[Path, ...], output: Path | None) -> None:
    """Compare runs: all arms in one table, paired by seed."""
    from understudy.report import compare as compare_runs
    from understudy.report import write_comparison

    comparison = compare_runs(directories)
    click.echo(comparison.text)
    if output is not None:
        click.echo(f"Written to {write_comparison(comparison, output)}")


@cli.command()
@click.argument("directory", type=_FOLDER)
@click.option(
    "-o",
    "--output",
    type=_FOLDER,
    help="The file; report.html in the run directory when not given.",
)
def report(directory: Path, output: Path | None) -> None:
    """Write the report of a run as one self-contained HTML file."""
    from understudy.report import write_report

    click.echo(f"Written to {write_report(directory, output)}")


@cli.command()
@click.argument("directory", type=_FOLDER)
@click.option("--to", "form", required=True, type=click.Choice(FORMATS), help="The format.")
@click.option(
    "--arm", help="Which arm of the run; the first that is not the baseline when not given."
)
@click.option("--seed", type=int, help="Which seed; the run's first when not given.")
@click.option(
    "-o",
    "--output",
    type=_FOLDER,
    help="The folder; export/FORMAT in the run directory when not given.",
)
def export(
    directory: Path, form: str, arm: str | None, seed: int | None, output: Path | None
) -> None:
    """Export a trained student, and prove the export.

    DIRECTORY is a run directory, or the folder of one saved model. The export is loaded in a fresh process and compared
    with the student before this succeeds.
    """
    from understudy.cli.exporting import export_student

    export_student(directory, form, arm=arm, seed=seed, output=output)


@cli.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show the card of one."""
    from understudy.cli.listing import print_method, print_methods

    if name is None:
        print_methods()
    else:
        print_method(name)


@cli.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    import json

    from understudy.recipe.schema import schema as recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))


@cli.command()
@click.argument("prefix", required=False)
@click.argument("word", required=False)
def models(prefix: str | None, word: str | None) -> None:
    """List the models of a PREFIX whose name contains WORD.

    For example: understudy models timm resnet. Without a prefix, list the prefixes.
    """
    from understudy.cli.listing import print_models

    print_models(prefix, word)


def main() -> None:
    """Run the command line and exit: 0 done, 1 the run failed, 2 it was asked for something wrong, 130 stopped."""
    sys.exit(ended(lambda: cli(standalone_mode=False, prog_name="understudy")))
