"""Show how far the benchmarks are: one line on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TextIO

EVERY = 15.0  # seconds between lines, where there is no terminal


class Progress:
    """The cases that have begun, out of all.

    Args:
        total: number of cases.
        file: where a bar is drawn, if that is a terminal and tqdm is installed.
        say: prints a line, where no bar is drawn.
    """

    def __init__(self, total: int, file: TextIO, say: Callable[[str], None]) -> None:
        self._total, self._say = total, say
        self._begun, self._case = 0, ""
        self._said = -EVERY
        self._bar = make_bar(total, file) if file.isatty() and find_spec("tqdm") else None

    def begin(self, case: str) -> None:
        """Show that a case begins, if it has not begun yet, and so that those before it are done."""
        if case == self._case:
            return
        self._case = case
        if self._bar is not None:
            self._bar.n = self._begun
            self._bar.set_description_str(case)  # which draws
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            self._say(f"{self._begun + 1} of {self._total} cases: {case}")
        self._begun += 1

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def make_bar(total: int, file: TextIO) -> Any:
    """Make an empty bar."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread that draws while a case is measured
    form = "{n_fmt}/{total_fmt} |{bar:25}| {elapsed}<{remaining}  {desc}"
    return tqdm(total=total, file=file, bar_format=form, leave=False, dynamic_ncols=True)
