"""A record of what an optimizer does to the loss terms, from step to step."""

import math
import weakref
from collections import deque
from importlib import import_module
from typing import Any

import torch

from .backends.device import is_capturing
from .combined_adam import CombinedAdam
from .mtadam import MTAdam
from .telemetry import OF_ALL_PARAMS, Label, Row, describe

COLUMNS = ("step", "quantity", "term", "other", "parameter", "value")  # of to_pandas()


class Recorder:
    """Record what an optimizer does to the loss terms, every few steps.

    It sees the steps of the optimizer by a hook, and copies small tensors on their devices: nothing waits for a GPU
    until the rows are read. ::

        optimizer = BalancedAdam(model.named_parameters(), lr=1e-3)
        recorder = Recorder(optimizer, every=10)
        ...
        recorder.plot().figure.savefig("scales.png")

    Of MTAdam and BalancedAdam it keeps for each term and parameter the ``"scale"`` that the gradient was multiplied by
    and the ``"running_norm"``: 2 K L numbers a row, for K terms and L parameter tensors. Of CombinedAdam it keeps the
    ``"weight"`` of each term, and for each pair of terms and each parameter the ``"cosine"`` of their gradients (see
    :meth:`CombinedAdam.term_cosines`): K + K (K - 1) L / 2 numbers. Parameters go by their names if the optimizer was
    made from ``named_parameters()``, else by their positions.

    Steps that are captured in a CUDA graph, or replayed, are neither recorded nor counted. Copies of the optimizer
    have no recorder. A recorder that nothing refers to any more records no more. Of several processes that train
    together, one alone may have a recorder: it talks to none of the others.

    Args:
        optimizer: an MTAdam, BalancedAdam or CombinedAdam.
        every: steps from one row to the next; the first step has a row.
        max_rows: the oldest rows are dropped so that no more are kept; default all are kept.

    Raises:
        TypeError: another optimizer.
        ValueError: ``every`` or ``max_rows`` below 1.

    Attributes:
        step: number of the last step. Set it to go on from another number, as after loading a checkpoint.
    """

    def __init__(self, optimizer: MTAdam | CombinedAdam, every: int = 10, *, max_rows: int | None = None) -> None:
        if not isinstance(optimizer, (MTAdam, CombinedAdam)):
            raise TypeError(
                f"optimizer is a {type(optimizer).__name__}; it must be an MTAdam, BalancedAdam or CombinedAdam"
            )
        for name, value in (("every", every), ("max_rows", max_rows)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.step = 0
        self._every = every
        self._rows: deque[Row] = deque(maxlen=max_rows)
        recorder = weakref.ref(self)  # the optimizer must not keep it

        @torch._disable_dynamo
        def look(optimizer: MTAdam | CombinedAdam, *_: Any) -> None:
            if (found := recorder()) is not None:
                found._look(optimizer)

        handle = optimizer.register_step_post_hook(look)
        self._detach = weakref.finalize(self, handle.remove)

    def __len__(self) -> int:
        """Return the number of rows that are kept."""
        return len(self._rows)

    def _look(self, optimizer: MTAdam | CombinedAdam) -> None:
        """Keep a row after a step, if it is time to."""
        if not optimizer.terms or any(map(is_capturing, optimizer._backends)):
            return
        self.step += 1
        if (self.step - 1) % self._every == 0:
            labels: list[Label] = [*optimizer._param_names()] or [*range(len(optimizer._params()))]
            self._rows.append(Row(self.step, labels, optimizer._readings()))

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self) -> list[Row]:
        """Return the rows, with their values on the CPU."""
        for row in self._rows:
            for reading in row.readings.values():
                reading.to_host()
        return list(self._rows)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as numbers, the oldest first.

        Returns:
            Dicts with ``"step"`` and, by quantity, ``{term: {parameter: number}}``, as in
            ``row["scale"]["depth"]["conv1.weight"]``; ``{(term, other): {parameter: number}}`` for ``"cosine"``;
            ``{term: number}`` for ``"weight"``. NaN where a term has not reached the parameter. Rows have the terms and
            parameters that were known at their step.
        """
        found = []
        for row in self._read():
            values: dict[str, Any] = {"step": row.step} | {quantity: {} for quantity in row.readings}
            for quantity, key, label, value in row.entries():
                if label is None:
                    values[quantity][key] = value
                else:
                    values[quantity].setdefault(key, {})[label] = value
            found.append(values)
        return found

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one number per row.

        Its columns are "step", "quantity", "term", "other" (the second term of a cosine, else None), "parameter" (None
        for weights) and "value". To see one quantity as a table, with a column for each term and parameter::

            frame[frame.quantity == "scale"].pivot(index="step", columns=["term", "parameter"], values="value")

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = import_optional("pandas", "to_pandas()")
        lines = [
            (row.step, quantity, *(key if isinstance(key, tuple) else (key, None)), label, value)
            for row in self._read()
            for quantity, key, label, value in row.entries()
        ]
        return pandas.DataFrame(lines, columns=list(COLUMNS))

    def write(self, writer: Any) -> None:
        """Write the rows that have not been written yet to TensorBoard.

        Each number is a scalar such as ``scale/depth/conv1.weight``, ``weight/depth`` or
        ``cosine/depth, normals/conv1.weight``; NaNs are left out.

        Args:
            writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar(tag, value, step)``.
        """
        for row in self._read():
            if row.is_written:
                continue
            for quantity, key, label, value in row.entries():
                if not math.isnan(value):
                    tag = [quantity, describe(key)] if label is None else [quantity, describe(key), str(label)]
                    writer.add_scalar("/".join(tag), value, row.step)
            row.is_written = True

    def plot(self, quantity: str | None = None, *, over: str = "parameters", axes: Any = None) -> Any:
        """Draw a quantity with matplotlib.

        Args:
            quantity: ``"scale"`` (default of MTAdam and BalancedAdam), ``"running_norm"``, ``"cosine"`` (default of
                CombinedAdam) or ``"weight"``.
            over: ``"parameters"``, a heat map of the last row, with a line for each parameter; or ``"steps"``, a curve
                for each term: the median over the parameters, and a band from the least to the largest. Weights are
                always drawn over the steps.
            axes: ``matplotlib.axes.Axes`` to draw on; default new ones.

        Returns:
            The axes; ``axes.figure.savefig(path)`` saves the picture.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no row yet, or another ``quantity`` or ``over``.
        """
        rows = self._read()
        if not rows:
            raise ValueError("the recorder has no rows yet; plot after a step of its optimizer")
        known = list(rows[-1].readings)
        quantity = quantity or known[-1 if "cosine" in known else 0]
        if quantity not in known or over not in ("parameters", "steps"):
            raise ValueError(
                f"plot({quantity!r}, over={over!r}) is not possible; quantities are {known}, and over is 'parameters' "
                "or 'steps'"
            )
        import_optional("matplotlib", "plot()")
        from . import plots

        if over == "steps" or quantity in OF_ALL_PARAMS:
            return plots.draw_rows(rows, quantity, axes)
        return plots.draw_row(rows[-1], quantity, axes)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Record no more. The rows stay."""
        self._detach()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and copying keep: the rows. Copies see no steps."""
        return self.__dict__ | {"_detach": do_nothing}


def do_nothing() -> None:
    """Detach a copy, which has never seen an optimizer."""


def import_optional(name: str, user: str) -> Any:
    """Import a package that only ``user`` needs; ImportError says what to do."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{user} needs {name}, which cannot be imported ({error}): pip install {name}") from error
