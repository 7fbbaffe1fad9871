"""Check an installed wheel: it is the one that is imported, it is complete, and it works.

Run it with `-W error` by the interpreter of an environment that has the wheel and its dependencies
only.
"""

import asyncio
import importlib.metadata
import pathlib
import sys

import asyncio_gevent

package = pathlib.Path(asyncio_gevent.__file__).parent
assert pathlib.Path(sys.prefix) in package.parents, f"imported from {package}, not from the wheel"
assert (package / "py.typed").is_file(), "py.typed is missing"

files = importlib.metadata.files("asyncio-gevent") or []
roots = {file.parts[0] for file in files if not file.parts[0].endswith(".dist-info")}
assert roots == {"asyncio_gevent"}, f"the wheel installs more than the package: {sorted(roots)}"

version = importlib.metadata.version("asyncio-gevent")
assert version == asyncio_gevent.__version__, f"{version} != {asyncio_gevent.__version__}"


async def main() -> str:
    assert isinstance(asyncio.get_running_loop(), asyncio_gevent.EventLoop)
    await asyncio.sleep(0)
    return "works"


print(f"asyncio-gevent {version} on Python {sys.version.split()[0]}: {asyncio_gevent.run(main())}")
