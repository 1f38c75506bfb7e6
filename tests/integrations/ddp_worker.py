"""Train a network of two heads with each framework, as one of two processes, each with half of every batch.

``python -m tests.integrations.ddp_worker FRAMEWORK FOLDER RANK INIT_METHOD`` saves the parameters in the folder for
test_ddp.py, which imports the problem from here.
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from mtadam_fused import BalancedAdam
from mtadam_fused.distributed.dtensor import full_tensor
from tests.support.processes import error_of, save_and_exit

PROCESSES, BATCHES, ROWS, PARTS, MAX_NORM = 2, 6, 4, 2, 1.0
FSDP2_ON_CPU = torch.__version__ >= "2.11"


class Rows(Dataset):
    """All rows of all batches."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(BATCHES * ROWS, 3, generator=generator, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "labels": self.x[i, :1]}


class Heads(nn.Module):
    """Heads of their own for two losses: no backward pass of one loss reaches all parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)
        self.double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        features = self.trunk(x).tanh()
        return {"first": self.first(features), "second": self.second(features)}


def losses_of(out: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    return {"a": out["first"].square().mean(), "b": 100 * (out["second"] - x[:, :1]).abs().mean()}


def make_optimizer(model: nn.Module, *, averages: bool) -> BalancedAdam:
    return BalancedAdam(model.parameters(), lr=0.1, process_group=dist.group.WORLD if averages else None)


def make_loader(sampler: Any = None) -> DataLoader:
    return DataLoader(Rows(), batch_size=ROWS // PROCESSES, sampler=sampler)


def with_lightning(*, manual: bool = False, sharded: bool = False, averages: bool = True) -> nn.Module:
    from lightning import LightningModule, Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    from mtadam_fused.integrations.lightning import TermLosses

    class Module(TermLosses, LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual
            self.heads = Heads()

        def configure_model(self) -> None:
            if sharded:
                fully_shard(self.heads, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            losses = losses_of(self.heads(**batch), batch["x"])
            if not manual:
                return self.term_losses(losses)
            optimizer = self.optimizers()
            optimizer.optimizer.backward({name: loss / PARTS for name, loss in losses.items()})
            if (batch_idx + 1) % PARTS == 0:
                optimizer.optimizer.clip_grad_norm_(MAX_NORM)
                optimizer.step()
                optimizer.zero_grad()
            return None

        def configure_optimizers(self) -> BalancedAdam:
            return make_optimizer(self, averages=averages)

    module = Module()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=PROCESSES,
        strategy=ModelParallelStrategy(PROCESSES, 1) if sharded else "ddp",
        use_distributed_sampler=False,  # Lightning's own shuffles
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **({} if manual else {"accumulate_grad_batches": PARTS, "gradient_clip_val": MAX_NORM}),
    )
    trainer.fit(module, make_loader(DistributedSampler(Rows(), shuffle=False)))
    return module.heads


def with_accelerate() -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    heads = Heads()
    own = make_optimizer(heads, averages=True)
    model, optimizer, loader = accelerator.prepare(heads, own, make_loader())
    for batch in loader:
        with accelerator.accumulate(model), accelerator.no_sync(model):
            losses = losses_of(model(**batch), batch["x"])
            own.backward({name: loss / PARTS for name, loss in losses.items()})
            if accelerator.sync_gradients:
                own.clip_grad_norm_(MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
    return heads


def with_transformers(folder: Path, *, averages: bool = True) -> nn.Module:
    import transformers

    from mtadam_fused.integrations.transformers import TermLosses

    class HeadsTrainer(TermLosses, transformers.Trainer):
        def compute_losses(self, model: Any, inputs: Any) -> Any:
            outputs = model(**inputs)
            return losses_of(outputs, inputs["x"]), outputs

        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=ROWS // PROCESSES,
        gradient_accumulation_steps=PARTS,
        max_grad_norm=MAX_NORM,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    heads = Heads()
    optimizer = make_optimizer(heads, averages=averages)
    HeadsTrainer(heads, arguments, train_dataset=Rows(), optimizers=(optimizer, None)).train()
    return heads


def main(framework: str, folder: Path, rank: int, init_method: str) -> None:
    # What a launcher such as torchrun tells the frameworks.
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=PROCESSES)
    warnings.simplefilter("ignore")
    runs: dict[str, dict[str, Callable[[], Any]]] = {
        "lightning": {
            "automatic": with_lightning,
            "manual": lambda: with_lightning(manual=True),
            "sharded": lambda: with_lightning(sharded=True, averages=False),
            "without a group": lambda: error_of(lambda: with_lightning(averages=False)),
        },
        "accelerate": {"loop": with_accelerate},
        "transformers": {
            "trainer": lambda: with_transformers(folder),
            "without a group": lambda: error_of(lambda: with_transformers(folder, averages=False)),
        },
    }
    if not FSDP2_ON_CPU:
        del runs["lightning"]["sharded"]
    results = {name: run() for name, run in runs[framework].items()}
    save_and_exit(folder, rank, {name: error_or_state(found) for name, found in results.items()})


def error_or_state(found: Any) -> Any:
    return found if isinstance(found, str) else [full_tensor(value) for value in found.state_dict().values()]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
