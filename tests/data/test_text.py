"""Plain text files as documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from understudy.data.sources.text import text
from understudy.errors import DataError, UnderstudyError


def documents(split) -> list[str]:
    return list(split.fetch(torch.arange(len(split))))


@pytest.fixture
def plays(tmp_path: Path) -> Path:
    file = tmp_path / "plays.txt"
    file.write_text("\n\n".join(f"Speaker {n}:\nline {n}" for n in range(20)) + "\n\n\n---\n\n")
    return file


def test_paragraphs_are_documents_and_rules_are_none(plays: Path) -> None:
    source = text(str(plays), unit="paragraph", test=0.2)
    found = [*documents(source.train), *documents(source.test)]
    assert sorted(found) == sorted(f"Speaker {n}:\nline {n}" for n in range(20))
    assert len(source.test) == 4 and source.classes == ("text",)


def test_neighbours_are_joined_up_to_a_length_and_nothing_is_lost(plays: Path) -> None:
    found = text(str(plays), unit="paragraph", characters=50, test=0.2)
    whole = [*documents(found.train), *documents(found.test)]
    assert max(map(len, whole)) <= 50 and len(whole) == 10
    assert sum(document.count("Speaker") for document in whole) == 20


def test_a_piece_longer_than_a_document_stays_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 99 + "\nb\nc\nd")
    source = text(str(tmp_path / "a.txt"), unit="line", characters=10, test=0.5)
    whole = [*documents(source.train), *documents(source.test)]
    assert sorted(whole) == ["a" * 99, "b\nc\nd"]


def test_a_document_is_cut_into_prompt_and_rest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "first words and more\nshort\nalso some words here\nlast words too"
    )
    source = text(str(tmp_path / "a.txt"), unit="line", prompt_characters=4, test=0.5)
    whole = sorted([*documents(source.train), *documents(source.test)])
    assert whole == [
        ("also", " some words here"),
        ("first", " words and more"),
        ("last", " words too"),
    ]


def test_articles_begin_with_their_title(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text(
        " \n = One = \n \n first \n\n = = Part = = \n more \n = Two = \n \n second \n"
    )
    source = text(str(tmp_path / "w.txt"), unit="article", test=0.5)
    whole = sorted([*documents(source.train), *documents(source.test)])
    assert [document.split("=")[1].strip() for document in whole] == ["One", "Two"]
    assert "more" in whole[0] and "Part" in whole[0]


def test_domains_are_labels_and_folders_are_read(tmp_path: Path, plays: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"document {number}")
    source = text(
        {"plays": str(plays), "other": str(folder)}, unit="file", test={"other": str(plays)}
    )
    assert source.classes == ("plays", "other")
    assert source.train.labels.tolist() == [0, 1, 1, 1, 1]
    assert source.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: text(str(root / "none.txt")), "no file or folder"),
        (lambda root: text(str(root)), "holds no .txt file"),
        (lambda root: text(str(root / "bytes.txt.bin")), "is no text in utf-8"),
        (lambda root: text(str(root / "empty"), unit="line"), "holds no text"),
        (lambda root: text(str(root / "empty"), characters=0), "characters is 0"),
        (lambda root: text(str(root / "empty"), unit="sentence"), "sentence"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, make, says: str) -> None:
    (tmp_path / "bytes.txt.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" \n\n")
    with pytest.raises((DataError, UnderstudyError), match=says):
        make(tmp_path)
