"""A LightningModule with the mixin makes the steps of a plain loop: accumulation, clipping, manual optimization."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.rules import UPGrad
from oracles.tolerances import same

pytest.importorskip("lightning")
from lightning import LightningModule, Trainer

from mtadam_fused.integrations.lightning import TermLosses

BATCHES, PARTS = 6, 2
MAKERS: dict[str, Any] = {
    "MTAdam": MTAdam,
    "BalancedAdam": BalancedAdam,
    "CombinedAdam": lambda params, **options: CombinedAdam(params, UPGrad(), **options),
    "Adam": torch.optim.Adam,
}


def make_network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def losses_of(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    out = network(x)
    return {"a": out.square().mean(), "b": 100 * (out - x[:, :2]).abs().mean()}


def inputs() -> Tensor:
    return torch.randn(4 * BATCHES, 3, generator=torch.Generator().manual_seed(1))


class Module(TermLosses, LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = make_network()
        self.totals: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = losses_of(self.network, batch[0])
        if self.name == "Adam":  # no optimizer of ours: a plain loss
            return torch.stack(list(losses.values())).sum()
        total = self.term_losses(losses)
        self.totals.append(total.item())
        return total

    def configure_optimizers(self) -> Any:
        return MAKERS[self.name](self.network.parameters(), lr=0.1)


def fit(module: LightningModule, *, epochs: int = 1, resume: str | None = None, **options: Any) -> list[Tensor]:
    """Train, after resuming from the file ``resume`` if any, and return the parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            **options,
        )
        trainer.fit(module, DataLoader(TensorDataset(inputs()), batch_size=4), ckpt_path=resume)
    return [p.detach() for p in module.parameters()]


def loop(name: str, parts: int, max_norm: float | None, *, bfloat16: bool = False, epochs: int = 1) -> list[Tensor]:
    """Train as the Trainer should, without it."""
    network = make_network()
    optimizer = MAKERS[name](network.parameters(), lr=0.1)
    for i, x in enumerate(inputs().split(4) * epochs):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = {term: loss / parts for term, loss in losses_of(network, x).items()}
        if name == "Adam":
            torch.stack(list(losses.values())).sum().backward()
        else:
            optimizer.backward(losses)
        if (i + 1) % parts == 0:
            if max_norm and name == "Adam":
                torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
            elif max_norm:
                optimizer.clip_grad_norm_(max_norm)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in network.parameters()]


@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam"])
@pytest.mark.parametrize("parts", [1, PARTS])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_the_trainer_makes_the_steps_of_a_loop(name: str, parts: int, max_norm: float | None) -> None:
    module = Module(name)
    found = fit(module, accumulate_grad_batches=parts, gradient_clip_val=max_norm)
    assert same(found, loop(name, parts, max_norm))
    assert not same(found, loop(name, 3 - parts, max_norm))
    assert not same(found, loop(name, parts, None if max_norm else 1.0))
    assert len(module.totals) == BATCHES


def test_a_rule_and_clipping() -> None:
    assert same(fit(Module("CombinedAdam"), gradient_clip_val=1.0), loop("CombinedAdam", 1, 1.0))


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_plain_loss_is_lightnings_affair(max_norm: float | None) -> None:
    found = fit(Module("Adam"), accumulate_grad_batches=PARTS, gradient_clip_val=max_norm)
    assert same(found, loop("Adam", PARTS, max_norm))


def test_bfloat16() -> None:
    found = fit(Module("BalancedAdam"), precision="bf16-mixed")
    assert same(found, loop("BalancedAdam", 1, None, bfloat16=True))
    assert not same(found, loop("BalancedAdam", 1, None))


@pytest.mark.parametrize("name", ["MTAdam", "CombinedAdam"])
def test_a_resumed_run_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    class Saving(Module):
        def on_train_epoch_end(self) -> None:
            self.trainer.save_checkpoint(tmp_path / f"{self.current_epoch}.ckpt")

    expected = fit(Saving(name), epochs=2)
    assert same(expected, loop(name, 1, None, epochs=2))
    assert same(fit(Module(name), epochs=2, resume=str(tmp_path / "0.ckpt")), expected)
    saved = torch.load(tmp_path / "0.ckpt", weights_only=True)
    saved["optimizer_states"][0]["state"] = {}
    torch.save(saved, tmp_path / "forgetful.ckpt")
    assert not same(fit(Module(name), epochs=2, resume=str(tmp_path / "forgetful.ckpt")), expected)


def test_losses_may_be_a_list() -> None:
    class Listing(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.term_losses(list(losses_of(self.network, batch[0]).values()))

    assert same(fit(Listing("MTAdam")), loop("MTAdam", 1, None))


def test_manual_optimization_needs_no_mixin() -> None:
    class Manual(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.network = make_network()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            optimizer.optimizer.backward(losses_of(self.network, batch[0]))
            optimizer.optimizer.clip_grad_norm_(1.0)
            optimizer.step()

        def configure_optimizers(self) -> BalancedAdam:
            return BalancedAdam(self.parameters(), lr=0.1)

    assert same(fit(Manual()), loop("BalancedAdam", 1, 1.0))


def test_errors_name_the_remedy() -> None:
    module = Module("Adam")
    module.training_step = lambda batch, batch_idx: module.term_losses(losses_of(module.network, batch[0]))  # type: ignore
    with pytest.raises(TypeError, match="the optimizer is a Adam; give the trainer one of mtadam_fused"):
        fit(module)
    with pytest.raises(ValueError, match="gradient_clip_algorithm is 'value'; it must be 'norm'"):
        fit(Module("MTAdam"), gradient_clip_val=1.0, gradient_clip_algorithm="value")


def test_the_mixin_comes_first() -> None:
    with pytest.raises(
        TypeError, match=r"LightningModule comes before .*; write class Late\(TermLosses, LightningModule"
    ):

        class Late(LightningModule, TermLosses):
            pass


def test_a_grad_scaler_is_refused() -> None:
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match=r"float16 training .* use Trainer\(precision='bf16-mixed'\)"):
        fit(Module("MTAdam"), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
