"""The Debian example's data: descriptions read, junk left out, splits that share nothing, a tokenizer without gaps."""

import json
import subprocess
import sys
import unicodedata
from collections import Counter
from hashlib import md5
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from examples.debian import package_index, prepare
from examples.debian.description_text import blocks, plain_key, sentences, synopsis_of
from examples.debian.first_words import first_words, scores
from examples.debian.package_index import IndexUnavailableError, Package, fetch, own_mirror, read_packages, read_stanzas
from examples.debian.prepare import Example, into_splits, split_of, synopsis_examples, translation_examples
from examples.debian.selection import MOST_OF_A_SOURCE, select
from examples.unigram_tokenizer import BYTES, save_tokenizer, train_tokenizer
from nash.data.rows import TaskRow, read_rows
from nash.modeling.folders import load_tokenizer

ENGLISH = """fast parser.
 A parser that is  fast,
 e.g. XML. It needs no memory.
 .
 It reads:
  * plain
    text;
  - HTML.
 1) and more
"""
ITALIAN = """analizzatore veloce
 Un analizzatore veloce, ad es. XML. Non ha bisogno di memoria.
 .
 Legge:
  * testo
    semplice;
  * HTML.
 1) e altro
"""


def package(
    name: str, english: str, *, italian: str | None = None, source: str = "", section: str = "utils"
) -> Package:
    descriptions = {"en": english} | ({} if italian is None else {"it": italian})
    return Package(name=name, source=source or name, section=section, descriptions=descriptions)


def described(words: str, synopsis: str = "a good tool") -> str:
    return f"{synopsis}\n {words} is a tool that does something rather well."


def test_descriptions_are_read_as_the_policy_writes_them() -> None:
    assert synopsis_of(ENGLISH) == "fast parser"
    assert blocks(ENGLISH) == [
        "A parser that is fast, e.g. XML. It needs no memory.",
        "It reads:",
        "- plain text;",
        "- HTML.",
        "- and more",
    ]
    assert sentences(blocks(ENGLISH)[0]) == ["A parser that is fast, e.g. XML.", "It needs no memory."]
    assert sentences("- One. Two!") == ["One.", "Two!"]
    assert blocks("synopsis alone") == []
    assert plain_key("GCC 12, for È!") == "gccforè"


@pytest.mark.parametrize(
    ("junk", "reason"),
    [
        (
            package("a", "transitional package\n This is a transitional dummy package, it can be removed."),
            "transitional",
        ),
        (package("a", described("This"), section="metapackages"), "section metapackages"),
        (package("librust-a+b-dev", described("This"), section="rust"), "Rust feature"),
        (package("a", "a good tool\n Too short."), "less than 8 words"),
        (
            package(
                "a", "b\n This package contains the source for the Rust b crate, packaged by debcargo for dh-cargo."
            ),
            "less than 8 words",
        ),
        (package("a", described("This", synopsis="tool")), "synopsis of one word"),
        (Package(name="a", source="a", section="utils", descriptions={}), "no description"),
        (package("a", described("Theirs 2")), "same description"),
    ],
)
def test_junk_is_left_out_and_counted(junk: Package, reason: str) -> None:
    dropped: Counter[str] = Counter()
    kept = select([package("0", described("Theirs 1")), junk], dropped)
    assert [p.name for p in kept] == ["0"]
    assert [count for why, count in dropped.items() if reason in why] == [1]
    assert dropped.total() == 1


def test_of_one_source_a_few_are_enough() -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    family = [package(f"lib{'x' * i}", described(word), source="s") for i, word in enumerate(words)]
    dropped: Counter[str] = Counter()
    assert select(family, dropped) == family[:MOST_OF_A_SOURCE]
    assert dropped == {f"more than {MOST_OF_A_SOURCE} packages of one source": len(words) - MOST_OF_A_SOURCE}


def test_a_source_package_is_in_one_split_for_ever() -> None:
    names = [f"source-{i}" for i in range(5000)]
    shares = Counter(split_of(name) for name in names)
    assert shares["train"] / 5000 == pytest.approx(0.91, abs=0.02)
    assert shares["validation"] / 5000 == pytest.approx(0.03, abs=0.01)
    assert shares["test"] / 5000 == pytest.approx(0.06, abs=0.02)
    # The hash must never change: published figures hang on it.
    assert [split_of(name) for name in ("bash", "prometheus", "artha", "gcc-12")] == [
        "train",
        "test",
        "validation",
        "train",
    ]


