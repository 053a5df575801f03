"""Lists and cards: methods and models."""

from __future__ import annotations

import inspect

import click

from understudy.errors import nearest


def print_methods() -> None:
    """Print every method with the first sentence of its card."""
    from understudy.methods.method import methods

    width = max(len(name) for name in methods.names())
    for name, method in methods:
        click.echo(f"{name:<{width}}  {(inspect.getdoc(method) or '').splitlines()[0]}")
    click.echo("\nThe card of one: understudy methods NAME")


def print_method(name: str) -> None:
    """Print the card of a method: its docstring, its keywords with their defaults, how a recipe names it."""
    from understudy.methods.method import methods
    from understudy.recipe.kinds import METHOD
    from understudy.recipe.problems import Expected
    from understudy.recipe.words import in_words

    method = methods.get(name)
    click.echo(f"{name}  ({method.__module__}.{method.__qualname__})\n")
    click.echo(inspect.getdoc(method))
    click.echo("\nKeywords:")
    example = [f"name: {name}"]
    for key, field in METHOD.section(name).model_fields.items():
        words = next(
            (mark.words for mark in field.metadata if isinstance(mark, Expected)),
            in_words(field.annotation),
        )
        default = "required" if field.is_required() else f"default {field.default}"
        click.echo(f"  {key}: {words}; {default}")
        if key not in METHOD.extra and not field.is_required():
            example.append(f"{key}: {field.default}")
    click.echo(f"\nIn a recipe: {{{', '.join(example)}}}")


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
