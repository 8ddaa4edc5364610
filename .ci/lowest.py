"""Prints the lowest versions that setup.cfg allows, of the program and its extras, as constraints for pip."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

setup = configparser.ConfigParser()
setup.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
needs = [setup["options"]["install_requires"]]
needs += [lines for extra, lines in setup["options.extras_require"].items() if extra not in ("dev", "bench")]
for line in sorted(set("\n".join(needs).split())):
    print(re.sub(r"(\[.*\])?>=", "==", line))
