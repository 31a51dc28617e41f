"""Whether .venv can be used as it is; the Makefile asks. Written so that a Python of any age can
read it.

python tools/environment.py stale [given]   print why .venv has to be made anew, nothing if it can
                                            stay; `given`: it has to be one
                                            of this interpreter, otherwise its own interpreter is to
                                            run this
python tools/environment.py version         fail, in one line, unless this Python can run the book
"""

import os
import sys

OLDEST, NEWEST_RUN = (3, 11), (3, 13)
FOLDER = os.path.abspath(".venv")

this = ".".join(str(part) for part in sys.version_info[:3])

if sys.argv[1] == "version":
    if sys.version_info[:2] < OLDEST:
        sys.exit(
            "Python "
            + this
            + " is too old: the book needs Python 3.11 or newer. Name one: make PYTHON=python3.12"
            " test"
        )
    if sys.version_info[:2] > NEWEST_RUN:
        print("Python " + this + " is newer than those with which the book was run (3.11 to 3.13).")
    sys.exit()

noted = {}
if os.path.exists(os.path.join(FOLDER, "pyvenv.cfg")):
    with open(os.path.join(FOLDER, "pyvenv.cfg")) as lines:
        noted = dict([part.strip() for part in line.split("=", 1)] for line in lines if "=" in line)
minor = ".".join(noted.get("version", "?").split(".")[:2])
base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)

if not os.path.exists(FOLDER):
    print("there is none")
elif not os.path.exists(os.path.join(FOLDER, ".installed")):
    print("its installation did not end")
elif not os.path.exists(os.path.join(FOLDER, "bin", "python")):
    print("its Python is gone")
elif not noted.get("command", "").endswith(" " + FOLDER):
    print("it was made in another folder")
elif sys.argv[2:] == ["given"] and base != noted.get("executable"):
    print(
        "it is one of Python "
        + noted.get("version", "?")
        + " ("
        + noted.get("executable", "?")
        + ")"
    )
elif not this.startswith(minor + "."):
    print("its Python was " + minor + " and is " + this)
