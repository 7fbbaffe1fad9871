"""Run a script, patched or plain: launch.py (patched|plain) SECONDS SCRIPT [ARGUMENT...].

A script that does not end within so many seconds prints where its threads are, and ends.
"""

import sys

if sys.argv[1] == "patched":
    from gevent import monkey

    monkey.patch_all()

import faulthandler
import runpy
import signal

# A job in the background of a shell script starts with SIGINT ignored, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
del sys.argv[:3]
runpy.run_path(sys.argv[0], run_name="__main__")
