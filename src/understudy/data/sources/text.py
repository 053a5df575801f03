"""Plain text files as documents, such as those that language models are trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from understudy.data.samples import TextSamples
from understudy.data.source import Source, Split, sources
from understudy.data.sources._splits import assemble, choose_roles, row_ids
from understudy.errors import DataError, unknown_name

Unit = Literal["file", "paragraph", "line", "article"]
UNITS: dict[str, str | None] = {
    "file": None,
    "paragraph": r"\n\s*\n",
    "line": r"\n",
    "article": r"\n(?= = [^=\n]+ = *\n)",
}
"""What ends a piece, as a regular expression."""
ONLY_DOMAIN = "text"
"""What the domain is called where none is named."""

Paths = str | list[str] | dict[str, str | list[str]]


@sources.register("text")
def text(
    path: Paths,
    test: str | float | list[str] | dict[str, str | list[str]] = 0.1,
    validation: str | float | list[str] | dict[str, str | list[str]] | None = None,
    unit: Unit = "file",
    characters: int | None = None,
    prompt_characters: int | None = None,
    encoding: str = "utf-8",
    split_seed: int = 0,
) -> Source:
    """Load documents from text files.

    Args:
        path: a file, a folder (all `.txt` files below it), a list of those, or domain name -> one of those. Measures
            are reported by domain.
        test: the documents to test on: files in the same form, or a fraction of the documents of each domain.
        validation: the same for selection; None: the recipe carves a part out of the training documents.
        unit: what a piece is: a whole "file", a "paragraph" (ended by an empty line), a "line", or an "article" (begun
            by a line ` = Title = `, as in WikiText).
        characters: pieces that follow each other in a file are joined to documents of at most this many characters;
            longer pieces stay whole. None: every piece is a document.
        prompt_characters: every document becomes a pair of a prompt, its beginning of about so many characters up to
            a space, and a response, the rest, as methods need in which a model writes. Documents without a rest are
            left out. None: documents are texts.
        encoding: of the files.
        split_seed: which documents a fraction takes; independent of the run's seed.

    A document's id is its number in its split. Pieces without a letter or digit are left out.

    Raises:
        DataError: no such file, none in a folder, bytes that are no text, no document; names the file.
    """
    if unit not in UNITS:
        raise unknown_name("unit of text", unit, UNITS)
    if characters is not None and characters < 1:
        raise DataError(f"characters is {characters}; a document has at least 1.")
    if prompt_characters is not None and prompt_characters < 1:
        raise DataError(f"prompt_characters is {prompt_characters}; a prompt has at least 1.")
    reader = _Reader(unit, characters, encoding)
    given: dict[str, Mapping[str, Sequence[str]]] = {"train": _by_domain(path)}
    roles: dict[str, str | float | None] = {}
    for role, value in (("test", test), ("validation", validation)):
        if isinstance(value, int | float) or value is None:
            roles[role] = value
        else:
            given[role] = _by_domain(value)
            roles[role] = role
    domains = tuple(dict.fromkeys(name for part in given.values() for name in part))
    documents: list[Any] = []
    splits = {}
    for name, part in given.items():
        found = [
            (document, domains.index(domain))
            for domain, places in part.items()
            for document in _in_two(reader.documents(places), prompt_characters)
        ]
        numbers = torch.arange(len(found))
        labels = torch.tensor([domain for _, domain in found], dtype=torch.int64)
        splits[name] = Split(
            TextSamples(documents), numbers + len(documents), labels, row_ids(name, numbers)
        )
        documents += [document for document, _ in found]
    title = path if isinstance(path, str) else ", ".join(domains)
    chosen = choose_roles(
        list(splits),
        train="train",
        test=roles["test"],
        validation=roles["validation"],
        what=f"Text '{title}'",
    )
    samples = TextSamples(documents)
    splits = {
        name: Split(samples, part.positions, part.labels, part.ids) for name, part in splits.items()
    }
    return assemble(title, "text", splits, chosen, domains, split_seed)


@dataclass(frozen=True)
class _Reader:
    """Reads files and cuts them into documents."""

    unit: str
    characters: int | None
    encoding: str

    def documents(self, places: Sequence[str]) -> Iterator[str]:
        """Give the documents of some files and folders."""
        for place in places:
            for file in _files(place):
                yield from self._joined(self._pieces(self._read(file)))

    def _read(self, file: Path) -> str:
        try:
            content = file.read_text(self.encoding)
        except (UnicodeDecodeError, LookupError) as error:
            raise DataError(f"'{file}' is no text in {self.encoding}: {error}.") from error
        except OSError as error:
            raise DataError(f"'{file}' cannot be read: {error.strerror}.") from error
        if not any(map(str.isalnum, content)):
            raise DataError(f"'{file}' holds no text.")
        return content

    def _pieces(self, content: str) -> Iterator[str]:
        pattern = UNITS[self.unit]
        for piece in [content] if pattern is None else re.split(pattern, content):
            stripped = piece.strip("\n")
            if any(map(str.isalnum, stripped)):
                yield stripped

    def _joined(self, pieces: Iterator[str]) -> Iterator[str]:
        if self.characters is None:
            yield from pieces
            return
        between = "\n" if self.unit == "line" else "\n\n"
        whole = ""
        for piece in pieces:
            longer = f"{whole}{between}{piece}" if whole else piece
            if whole and len(longer) > self.characters:
                yield whole
                longer = piece
            whole = longer
        if whole:
            yield whole


def _in_two(
    documents: Iterator[str], prompt: int | None
) -> Iterator[str] | Iterator[tuple[str, str]]:
    """Cut each document into its beginning, of about so many characters, and the rest."""
    if prompt is None:
        yield from documents
        return
    for document in documents:
        # The rest begins with the space, as the next word of a text does.
        place = next((n for n in range(prompt, len(document)) if document[n].isspace()), None)
        if place is not None and any(map(str.isalnum, document[place:])):
            yield document[:place], document[place:]


def _by_domain(given: Paths) -> dict[str, list[str]]:
    if isinstance(given, str):
        return {ONLY_DOMAIN: [given]}
    if isinstance(given, list):
        return {ONLY_DOMAIN: given}
    return {name: [each] if isinstance(each, str) else list(each) for name, each in given.items()}


def _files(place: str) -> list[Path]:
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"There is no file or folder '{place}'.")
    found = sorted(path.rglob("*.txt"))
    if not found:
        raise DataError(f"The folder '{place}' holds no .txt file.")
    return found
