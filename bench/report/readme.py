"""Write the recorded tables into README.md: between ``<!-- begin FILE -->`` and ``<!-- end FILE -->`` goes FILE."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def with_records(text: str) -> str:
    """Return ``text`` with every block filled from its file."""
    return _BLOCK.sub(lambda match: f"{match[1]}\n{(ROOT / match[2]).read_text().strip()}\n\n{match[3]}", text)


def fill() -> None:
    """Fill README.md."""
    readme = ROOT / "README.md"
    readme.write_text(with_records(readme.read_text()))


if __name__ == "__main__":
    fill()
