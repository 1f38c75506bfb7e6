"""MkDocs hook for what bench/results has: publish its pictures, and keep the numbers of its tables together."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "bench" / "results"
_CELL = re.compile(r"<t[dh]>.*?</t[dh]>")
_UNBROKEN = re.compile(r"[\d.e+-]+ ± [\d.e+-]+|[(\[][\w.+-]+(?:, | to | )[\w.+-]+[)\]]")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures as results/FOLDER/NAME.png; they are not in the docs folder."""
    for path in sorted(RESULTS.glob("*/*.png")):
        name = path.relative_to(RESULTS).as_posix()
        files.append(File.generated(config, f"results/{name}", abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Let no line of a table break in the middle of ``96.7 ± 1.2``, ``[0.1, 0.2]`` or ``(lr 0.01)``."""
    return _CELL.sub(lambda cell: _UNBROKEN.sub(lambda found: found[0].replace(" ", "\u00a0"), cell[0]), html)
