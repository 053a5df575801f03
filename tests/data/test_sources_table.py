import json

import pytest
import torch

from understudy.data.sources.table import table
from understudy.errors import DataError


def write(path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def review_lines(count: int, labels=("bad", "good")) -> str:
    return "text,label\n" + "".join(f"review {i},{labels[i % len(labels)]}\n" for i in range(count))


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path / "reviews.csv", review_lines(20))


def texts(split) -> list:
    return split.fetch(torch.arange(len(split)))


def test_a_single_file_gives_a_stratified_test_split(reviews):
    source = table(reviews)
    assert source.kind == "text"
    assert source.classes == ("bad", "good")
    assert (len(source.train), len(source.test)) == (16, 4)
    assert sorted(source.test.labels.tolist()) == [0, 0, 1, 1]
    for split in (source.train, source.test):
        for text, label, row in zip(
            texts(split), split.labels.tolist(), split.ids.tolist(), strict=True
        ):
            assert text == f"review {row}"
            assert label == row % 2
    assert len(table(reviews, test=0.5, validation=0.2).validation) == 2


def test_the_three_formats_say_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": f'say "{i}", please\nnow', "label": ["no", "yes"][i % 2]} for i in range(10)]
    quoted = ['"' + row["text"].replace('"', '""') + '"' for row in rows]

    def lines(delimiter):
        pairs = [("text", "label"), *zip(quoted, [row["label"] for row in rows], strict=True)]
        return "".join(f"{text}{delimiter}{label}\n" for text, label in pairs)

    files = [
        write(tmp_path / "a.csv", lines(",")),
        write(tmp_path / "a.tsv", lines("\t")),
        write(tmp_path / "a.jsonl", "\n".join(json.dumps(r) for r in rows)),
        str(tmp_path / "a.parquet"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), files[-1])
    assert len({table(file).identity for file in files}) == 1
    assert sorted(texts(table(files[0]).train) + texts(table(files[0]).test)) == sorted(
        r["text"] for r in rows
    )


def test_named_files_pairs_and_semicolons(tmp_path):
    body = "id;a;b;gold\n" + "".join(f"s{i};first {i};second {i};{i % 3}\n" for i in range(9))
    files = {
        "train": write(tmp_path / "one.csv", body),
        "dev": write(tmp_path / "two.csv", body.replace("\ns", "\nv")),
        "test": write(tmp_path / "three.csv", body.replace("\ns", "\nt")),
    }
    source = table(
        files,
        text="a",
        text_pair="b",
        label="gold",
        id="id",
        delimiter=";",
        classes=["x", "y", "z"],
    )
    assert texts(source.train)[4] == ("first 4", "second 4")
    assert source.classes == ("x", "y", "z")
    assert source.validation is not None
    assert source.train.labels.tolist() == [0, 1, 2] * 3


def test_ids_from_a_column_follow_their_rows(tmp_path):
    body = [f"key{i},text {i},{i % 2}\n" for i in range(10)]
    head = "id,text,label\n"
    one = table(write(tmp_path / "a.csv", head + "".join(body)), id="id")
    other = table(write(tmp_path / "b.csv", head + "".join(reversed(body))), id="id")

    def by_id(source):
        return {
            i: text
            for split in (source.train, source.test)
            for i, text in zip(split.ids.tolist(), texts(split), strict=True)
        }

    assert by_id(one) == by_id(other)
    assert set(one.test.ids.tolist()) == set(other.test.ids.tolist())
    numbers = "\n".join(json.dumps({"id": 100 - i, "text": "t", "label": i % 2}) for i in range(10))
    source = table(write(tmp_path / "a.jsonl", numbers), id="id")
    assert sorted(source.train.ids.tolist() + source.test.ids.tolist()) == list(range(91, 101))


def test_missing_labels_are_unlabelled_and_minus_one_is_a_class(tmp_path):
    body = "text,label\n" + "".join(f"t{i},{['-1', '0', '1', ''][i % 4]}\n" for i in range(40))
    source = table(write(tmp_path / "a.csv", body))
    assert source.classes == ("-1", "0", "1")
    assert int((source.train.labels == -1).sum()) == 10
    assert (source.test.labels >= 0).all()


