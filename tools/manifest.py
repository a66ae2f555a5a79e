"""Write the manifest of a model folder anew, after one of its files was changed on purpose.

python -m tools.manifest weights/nano
"""

from __future__ import annotations

import sys
from pathlib import Path

from fpsgen.models.catalog.manifest import write_manifest

if __name__ == "__main__":
    print(write_manifest(Path(sys.argv[1])))
