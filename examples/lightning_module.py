"""Two losses in Lightning, under automatic and under manual optimization: accumulation, clipping, bfloat16.

    python examples/lightning_module.py             # half a minute
    python examples/lightning_module.py --manual

Tested with lightning 2.6. In several processes both ways work too, because of the process_group.
"""

import argparse
import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtadam_fused import BalancedAdam
from mtadam_fused.integrations.lightning import TermLosses

PARTS, MAX_NORM = 2, 1.0  # batches per step, and what gradients are clipped to


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))


def losses_of(out: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {
        "size": 1000 * (out[:, 0] - targets[:, 0]).square().mean(),
        "angle": (out[:, 1] - targets[:, 1]).abs().mean(),
    }


class Automatic(TermLosses, LightningModule):
    """Lightning runs the step: training_step says which losses there are, the mixin does the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        losses = losses_of(self.network(inputs), targets)
        self.log_dict({name: loss.detach() for name, loss in losses.items()}, prog_bar=True)
        return self.term_losses(losses)

    def configure_optimizers(self) -> BalancedAdam:
        return BalancedAdam(self.named_parameters(), lr=1e-3, process_group=torch.distributed.group.WORLD)


class Manual(LightningModule):
    """You run the step, with no help from the mixin."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        losses = losses_of(self.network(inputs), targets)
        optimizer = self.optimizers()
        total = optimizer.optimizer.backward({name: loss / PARTS for name, loss in losses.items()})
        self.log("total", total, prog_bar=True)
        if (batch_idx + 1) % PARTS == 0:
            optimizer.optimizer.clip_grad_norm_(MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> BalancedAdam:
        return BalancedAdam(self.named_parameters(), lr=1e-3, process_group=torch.distributed.group.WORLD)


def make_data(rows: int = 4096) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 8, generator=generator)
    return TensorDataset(inputs, torch.stack([inputs[:, :4].norm(dim=1), torch.atan2(inputs[:, 0], inputs[:, 1])], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--manual", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")  # about workers and loggers
    torch.manual_seed(0)
    module = Manual() if args.manual else Automatic()
    data = make_data()
    own = {} if args.manual else {"accumulate_grad_batches": PARTS, "gradient_clip_val": MAX_NORM}
    trainer = Trainer(
        max_steps=args.steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **own,
    )

    def show(when: str) -> None:
        with torch.no_grad():
            losses = losses_of(module.network(data.tensors[0]), data.tensors[1])
        print(f"{when}: " + ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items()))

    show("before")
    trainer.fit(module, DataLoader(data, batch_size=64, shuffle=True))
    show(f"after {trainer.global_step} steps")


if __name__ == "__main__":
    main()
