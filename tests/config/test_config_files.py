"""Which files the settings came from, and when they are to be read anew."""

import os
from pathlib import Path

import pytest

from corral.config import Files, load
from corral.config.files import Marks, marks_of, to_be_read
from corral.core.errors import ConfigError

A, B = Path("a"), Path("b")
OLD, NEW, NEWER = (1, 10, 100), (1, 20, 200), (1, 30, 300)


@pytest.mark.parametrize(
    ("read", "before", "now", "expected"),
    [
        pytest.param({A: OLD}, {A: OLD}, {A: OLD}, False, id="nothing has changed"),
        pytest.param({A: OLD}, {A: OLD}, {A: NEW}, False, id="it has just changed"),
        pytest.param({A: OLD}, {A: NEW}, {A: NEWER}, False, id="it goes on changing"),
        pytest.param({A: OLD}, {A: NEW}, {A: NEW}, True, id="it has changed and is still"),
        pytest.param({A: OLD}, {A: None}, {A: None}, False, id="it has gone"),
        pytest.param({A: OLD}, {A: None}, {A: NEW}, False, id="it has come back just now"),
        pytest.param({A: None}, {A: NEW}, {A: NEW}, True, id="there is one where there was none"),
        pytest.param({A: None}, {A: None}, {A: None}, False, id="there is none still"),
        pytest.param({A: OLD, B: OLD}, {A: NEW, B: OLD}, {A: NEW, B: NEW}, False, id="one is still, the other is not"),
        pytest.param({A: OLD, B: OLD}, {A: NEW, B: None}, {A: NEW, B: None}, False, id="one has changed, one has gone"),
        pytest.param({A: OLD}, {B: NEW}, {A: OLD}, False, id="other files were read since the last look"),
    ],
)
def test_files_are_read_when_they_have_changed_and_are_whole(
    read: Marks, before: Marks, now: Marks, expected: bool
) -> None:
    assert to_be_read(read, before, now) is expected


def test_whatever_is_done_to_a_file_changes_its_mark(here: Path) -> None:
    file, other = here / "file", here / "other"
    marks = [marks_of([file])]
    file.write_text("one")
    marks.append(marks_of([file]))
    file.write_text("three")
    marks.append(marks_of([file]))
    other.write_text("three")
    os.replace(other, file)
    marks.append(marks_of([file]))
    assert len({tuple(each.values()) for each in marks}) == len(marks)


def test_the_files_that_were_read_are_told_also_those_that_are_not_there(here: Path) -> None:
    (here / "keys.txt").write_text("key-1:ann")
    (here / "up.key").write_text("secret")
    (here / "other.yaml").write_text(
        "models: [{name: a, remote: ['http://127.0.0.1:1', {url: 'http://127.0.0.1:2', key_file: up.key}]}]"
    )
    files = Files()
    load(env={"OPENAI_API_KEYS_FILE": "keys.txt", "CORRAL_CONFIG": "other.yaml"}, files=files)
    there = {Path("other.yaml"), Path("keys.txt"), Path("up.key")}
    assert {path for path, mark in files.read.items() if mark is not None} == there
    assert set(files.read) == {*there, Path(".env")}


def test_the_files_of_settings_that_are_refused_are_told_too(here: Path) -> None:
    (here / "corral.yaml").write_text("models: [{name: a, remote: {url: 'http://127.0.0.1:1', key_file: missing.key}}]")
    files = Files()
    with pytest.raises(ConfigError, match=r"missing\.key"):
        load(env={"OPENAI_API_KEYS_FILE": "missing.txt"}, files=files)
    assert set(files.read) == {Path("corral.yaml"), Path(".env"), Path("missing.key"), Path("missing.txt")}


@pytest.mark.parametrize("remote", ["7", "[[]]", "{key_file: 7}", "{key_file: [a]}", "[{key_file: null}]"])
def test_nonsense_in_place_of_a_key_file_is_somebody_elses_matter(here: Path, remote: str) -> None:
    (here / "corral.yaml").write_text(f"models: [{{name: a, remote: {remote}}}]")
    files = Files()
    with pytest.raises(ConfigError):
        load(env={}, files=files)
    assert set(files.read) == {Path("corral.yaml"), Path(".env")}
