"""What the project's files say about each other stays true."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def lower_bounds() -> dict[str, str]:
    """Return the runtime dependencies of pyproject.toml and their lower bounds."""
    # By hand: tomllib came with Python 3.11.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    return dict(re.findall(r'^ *"([\w-]+)>=([\d.]+)",', section[1], flags=re.MULTILINE))


def test_the_runtime_needs_gevent_and_greenlet_only() -> None:
    assert set(lower_bounds()) == {"gevent", "greenlet"}


def test_the_oldest_versions_are_those_that_are_tested() -> None:
    constraints = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8")
    assert (
        dict(re.findall(r"^([\w-]+)==([\d.]+)$", constraints, flags=re.MULTILINE)) == lower_bounds()
    )
