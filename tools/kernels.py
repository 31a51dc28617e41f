"""What the kernels that run the chapters inherit: nothing of the reader's own settings, one thread.

Imported by tools/notebooks.py, which writes the notebooks, and by book/conftest.py, which runs them
again.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import tempfile
from pathlib import Path


@functools.cache
def use_plain_settings() -> tempfile.TemporaryDirectory[str]:
    """Change the environment of this process for the kernels that it starts; return the folder that
    has to live as long.

    A Matplotlib rc file, an IPython configuration or startup script, another kernel of the same
    name, Python's own switches: each would change figures, outputs or which assertions run. HOME
    may be missing or read-only.
    """
    folder = tempfile.TemporaryDirectory(prefix="book-")
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "MPLBACKEND"):
        os.environ.pop(name, None)
    for name in ("OPTIMIZE", "STARTUP", "INSPECT", "WARNINGS", "DEVMODE", "VERBOSE"):
        os.environ.pop(f"PYTHON{name}", None)
    os.environ |= {
        "IPYTHONDIR": os.path.join(folder.name, "ipython"),
        "JUPYTER_CONFIG_DIR": os.path.join(folder.name, "config"),
        "JUPYTER_DATA_DIR": os.path.join(folder.name, "data"),
        "JUPYTER_RUNTIME_DIR": os.path.join(folder.name, "runtime"),
        "MATPLOTLIBRC": os.devnull,
        "OMP_NUM_THREADS": "1",  # more threads only slow these small arrays down
    }
    # Without a place in HOME, Matplotlib makes one for this process and its kernels, and lists the
    # fonts there; each says so on standard error, which would be an output of the chapter. So it is
    # done here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    matplotlib.get_configdir()
    if not list(Path(matplotlib.get_cachedir()).glob("fontlist-*.json")):
        importlib.import_module("matplotlib.font_manager")
    return folder
