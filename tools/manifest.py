"""Write the manifest of a model folder anew, after one of its files was changed on purpose.

python -m tools.manifest weights/nano
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fpsgen.models.catalog.manifest import write_manifest

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.manifest", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a model folder")
    print(write_manifest(parser.parse_args().folder))
