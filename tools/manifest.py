"""Write the manifest of a model folder anew, after one of its files was changed on purpose.

python -m tools.manifest weights/nano
"""

from __future__ import annotations

from pathlib import Path

from fpsgen.models.catalog.manifest import write_manifest
from tools.command_line import parser_of

if __name__ == "__main__":
    parser = parser_of("manifest", __doc__)
    parser.add_argument("folder", type=Path, help="a model folder")
    print(write_manifest(parser.parse_args().folder))
