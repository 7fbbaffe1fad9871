"""The layer map of the package names every file, and imports go downward only."""

from __future__ import annotations

import ast
import pathlib
import re

import asyncio_gevent

PACKAGE = pathlib.Path(asyncio_gevent.__file__).parent


def layers() -> list[list[str]]:
    """Return the modules of each layer of the map, from the top down."""
    (map_,) = re.findall(r"Layer map.*?\n\n(.*?)\n\n", asyncio_gevent.__doc__ or "", re.DOTALL)
    lines: list[list[str]] = []
    for line in map_.splitlines():
        # A line that begins with a name opens a layer; the others go on with it.
        if re.match(r" {4}\S", line):
            lines.append([])
        lines[-1] += re.findall(r"(\w+)\.py", line)
    return lines


def layer_of() -> dict[str, int]:
    names = [name for layer in layers() for name in layer]
    assert len(names) == len(set(names)), "a module is named twice"
    return {name: number for number, layer in enumerate(layers()) for name in layer}


def imports(path: pathlib.Path) -> list[tuple[str, int]]:
    """Return the modules of the package that this one imports when it is imported, and where."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.extend(
                (alias.name.removeprefix("asyncio_gevent."), node.lineno)
                for alias in node.names
                if alias.name.startswith("asyncio_gevent")
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            if node.module == "asyncio_gevent":
                found.extend((alias.name, node.lineno) for alias in node.names)
            elif node.module is not None and node.module.startswith("asyncio_gevent."):
                found.append((node.module.removeprefix("asyncio_gevent."), node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def test_the_map_names_every_file() -> None:
    assert set(layer_of()) == {path.stem for path in PACKAGE.glob("*.py")}
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"]


def test_imports_go_downward_only() -> None:
    layer = layer_of()
    upward = [
        f"{path.name}:{line} imports {name}"
        for path in PACKAGE.glob("*.py")
        for name, line in imports(path)
        if layer[name] < layer[path.stem]
    ]
    assert upward == []


def test_no_imports_go_in_a_circle() -> None:
    """Within a layer the order is free, but there is one."""
    left = {path.stem: {name for name, _ in imports(path)} for path in PACKAGE.glob("*.py")}
    while left:
        leaves = [name for name, needed in left.items() if not needed & set(left)]
        assert leaves, f"a circle among {sorted(left)}"
        for name in leaves:
            del left[name]


def test_private_names_of_asyncio_and_gevent_have_one_place() -> None:
    """``from asyncio import _x`` or ``asyncio.x._y`` is for _compat.py and _originals.py."""
    foreign = re.compile(r"\b(?:asyncio|gevent|greenlet)(?:\.[a-z]\w*)*\._(?!_)\w+")
    found = []
    for path in PACKAGE.glob("*.py"):
        if path.stem in ("_compat", "_originals"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.partition("#")[0]
            if foreign.search(code):
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert found == []


def test_files_are_of_a_size_that_can_be_read() -> None:
    sizes = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.glob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 1000} == {}


def test_every_module_says_what_it_is() -> None:
    for path in PACKAGE.glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.name


def test_the_map_is_understood() -> None:
    """Of the checks above: they see what there is to see."""
    assert next(layer[0] for layer in layers()) == "__init__"
    assert "_compat" in layers()[-1]
    assert ("_compat", _line_of("_run.py", "_compat")) in imports(PACKAGE / "_run.py")


def _line_of(name: str, module: str) -> int:
    lines = (PACKAGE / name).read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if f"from asyncio_gevent.{module} " in line)
