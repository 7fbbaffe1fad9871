"""gevent imports its loop while it is being imported, before any patching."""

import sys

import gevent

assert "asyncio_gevent.gevent_loop" in sys.modules, "an import that gevent swallows has failed"

from gevent import monkey

monkey.patch_all()  # without a warning, which would be an error
gevent.sleep(0)
assert gevent.config.loop.__name__ == "GeventLoop"
assert type(gevent.get_hub().loop) is gevent.config.loop
print("ok")
