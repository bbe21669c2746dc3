"""What remains of a child's output."""

from pathlib import Path

from corral.upstream.logfile import LINE_BYTES, TAIL_LINES, LogFile, log_path


def test_the_tail_holds_the_last_lines_in_order() -> None:
    log = LogFile()

    log.write(b"".join(b"line %d\n" % number for number in range(TAIL_LINES + 5)))

    assert log.tail() == [f"line {number}" for number in range(5, TAIL_LINES + 5)]
    assert log.tail(2) == [f"line {TAIL_LINES + 3}", f"line {TAIL_LINES + 4}"]


def test_lines_are_put_together_from_any_pieces() -> None:
    log = LogFile()

    for piece in (b"hel", b"lo\r\nwo", b"", b"rld\n\nwith", b"out end"):
        log.write(piece)

    assert log.tail() == ["hello", "world", "without end"]


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    log = LogFile()

    for _ in range(10):
        log.write(b"x" * LINE_BYTES)

    assert log.tail() == ["x" * LINE_BYTES]


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    log = LogFile()

    log.write(b"\xff\xfe ok\n")

    assert log.tail() == ["\ufffd\ufffd ok"]


def test_a_new_start_begins_a_new_tail_and_goes_on_in_the_file(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "m.log")

    log.write(b"first\nhalf a li")
    log.begin("start 2")
    log.close()

    assert log.tail() == ["start 2"]
    assert (tmp_path / "logs" / "m.log").read_bytes() == b"first\nhalf a listart 2\n"


def test_a_full_file_is_put_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    log = LogFile(path, limit_bytes=10)

    for line in (b"aaaaaaa\n", b"bbbbbbb\n", b"ccccccc\n"):
        log.write(line)
    log.close()

    assert path.read_bytes() == b"ccccccc\n"
    assert path.with_name("m.log.1").read_bytes() == b"bbbbbbb\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.log", "m.log.1"]


def test_a_file_that_is_there_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    path.write_bytes(b"old\n")

    log = LogFile(path)
    log.write(b"new\n")
    log.close()

    assert path.read_bytes() == b"old\nnew\n"


def test_a_directory_that_cannot_be_written_costs_the_file_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = LogFile(tmp_path / "file" / "m.log")

    log.write(b"hello\n")
    log.close()

    assert log.tail() == ["hello"]


def test_no_two_models_share_a_log_file(tmp_path: Path) -> None:
    names = ["org/model", "org%2Fmodel", "org_model", "..", "model:q4@1"]

    paths = {log_path(tmp_path, name) for name in names}

    assert len(paths) == len(names)
    assert {path.parent for path in paths} == {tmp_path}
