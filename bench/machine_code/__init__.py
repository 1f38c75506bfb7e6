"""Read the machine code of the GPU kernels: what memory each loop asks for before it waits. No GPU is needed."""
