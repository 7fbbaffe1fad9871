"""Every Python block of README.md and docs/ runs, and every relative link leads somewhere.

A block fenced with ```` ```python ```` is a program of its own and runs in a fresh process; it must
end with status 0, in time, and print nothing on stderr. Two additions:

- A block fenced with ```` ```output ```` tells what the Python block before it prints, `...` being
  a wildcard (see `expected_output`).
- The comment `<!-- continued -->` before a Python block joins it to the one before it: both run as
  one program.
"""

import dataclasses
import pathlib
import re

import pytest
from expected_output import check_output, run_program

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])

CONTINUED = "<!-- continued -->"
#: The languages of blocks that are not run. Everything else fails, or a misspelt "pyhton" would
#: never be run.
PROSE_LANGUAGES = {"sh", "text", "toml", "ini"}

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^`]*)$")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclasses.dataclass
class Program:
    """Joined Python blocks. Line n of `source` is line n of the page: tracebacks name that line."""

    page: str
    line: int
    source: str
    promise: str | None = None

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def read_programs(text: str, page: str) -> list[Program]:
    """Return the programs of a page; raise ValueError for what would silently not be run."""
    programs: list[Program] = []
    lines = text.splitlines()
    previous_prose = ""  # the last line outside of blocks that is not empty
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        number += 1
        if fence is None:
            previous_prose = lines[number - 1].strip() or previous_prose
            continue
        opened_at = number
        block: list[str] = []
        while number < len(lines) and lines[number].strip() != fence["ticks"]:
            block.append(lines[number].removeprefix(fence["indent"]))
            number += 1
        if number == len(lines):
            raise ValueError(f"{page}:{opened_at}: the block has no end")
        number += 1

        language = fence["language"].strip()
        if language == "python":
            if previous_prose == CONTINUED:
                if not programs or programs[-1].promise is not None:
                    raise ValueError(f"{page}:{opened_at}: there is no block to continue")
                program = programs[-1]
            else:
                program = Program(page, opened_at, "")
                programs.append(program)
            padding = opened_at - program.source.count("\n")
            program.source += "\n" * padding + "".join(f"{line}\n" for line in block)
        elif language == "output":
            if not programs or programs[-1].promise is not None:
                raise ValueError(f"{page}:{opened_at}: there is no program that prints this")
            programs[-1].promise = "\n".join(block)
        elif language not in PROSE_LANGUAGES:
            raise ValueError(
                f"{page}:{opened_at}: blocks in {language or 'no language'!r} are not known"
            )
        previous_prose = ""
    return programs


def all_programs() -> list[Program]:
    return [
        program
        for path in PAGES
        for program in read_programs(
            path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        )
    ]


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.id)
def test_block(program: Program, tmp_path: pathlib.Path) -> None:
    script = tmp_path / pathlib.Path(program.page).with_suffix(".py").name
    script.write_text(program.source, encoding="utf-8")
    printed = run_program([str(script)], cwd=tmp_path, limit=30)
    if program.promise is not None:
        check_output(program.promise, printed)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links(path: pathlib.Path) -> None:
    """Relative links name a file that exists and, if they have one, an anchor of that page."""
    broken = []
    for link in LINK.finditer(path.read_text(encoding="utf-8")):
        target, _, anchor = link["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue  # another site: tests do not use the network
        page = path.parent / target if target else path
        if not page.exists() or (
            anchor and anchor not in anchors(page.read_text(encoding="utf-8"))
        ):
            broken.append(link["target"])
    assert not broken


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_read() -> None:
    assert "README.md" in {program.page for program in all_programs()}
    assert any(program.page.startswith("docs/") for program in all_programs())


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nprint(1)\n", "no end"),
        ("```pyhton\nprint(1)\n```\n", "not known"),
        ("```\nprint(1)\n```\n", "not known"),
        ("```output\n1\n```\n", "no program"),
        (f"{CONTINUED}\n```python\nprint(1)\n```\n", "no block to continue"),
    ],
)
def test_what_would_not_run_is_an_error(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_programs(page, "page.md")


def test_blocks_become_programs() -> None:
    page = (
        "# Page\n\n```python\nx = 1\n```\n\ntext\n\n"
        f"{CONTINUED}\n\n```python\nprint(x)\n```\n\n```output\n1\n```\n\n```python\nprint(2)\n```\n"
    )
    first, second = read_programs(page, "page.md")
    assert first.source.split() == ["x", "=", "1", "print(x)"]
    assert first.promise == "1"
    assert second.promise is None
    # Line numbers are those of the page.
    assert first.source.splitlines().index("print(x)") == page.splitlines().index("print(x)")
    assert second.source.splitlines().index("print(2)") == page.splitlines().index("print(2)")
