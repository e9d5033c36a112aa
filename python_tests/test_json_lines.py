"""JSON Lines: where lines end, what may surround them, and errors that name file and line."""

import json

import pytest

from edlm_engine.checkpoints.json_lines import read_json_lines


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        (tmp_path / "x.jsonl").write_bytes(content)
        return list(read_json_lines(tmp_path / "x.jsonl"))

    return read


@pytest.mark.parametrize("separator", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
def test_only_line_feeds_end_lines(read, separator):
    text = f"before{separator}after"
    escaped = separator < " "  # JSON has control characters in strings as escapes alone
    line = json.dumps({"text": text}, ensure_ascii=escaped).encode()
    assert read(line + b"\n" + line) == [(1, {"text": text}), (2, {"text": text})]


def test_carriage_returns_and_a_byte_order_mark_are_no_content(read):
    assert read(b'\xef\xbb\xbf"a"\r\n"b"\r\n') == [(1, "a"), (2, "b")]
    assert read("\ufeff".encode()) == []
    with pytest.raises(ValueError, match=r"x\.jsonl:2: no valid JSON"):
        read(b'"a"\n\xef\xbb\xbf"b"\n')  # a mark belongs at the beginning of the file alone
    with pytest.raises(ValueError, match=r"x\.jsonl:1: no valid JSON: Extra data"):
        read(b'"a"\r"b"\n')


def test_blank_lines_are_skipped_and_counted(read):
    assert read(b'\n  \t\n"a"\n\r\n\n[2]\n\n') == [(3, "a"), (6, [2])]
    assert read(b"") == [] and read(b"\n\n") == []
    assert read(b"3") == [(1, 3)]
    with pytest.raises(ValueError, match=r"x\.jsonl:4: no valid JSON: .*, in 'not json'$"):
        read(b'{"prompt": "a"}\n\n\nnot json\n')


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'"caf\xe9"', r"x\.jsonl:2: byte 5 of the line is 0xe9, which is no UTF-8$"),
        (b'  {"a": 1', r"x\.jsonl:2: no valid JSON: Expecting ',' delimiter \(column 10\), in"),
        (b"[" * 100_000, r"x\.jsonl:2: no valid JSON: .*recursion"),
        (b"1" * 5000, r"x\.jsonl:2: no valid JSON: .*4300 digits"),
        ("\u00a0".encode(), r"x\.jsonl:2: no valid JSON"),
    ],
)
def test_broken_lines_are_named_and_not_repeated_whole(read, line, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(b'"fine"\n' + line + b"\n")
    assert len(str(caught.value)) < 400


def test_values_before_a_broken_line_come_first(tmp_path):
    (tmp_path / "x.jsonl").write_text('"a"\n?\n')
    lines = read_json_lines(str(tmp_path / "x.jsonl"))
    assert next(lines) == (1, "a")
    with pytest.raises(ValueError, match=r"x\.jsonl:2"):
        next(lines)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        list(read_json_lines(tmp_path / "none.jsonl"))
