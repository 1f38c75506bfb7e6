"""The gradients of each loss term: from losses and ``p.grad`` to the step."""
