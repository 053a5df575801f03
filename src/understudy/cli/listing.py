"""Lists and cards: methods and models."""

from __future__ import annotations

import inspect

import click

from understudy.errors import nearest


def print_methods() -> None:
    """Print every method with the first sentence of its card, by family."""
    from understudy.methods.families import FAMILIES, by_family
    from understudy.methods.method import methods

    width = max(len(name) for name in methods.names())
    for family, names in by_family().items():
        click.echo(f"{family}: {FAMILIES[family]}")
        for name in names:
            summary = (inspect.getdoc(methods.get(name)) or "").splitlines()[0]
            click.echo(f"  {name:<{width}}  {summary}")
        click.echo()
    click.echo("The card of one: understudy methods NAME")


def print_method(name: str) -> None:
    """Print the card of a method: its docstring, its keywords with their defaults, how a recipe names it."""
    from understudy.methods.method import methods
    from understudy.recipe.kinds import METHOD
    from understudy.recipe.problems import Expected
    from understudy.recipe.words import in_words

    method = methods.get(name)
    click.echo(f"{name}  ({method.family}, {method.__module__}.{method.__qualname__})\n")
    click.echo(inspect.getdoc(method))
    click.echo("\nKeywords:")
    for key, field in METHOD.section(name).model_fields.items():
        words = next(
            (mark.words for mark in field.metadata if isinstance(mark, Expected)),
            in_words(field.annotation),
        )
        default = "required" if field.is_required() else f"default {field.default}"
        click.echo(f"  {key}: {words}; {default}")
    click.echo(f"\nIn a recipe: {in_recipe(name)}")


def in_recipe(name: str) -> str:
    """Return a method as a recipe names it, with its keywords at their defaults."""
    from understudy.recipe.kinds import METHOD

    parts = [f"name: {name}"]
    for key, field in METHOD.section(name).model_fields.items():
        if key not in METHOD.extra and not field.is_required():
            parts.append(f"{key}: {yaml_text(field.default)}")
    return f"{{{', '.join(parts)}}}"


def yaml_text(value: object) -> str:
    """Return a value as it stands in a line of YAML."""
    import yaml

    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )


def print_models(prefix: str | None, word: str | None) -> None:
    """Print the prefixes, or the models of one whose name contains `word`."""
    from understudy.models.build import builders, names

    if prefix is None:
        for each, builder in builders:
            click.echo(f"{each + ':':<14}{(inspect.getdoc(builder) or '').splitlines()[0]}")
        click.echo("\nThe models of one: understudy models PREFIX [WORD]")
        return
    chosen = prefix.rstrip(":")
    builders.get(chosen)
    listed = names(chosen)
    if not listed:
        click.echo(f"{chosen}: takes any path or module, so there is nothing to list.")
        click.echo(inspect.getdoc(builders.get(chosen)) or "")
        return
    found = [name for name in listed if word is None or word.lower() in name.lower()]
    for name in found:
        click.echo(name)
    if not found:
        close = ", ".join(nearest(str(word), [name.partition(":")[2] for name in listed]))
        click.echo(
            f"No model of {chosen}: contains '{word}'." + (f" Similar: {close}." if close else "")
        )