def test_numbers_are_sorted_as_numbers(tmp_path):
    source = table(write(tmp_path / "a.csv", review_lines(24, [str(i) for i in range(12)])))
    assert source.classes == tuple(str(i) for i in range(12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\nb,x,y\n", "Line 3 of .* has 3 values, but the header names 2"),
        ("text,label\na,x\n\n,y\n", "Line 4 of .* has no text in the column 'text'"),
        ("txt,label\na,x\n", "has no column 'text'. Did you mean 'txt'"),
        ("text,label,label\na,x,y\n", "more than one column 'label'"),
        ('text,label\na,x\n"open,y\n', "record that begins on line 3"),
        ("text,label\n", "holds no rows"),
        ("", "has no column"),
        ("text,label\na,1\nb,one\n", None),
    ],
)
def test_csv_errors_name_file_and_line(tmp_path, content, message):
    path = write(tmp_path / "bad.csv", content)
    if message is None:
        assert table(path, test=0.5).classes == ("1", "one")
        return
    with pytest.raises(DataError, match=message) as caught:
        table(path)
    assert "bad.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b"', "Line 2 of .* is not JSON"),
        ('["a", 1]', "Line 1 of .* holds a list"),
        (
            '{"text": "a", "label": 1}\n\n{"text": 5, "label": 1}',
            "Line 3 of .* has a int instead of a text",
        ),
        ('{"text": "a", "lable": 1}', "No line of .* has the key 'label'. Did you mean 'lable'"),
        (
            '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}',
            "Line 1 .* has 1, Line 2 .* has 'x'",
        ),
        ('{"text": "a", "label": 0.5}', "Line 1 of .* has the label 0.5"),
        ('{"text": "a", "label": [1]}', "Line 1 of .* has a list for a label"),
    ],
)
def test_json_errors_name_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        table(write(tmp_path / "bad.jsonl", content))


def test_other_bad_files_are_explained(tmp_path, reviews):
    with pytest.raises(DataError, match="does not exist"):
        table(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="suffix '.txt'"):
        table(write(tmp_path / "a.txt", "x"))
    with pytest.raises(DataError, match="is a folder"):
        table(str(tmp_path))
    with pytest.raises(DataError, match="Line 3 of .* not UTF-8"):
        table(write(tmp_path / "latin.csv", "text,label\nok,a\ncafé,b\n", "latin-1"))
    with pytest.raises(DataError, match="no readable parquet"):
        table(write(tmp_path / "a.parquet", "PAR1 no"))
    with pytest.raises(DataError, match="single character"):
        table(reviews, delimiter="ab")
    with pytest.raises(DataError, match="label 'good'"):
        table(reviews, classes=["bad", "great"])


def test_ids_that_occur_twice_name_both_rows(tmp_path):
    path = write(tmp_path / "a.csv", "id,text,label\n1,a,x\n2,b,y\n1,c,x\n")
    with pytest.raises(DataError, match="Line 4 of .* has the id '1', and so has Line 2"):
        table(path, id="id")


def test_a_test_file_without_labels_is_refused(tmp_path, reviews):
    blind = write(tmp_path / "blind.csv", "text,label\na,\nb,\n")
    with pytest.raises(DataError, match="'test' of .* has no labels.* test='dev'"):
        table({"train": reviews, "dev": reviews, "test": blind})
    unlabelled = table({"train": blind, "test": reviews})
    assert len(unlabelled.train.labelled) == 0


def test_unquoted_files_may_hold_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"so\ta\nhe said "no\tb\n' * 1 + '5"\ta\nx\tb\n')
    assert sorted(texts(table(path, quotes=False, test=0.5).train))
    with pytest.raises(DataError, match="set quotes to false"):
        table(path)


def test_a_long_text_is_read_and_the_global_limit_left_alone(tmp_path):
    import csv

    before = csv.field_size_limit()
    path = write(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",a\ny,b\nz,a\n")
    assert (
        max(map(len, texts(table(path, test=0.4).train) + texts(table(path, test=0.4).test)))
        == 200_000
    )
    assert csv.field_size_limit() == before