def test_a_text_is_in_one_split_only() -> None:
    def example(source: str, key: str) -> Example:
        return Example(package=source, source_package=source, source=f"{source} {key}", targets=("t",), key=key)

    of: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for i in range(300):
        of[split_of(f"s{i}")].append(f"s{i}")
    train, validation, test = of["train"], of["validation"], of["test"]
    examples = [example(s, "everywhere") for s in (*train[:2], *validation[:2], *test[:2])]
    examples += [example(validation[0], "held out"), example(test[0], "held out"), example(validation[1], "own")]
    dropped: Counter[str] = Counter()
    splits = into_splits(examples, dropped)
    assert {split: [e.key for e in rows] for split, rows in splits.items()} == {
        "train": ["everywhere", "everywhere"],
        "validation": ["own"],
        "test": ["held out"],
    }
    assert dropped == {
        "test text that stands in train too": 2,
        "validation text that stands in train too": 2,
        "validation text that stands in test too": 1,
    }


def test_synopsis_rows() -> None:
    (row,) = synopsis_examples([package("libx-dev", ENGLISH)])
    assert row.source.startswith(
        "libx-dev: A parser that is fast, e.g. XML. It needs no memory. It reads: - plain text;"
    )
    assert row.targets == ("fast parser",)


def test_translation_rows() -> None:
    dropped: Counter[str] = Counter()
    packages = [
        package("a", ENGLISH, italian=ITALIAN),
        package("b", "fast parser\n Foo bar.", italian="parser veloce\n Foo bar."),
        package("c", "fast parser\n One. Two.\n .\n Three.", italian="parser veloce\n Uno. Due."),
        package("d", ENGLISH),
    ]
    rows = {row.source: row.targets for row in translation_examples(packages, dropped)}
    assert rows == {
        "fast parser": ("parser veloce", "analizzatore veloce"),  # the more frequent one first
        "A parser that is fast, e.g. XML.": ("Un analizzatore veloce, ad es. XML.",),
        "It needs no memory.": ("Non ha bisogno di memoria.",),
        "It reads:": ("Legge:",),
        "plain text;": ("testo semplice;",),
        "and more": ("e altro",),
    }
    assert dropped == {
        "text of one word": 1,  # HTML.
        "text that is not translated": 1,
        "long description that is laid out in another way": 1,
        "without an Italian description": 1,
    }


TEXTS = ["a fast parser for text", "a good tool for good texts", "fonti e testi: un buon programma"] * 20


SMALL = train_tokenizer(TEXTS, 320)


def test_the_tokenizer_is_of_t5s_kind(tmp_path: Path) -> None:
    save_tokenizer(SMALL, tmp_path / "t", 128)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)
    assert loaded.convert_ids_to_tokens([0, 1, 2, 3, 258]) == ["<pad>", "</s>", "<unk>", BYTES[0], BYTES[255]]
    ids = load_tokenizer(tmp_path / "t")("good text").input_ids
    assert ids[-1] == 1
    assert len(ids) < len("good text")
    assert loaded.decode(ids, skip_special_tokens=True) == "good text"


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="\u2581"), max_size=12))
def test_every_text_survives(text: str) -> None:
    """All but the mark that stands for a space in SentencePiece's tokens: it comes back as one."""
    ids = SMALL.encode(text).ids
    assert 2 not in ids
    assert SMALL.decode(ids, skip_special_tokens=True) == " ".join(unicodedata.normalize("NFC", text).split())


def write_index(folder: Path, packages: dict[str, tuple[str, str, str | None]]) -> None:
    """An index as apt leaves it: of each package its source, English and Italian descriptions."""
    lists = folder / "lists"
    lists.mkdir(parents=True)
    stanzas: dict[str, list[str]] = {"Packages": [], "Translation-en": [], "Translation-it": []}
    for name, (source, english, italian) in packages.items():
        key = md5(english.encode(), usedforsecurity=False).hexdigest()
        stanzas["Packages"].append(
            f"Package: {name}\nSource: {source} (1.0)\nSection: utils\nTag: a,\n b\nDescription-md5: {key}\n"
        )
        stanzas["Translation-en"].append(f"Package: {name}\nDescription-md5: {key}\nDescription-en: {english}\n")
        if italian is not None:
            stanzas["Translation-it"].append(f"Package: {name}\nDescription-md5: {key}\nDescription-it: {italian}\n")
    for ending, texts in stanzas.items():
        (lists / f"mirror_dists_{ending}").write_text("\n".join(texts), encoding="utf-8")


