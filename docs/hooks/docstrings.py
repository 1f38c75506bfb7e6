"""Griffe extension: turn what docstrings have of reStructuredText into Markdown for the pages under docs/api."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr):`~?([^`]+)`")
_LINK = r'<autoref identifier="\1" optional><code>\1</code></autoref>'  # a link where a page has the name, else code


def to_markdown(text: str) -> str:
    """Return ``text`` with roles as links, and without the colons that announce code."""
    text = re.sub(r"\s+::$", "", _ROLE.sub(_LINK, text), flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


class MarkdownDocstrings(griffe.Extension):
    """Apply :func:`to_markdown` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of ``obj`` in place."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
