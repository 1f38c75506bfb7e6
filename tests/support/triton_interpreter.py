"""Turn on Triton's interpreter where there is no GPU.

To be imported before ``mtadam_fused``, which reads TRITON_INTERPRET when it is imported.
"""

import os

import torch


def turn_on() -> bool:
    """Return whether the Triton kernels run on the CPU from now on; where there is a GPU they run on that alone."""
    if torch.cuda.is_available():
        return False
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton
        from triton.language import bfloat16
        from triton.runtime import interpreter
    except ImportError:
        return False
    from mtadam_fused.backends.triton import OLDEST

    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return False
    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding_cast(self, src, dst_type):
        """Round to bfloat16 as GPUs do; the interpreter of Triton 3.6 truncates."""
        if dst_type.scalar is not bfloat16:
            return cast(self, src, dst_type)
        rounded = torch.from_numpy(src.data).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, bfloat16)

    interpreter.InterpreterBuilder.cast_impl = rounding_cast
    return True


INTERPRETED = turn_on()
