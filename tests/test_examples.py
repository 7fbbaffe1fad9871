"""Each example runs in a fresh process, ends, and prints what the comment at its end promises."""

import pathlib
import textwrap

import pytest
from expected_output import check_output, matches, run_program

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
HEADING = "# Expected output:\n"


def promised_output(source: str) -> str:
    """Return the text of the comment "Expected output" that ends `source`."""
    _, heading, comment = source.rpartition(HEADING)
    assert heading, f"no line {HEADING!r}"
    lines = comment.splitlines()
    assert all(line.startswith("#") for line in lines), "the comment is not the end of the file"
    return textwrap.dedent("\n".join(line[1:] for line in lines)).strip("\n")


@pytest.mark.timeout(90)  # the demonstration has a deadline of its own below a minute
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    promise = promised_output(path.read_text(encoding="utf-8"))
    printed = run_program([str(path)], cwd=tmp_path, limit=75)
    check_output(promise, printed)


def test_the_examples_are_found() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert {
        "mixed_app", "quickstart", "blocking_call_in_coroutine", "threads_and_loops"
    } <= names  # fmt: skip


@pytest.mark.parametrize(
    ("promise", "printed", "expected"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a\n", False),
        ("a", "a\nb\n", False),
        ("took ... s", "took 1.5 s\n", True),
        ("took ... s", "took 1.5 s or so\n", False),
        ("took ... s", "took\n1.5 s\n", False),
        ("a\n...\nb", "a\nb\n", True),
        ("a\n...\nb", "a\nx\ny\nb\n", True),
        ("a\n...\nb", "x\na\nb\n", False),
        ("a.c", "abc\n", False),
        ("a", "", False),
    ],
)
def test_matching_is_strict(promise: str, printed: str, expected: bool) -> None:
    assert matches(promise, printed) is expected


def test_a_promise_ends_the_file() -> None:
    assert promised_output(f"print(1)\n\n{HEADING}#\n#     one\n#       two\n") == "one\n  two"
    with pytest.raises(AssertionError, match="no line"):
        promised_output("print(1)\n")
    with pytest.raises(AssertionError, match="not the end"):
        promised_output(f"{HEADING}#     one\nprint(1)\n")