def test_the_index_is_read(tmp_path: Path) -> None:
    write_index(tmp_path, {"b": ("src", ENGLISH.rstrip(), ITALIAN.rstrip()), "a": ("src", described("X"), None)})
    first, second = read_packages(tmp_path)
    assert (first.name, first.source, first.section, list(first.descriptions)) == ("a", "src", "utils", ["en"])
    assert second.descriptions == {"en": ENGLISH.rstrip(), "it": ITALIAN.rstrip()}
    assert next(read_stanzas(tmp_path / "lists" / "mirror_dists_Packages"))["Tag"] == "a,\n b"
    with pytest.raises(IndexUnavailableError, match="0 lists called Translation-en"):
        read_packages(tmp_path / "absent")


def told_by_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    """An apt that tells these lists and has nothing else."""
    for name in ("apt-get", "apt-config"):
        (folder / name).write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join(lines) + "\nE\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_mirror_is_the_machine_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    security = "Debian\tbookworm-security\thttp://mirror.example/debian-security/"
    other = "Debian\ttrixie\thttp://a.example/debian/"
    own = "\tbookworm\thttp://mirror.example/debian/"  # never updated: apt does not know its origin
    foreign = "Ubuntu\tnoble\thttp://a.example/ubuntu/"
    told_by_apt(tmp_path, monkeypatch, [security, other, own, foreign])
    assert own_mirror("bookworm") == "http://mirror.example/debian"
    assert own_mirror("sid") == "http://a.example/debian"
    told_by_apt(tmp_path, monkeypatch, [security, foreign])
    with pytest.raises(IndexUnavailableError, match="--mirror URL"):
        own_mirror("bookworm")


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IndexUnavailableError, match="apt-get is not here: run this on Debian or Ubuntu"):
        fetch(tmp_path, "http://mirror.example/debian", "bookworm")
    assert not list(tmp_path.iterdir())
    module = [sys.executable, "-m", "examples.debian.prepare", "--out", str(tmp_path / "data")]
    done = subprocess.run(module, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1
    assert done.stderr.startswith("error: apt-get is not here")


def test_both_tasks_from_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [first + second for first in letters for second in letters[:8]]
    write_index(
        tmp_path / "index",
        {
            name: (
                f"source-{name}",
                described(name, f"good {name} tool"),
                f"buon attrezzo {name}\n {name} serve a poco.",
            )
            for name in names
        },
    )
    monkeypatch.setattr(prepare, "fetch", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["prepare", "--out", str(tmp_path)])
    prepare.main()
    printed = capsys.readouterr().out
    for task in ("synopsis", "translate"):
        sources: dict[str, set[str]] = {}
        for split in prepare.SPLITS:
            rows = read_rows(tmp_path / task / f"{split}.jsonl")
            assert f"{split}: {len(rows)} rows" in printed
            lines = (tmp_path / task / f"{split}.jsonl").read_text().splitlines()
            sources[split] = {json.loads(line)["package"] for line in lines}
            assert all(split_of(f"source-{name}") == split for name in sources[split])
        assert set.union(*sources.values()) == set(names)
        tokens = load_tokenizer(tmp_path / task / "tokenizer")
        assert tokens.decode(tokens("good tool").input_ids, skip_special_tokens=True) == "good tool"


def test_apt_keeps_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine says about mirrors stands; its hooks, its folders and its languages do not."""
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    dump = 'Acquire::http::Proxy "http://proxy:1";\nAcquire::Languages:: "none";\nAPT::Update::Post-Invoke:: "rm -r /";'
    for name, script in {"apt-config": f"cat <<'E'\n{dump}\nE", "apt-get": f'cp "$APT_CONFIG" {log}'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(package_index, "KEYRING", tmp_path / "bin" / "apt-get")
    fetch(tmp_path / "index", "http://mirror.example/debian", "bookworm")
    settings = log.read_text().splitlines()
    assert 'Acquire::http::Proxy "http://proxy:1";' in settings
    assert 'Acquire::Languages { "en"; "it"; };' in settings
    assert not [line for line in settings if "none" in line or "Invoke" in line]
    folders = [line for line in settings if line.startswith("Dir") and "methods" not in line and '""' not in line]
    assert all(str(tmp_path / "index") in line or "/dev/null" in line for line in folders)
    monkeypatch.setattr(package_index, "KEYRING", tmp_path / "absent")
    with pytest.raises(IndexUnavailableError, match="install the package debian-archive-keyring"):
        fetch(tmp_path / "index", "http://mirror.example/debian", "bookworm")


def test_the_first_words_of_a_description() -> None:
    rows = [
        TaskRow(source="foo: a tool: it does things well", targets=("a tool: it does",)),
        TaskRow(source="bar: reads mail", targets=("writes mail",)),
    ]
    assert first_words(rows[0], 4) == "a tool: it does"
    assert scores(rows, 4)["rouge1"] == pytest.approx((100.0 + 50.0) / 2)
