"""A transformers.Trainer with the mixin makes the steps of a plain loop: accumulation and clipping."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mtadam_fused import BalancedAdam, CombinedAdam
from mtadam_fused.rules import UPGrad
from oracles.tolerances import same

pytest.importorskip("transformers")
import transformers

from mtadam_fused.integrations.transformers import TermLosses

BATCHES, PARTS = 6, 2
MAKERS: dict[str, Any] = {
    "BalancedAdam": BalancedAdam,
    "CombinedAdam": lambda params, **options: CombinedAdam(params, UPGrad(), **options),
    "Adam": torch.optim.Adam,
}


class Rows(Dataset):
    def __init__(self) -> None:
        self.rows = torch.randn(4 * BATCHES, 3, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.rows[i], "labels": self.rows[i, :2]}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"out": self.linear(x)}


class LossTrainer(TermLosses, transformers.Trainer):
    def compute_losses(self, model: Any, inputs: Any) -> Any:
        outputs = model(**inputs)
        return losses_of(outputs["out"], inputs["labels"]), outputs

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def losses_of(out: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"a": out.square().mean(), "b": 100 * (out - labels).abs().mean()}


def make_trainer(name: str, folder: Path, parts: int = 1, max_norm: float = 0.0, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=parts,
        max_grad_norm=max_norm,
        lr_scheduler_type="constant",
        report_to=[],
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )
    model = Network()
    optimizer = MAKERS[name](model.parameters(), lr=0.1)
    return LossTrainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), optimizers=(optimizer, None))


def loop(name: str, parts: int, max_norm: float, *, bfloat16: bool = False) -> list[Tensor]:
    """Train as the Trainer should, without it."""
    network = Network()
    optimizer = MAKERS[name](network.parameters(), lr=0.1)
    for i, x in enumerate(Rows().rows.split(4)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = losses_of(network.linear(x), x[:, :2])
        optimizer.backward({term: loss / parts for term, loss in losses.items()})
        if (i + 1) % parts == 0:
            if max_norm:
                optimizer.clip_grad_norm_(max_norm)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in network.parameters()]


@pytest.mark.parametrize(
    ("name", "parts", "max_norm"),
    [
        ("BalancedAdam", 1, 0.0),
        ("BalancedAdam", 1, 1.0),
        ("BalancedAdam", PARTS, 1.0),
        ("CombinedAdam", 1, 0.0),
        ("CombinedAdam", 1, 1.0),
    ],
)
def test_the_trainer_makes_the_steps_of_a_loop(name: str, parts: int, max_norm: float, tmp_path: Path) -> None:
    trainer = make_trainer(name, tmp_path, parts, max_norm)
    trainer.train()
    found = [p.detach() for p in trainer.model.parameters()]
    assert same(found, loop(name, parts, max_norm))
    assert not same(found, loop(name, 3 - parts, max_norm))
    assert not same(found, loop(name, parts, 0.0 if max_norm else 1.0))
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(norms) == (BATCHES // parts if max_norm else 0)
    assert all(float(norm) > max_norm for norm in norms)


def test_bfloat16(tmp_path: Path) -> None:
    trainer = make_trainer("BalancedAdam", tmp_path, bf16=True)
    trainer.train()
    found = [p.detach() for p in trainer.model.parameters()]
    assert same(found, loop("BalancedAdam", 1, 0.0, bfloat16=True))
    assert not same(found, loop("BalancedAdam", 1, 0.0))


@pytest.mark.parametrize("name", ["BalancedAdam", "CombinedAdam"])
def test_a_resumed_run_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    make_trainer(name, tmp_path, save_strategy="steps", save_steps=BATCHES // 2).train()
    checkpoint = tmp_path / f"checkpoint-{BATCHES // 2}"
    assert same(resume(name, checkpoint), loop(name, 1, 0.0))
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.save(saved | {"state": {}}, checkpoint / "optimizer.pt")
    assert not same(resume(name, checkpoint), loop(name, 1, 0.0))


def resume(name: str, checkpoint: Path) -> list[Tensor]:
    trainer = make_trainer(name, checkpoint.parent)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return [p.detach() for p in trainer.model.parameters()]


def test_losses_may_be_a_list(tmp_path: Path) -> None:
    trainers = [make_trainer("BalancedAdam", tmp_path) for _ in range(2)]
    of_mapping = trainers[0].compute_losses

    def compute_losses(model: Any, inputs: Any) -> Any:
        losses, outputs = of_mapping(model, inputs)
        return list(losses.values()), outputs

    trainers[0].compute_losses = compute_losses
    for trainer in trainers:
        trainer.train()
    assert same(*([p.detach() for p in trainer.model.parameters()] for trainer in trainers))


def test_evaluation_has_the_sum_of_the_losses(tmp_path: Path) -> None:
    trainer = make_trainer("BalancedAdam", tmp_path)
    rows = Rows().rows
    batches = [losses_of(trainer.model.linear(x), x[:, :2]) for x in rows.split(4)]
    expected = torch.stack([sum(losses.values(), torch.zeros(())) for losses in batches]).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="the optimizer is a Adam; give the trainer one of mtadam_fused"):
        make_trainer("Adam", tmp_path).train()
    trainer = make_trainer("BalancedAdam", tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match=r"float16 training .* use TrainingArguments\(bf16=True\)"):
        trainer.train()


def test_the_mixin_comes_first() -> None:
    with pytest.raises(TypeError, match=r"Trainer comes before .*; write class Late\(TermLosses, Trainer\)"):

        class Late(transformers.Trainer, TermLosses):
            pass


def test_another_versions_way_to_clip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.Trainer, "_clip_grad_norm")
    with pytest.raises(RuntimeError, match=r"max_grad_norm is 1\.0, and this version .* or max_grad_norm=0"):
        make_trainer("BalancedAdam", tmp_path, max_norm=1.0).train()
    make_trainer("BalancedAdam", tmp_path).train()


def test_compute_losses_must_be_written(tmp_path: Path) -> None:
    class Forgetful(TermLosses, transformers.Trainer):
        pass

    model, arguments = Network(), make_trainer("BalancedAdam", tmp_path).args
    optimizer = BalancedAdam(model.parameters())
    forgetful = Forgetful(model, arguments, train_dataset=Rows(), optimizers=(optimizer, None))
    with pytest.raises(NotImplementedError, match="Forgetful must define compute_losses"):
        forgetful.train()
