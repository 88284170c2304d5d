"""Every format gives the rows that stand in it; what is wrong is named with its file and place."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk

from nash.data.formats import split_path
from nash.data.rows import TaskRow, data_digest, file_digest, read_rows
from nash.errors import RequestError
from nash.recipes.recipe import DataLayout, FinetuneRecipe, read_recipe

ROWS = [
    TaskRow(source='a, "b"\nc', targets=("x",)),
    TaskRow(source="007", targets=("NA",)),
    TaskRow(source="ü", targets=("null",)),
]
COLUMNS = {"source": [row.source for row in ROWS], "target": [row.targets[0] for row in ROWS], "n": [1, 2, 3]}


def jsonl(path: Path) -> Path:
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def comma(path: Path) -> Path:
    path.write_text(
        'n,source,target\r\n1,"a, ""b""\nc",x\r\n2,007,NA\r\n\r\n3,ü,null\r\n', encoding="utf-8-sig", newline=""
    )
    return path


def parquet(path: Path) -> Path:
    Dataset.from_dict(COLUMNS).to_parquet(path)
    return path


def saved(path: Path) -> Path:
    Dataset.from_dict(COLUMNS).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    ("write", "name"), [(jsonl, "d.jsonl"), (jsonl, "d.txt"), (comma, "d.csv"), (parquet, "d.parquet"), (saved, "d")]
)
def test_the_same_rows_in_every_format(write: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    assert read_rows(path) == ROWS
    digest = data_digest(path, DataLayout())
    assert digest == data_digest(path, DataLayout())
    assert path.is_dir() or digest == file_digest(path)


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('source\ttarget\n"a b\tx"y\n')
    assert read_rows(tmp_path / "d.tsv") == [TaskRow(source='"a b', targets=('x"y',))]


def test_columns_by_name_prefix_and_several_targets(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("en,it,it 2\nhello,ciao,salve\ndog,cane,\ncat,gatto,gatto\n")
    layout = DataLayout(source_column="en", target_columns=["it", "it 2"], prefix="translate: ")
    assert read_rows(path, layout) == [
        TaskRow(source="translate: hello", targets=("ciao", "salve")),
        TaskRow(source="translate: dog", targets=("cane",)),
        TaskRow(source="translate: cat", targets=("gatto",)),
    ]


def test_a_value_within_a_column(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    Dataset.from_dict({"pair": [{"en": "dog", "it": ["cane", "cagna"]}], "a.b": ["x"]}).to_parquet(path)
    found = read_rows(path, DataLayout(source_column="pair.en", target_columns=["pair.it"]))
    assert found == [TaskRow(source="dog", targets=("cane", "cagna"))]
    assert read_rows(path, DataLayout(source_column="a.b", target_columns=["pair.en"]))[0].source == "x"
    with pytest.raises(RequestError, match=r"row 1: column 'pair.de' is missing; the row has 'pair', 'a.b'"):
        read_rows(path, DataLayout(source_column="pair.en", target_columns=["pair.de"]))


def test_classes_are_read_by_their_names(tmp_path: Path) -> None:
    features = Features({"source": Value("string"), "target": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"source": ["a", "b"], "target": [1, 0]}, features=features).save_to_disk(tmp_path / "d")
    assert [row.targets for row in read_rows(tmp_path / "d")] == [("good",), ("bad",)]
    Dataset.from_dict({"source": ["a"], "target": [-1]}, features=features).save_to_disk(tmp_path / "none")
    with pytest.raises(RequestError, match="row 1: target is -1"):
        read_rows(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("d.csv", "source,target\na,x\n\nb\n", r"line 4: 1 cells, but 2 in the header"),
        ("d.csv", 'source,target\n"a\nb",x\nc,\n', r"line 4: target is ''"),
        ("d.csv", 'source,target\na,"x\n', r"line 2: unexpected end of data"),
        ("d.csv", "source,answer\na,x\n", r"line 2: column 'target' is missing; the row has 'source', 'answer'"),
        ("d.csv", "source,target,source\na,x,b\n", r"line 1: .* names a column twice"),
        ("d.csv", "source,target\n", "holds no rows"),
        ("d.csv", "", "holds no rows"),
        ("d.tsv", "source\ttarget\na\tx\ty\n", r"line 2: 3 cells, but 2 in the header"),
        ("d.parquet", "source,target\na,x\n", "cannot be read"),
        ("d.jsonl", '{"source": "a", "target": "x"}\n[]\n', r"line 2: '\[\]' is not an object"),
    ],
)
def test_what_is_malformed_is_named_with_its_place(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(RequestError, match=says) as refusal:
        read_rows(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["absent.csv", "absent.parquet", "absent.jsonl"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(("name", "place"), [("d.jsonl", 12), ("d.csv", 14)])
def test_other_encodings_are_refused(tmp_path: Path, name: str, place: int) -> None:
    text = '{"source": "é", "target": "x"}' if name == "d.jsonl" else "source,target\né,x\n"
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError, match=rf"is not UTF-8 \(.* at byte {place}, line \d\): save it as UTF-8"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"), [("d.jsonl", '{"source": "a", "target": "x"}'), ("d.csv", "source,target\na,x")]
)
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_rows(tmp_path / name) == [TaskRow(source="a", targets=("x",))]


def test_a_cell_may_be_a_book(tmp_path: Path) -> None:
    book = "word " * 100_000
    (tmp_path / "d.csv").write_text(f"source,target\n{book},x\n")
    assert read_rows(tmp_path / "d.csv")[0].source == book


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json"])
@pytest.mark.parametrize("content", ["[]", "{", '"text"'])
def test_a_damaged_folder(tmp_path: Path, name: str, content: str) -> None:
    Dataset.from_dict({"source": ["a"], "target": ["x"]}).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / name).write_text(content)
    with pytest.raises(RequestError, match="cannot be read"):
        read_rows(tmp_path / "d")


def test_a_folder_of_splits(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_dict(COLUMNS), "test": Dataset.from_dict(COLUMNS)}).save_to_disk(tmp_path / "d")
    assert read_rows(split_path(tmp_path / "d", "test")) == ROWS
    with pytest.raises(RequestError, match=r"several splits: give one of .*train, .*test"):
        read_rows(tmp_path / "d")
    with pytest.raises(RequestError, match=r"no data for the split 'dev': add one of dev.jsonl, dev.csv"):
        split_path(tmp_path / "d", "dev")
    jsonl(tmp_path / "test.jsonl")
    assert read_rows(split_path(tmp_path, "test")) == ROWS
    comma(tmp_path / "test.csv")
    with pytest.raises(RequestError, match=r"test.jsonl, test.csv, all for the split 'test'"):
        split_path(tmp_path, "test")


def test_a_folder_that_holds_no_data(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(RequestError, match="cannot be read"):
        read_rows(tmp_path / "d")


def test_a_folders_digest_is_that_of_what_is_in_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "d")
    before = data_digest(path, DataLayout())
    next(path.glob("*.arrow")).write_bytes(b"other")
    assert data_digest(path, DataLayout()) != before


def test_data_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> Dataset:
        asked.append((name, config, split, revision))
        return load_from_disk(saved(tmp_path / "d")) if len(asked) == 1 else Dataset.from_dict(COLUMNS)

    monkeypatch.setattr("datasets.load_dataset", load)
    assert read_rows(Path("hub:abisee/cnn_dailymail@a1b2:3.0.0:validation")) == ROWS
    assert read_rows(Path("hub:squad:train")) == ROWS
    assert asked == [("abisee/cnn_dailymail", "3.0.0", "validation", "a1b2"), ("squad", None, "train", None)]
    path = Path("hub:squad:train")
    assert data_digest(path, DataLayout()) == data_digest(path, DataLayout())
    assert data_digest(path, DataLayout()) != data_digest(path, DataLayout(prefix="q: "))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match=r"hub:nobody/nothing:train cannot be loaded .*needs a network") as refusal:
        read_rows(Path("hub:nobody/nothing:train"))
    assert "\n" not in str(refusal.value)
    with pytest.raises(RequestError, match=r"write hub:OWNER/NAME\[@REVISION\]\[:CONFIG\]:SPLIT"):
        read_rows(Path("hub:nobody/nothing"))


@pytest.mark.parametrize("name", ["d.parquet", "d", "hub:a/b:train"])
def test_without_the_extra(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "d").mkdir()
    with pytest.raises(RequestError, match=r"pip install 'nash\[datasets\]'"):
        read_rows(Path(name) if name.startswith("hub:") else tmp_path / name)


def test_a_recipe_names_columns_and_the_hub(tmp_path: Path) -> None:
    recipe_file = tmp_path / "r.toml"
    recipe_file.write_text(
        'model = "m"\n[training]\n[data]\ntrain = "hub:a/b:train"\nvalidation = "v.csv"\n'
        'source_column = "en"\ntarget_columns = ["it", "it2"]\nprefix = "to Italian: "\n'
    )
    data = read_recipe(FinetuneRecipe, recipe_file).data
    assert (data.train, data.validation) == (Path("hub:a/b:train"), tmp_path / "v.csv")
    assert (data.source_column, data.target_columns, data.prefix) == ("en", ["it", "it2"], "to Italian: ")
    recipe_file.write_text('model = "m"\n[training]\n[data]\ntrain = "t"\nvalidation = "v"\ntarget_columns = []\n')
    with pytest.raises(RequestError, match=r"data\.target_columns"):
        read_recipe(FinetuneRecipe, recipe_file)
