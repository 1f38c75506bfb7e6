"""KeyboardInterrupt at a chosen line of the package, as Ctrl-C raises it between two lines of Python."""

import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import mtadam_fused

PACKAGE = str(Path(mtadam_fused.__file__).parent)


class Interrupter:
    """A context that raises KeyboardInterrupt before the n-th line that the package runs in it.

    Lines of comprehensions do not count. Nor do those with ``with``: the line stands for the call of ``__exit__`` too,
    before which Python handles no signal.

    Attributes:
        where: file and line of the interrupt; None if there were fewer lines.
        within: the names of the functions that were running.
    """

    def __init__(self, line: int) -> None:
        self.where: tuple[str, int] | None = None
        self.within: set[str] = set()
        self._left = line

    def __enter__(self) -> None:
        self._traced = sys.gettrace()
        sys.settrace(self._enter_frame)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._traced)

    def _enter_frame(self, frame: FrameType, event: str, _: Any) -> Any:
        of_package = frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_name.startswith("<")
        return self._see_line if of_package and self.where is None else None

    def _see_line(self, frame: FrameType, event: str, _: Any) -> Any:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and self.where is None and not linecache.getline(file, line).lstrip().startswith("with "):
            self._left -= 1
            if self._left == 0:
                self.where = (file.removeprefix(PACKAGE)[1:], line)
                caller: FrameType | None = frame
                while caller is not None:
                    self.within.add(caller.f_code.co_name)
                    caller = caller.f_back
                raise KeyboardInterrupt
        return self._see_line
