"""A tiny BERT with an auxiliary loss in a transformers.Trainer: accumulation and max_grad_norm work as usual.

    python examples/transformers_trainer.py     # fifteen seconds; no download: a random model, made-up data

Tested with transformers 5.24.
"""

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from mtadam_fused import BalancedAdam
from mtadam_fused.integrations.transformers import TermLosses

WORDS, LENGTH = 50, 16


class CountedWords(Dataset):
    """Sentences of random words. The label: is there more of word 1 than of word 2?"""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(1, 8, (rows, LENGTH), generator=generator)
        self.labels = ((self.words == 1).sum(1) > (self.words == 2).sum(1)).long()

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[row], "labels": self.labels[row]}


class Classifier(BertForSequenceClassification):
    """With a second head that says how often word 1 occurs."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.count = nn.Linear(config.hidden_size, 1)


class AuxiliaryTrainer(TermLosses, Trainer):
    """A Trainer with two losses."""

    def compute_losses(self, model: Any, inputs: Any) -> tuple[dict[str, Tensor], Any]:
        outputs = model(**inputs, output_hidden_states=True)
        inner = getattr(model, "module", model)  # in DistributedDataParallel
        count = inner.count(outputs.hidden_states[-1].mean(1)).squeeze(1)
        wanted = (inputs["input_ids"] == 1).sum(1).float()
        return {"labels": outputs.loss, "count": 1000 * (count - wanted).square().mean()}, outputs


def accuracy(predictions: Any) -> dict[str, float]:
    scores = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
    return {"accuracy": float((scores.argmax(1) == predictions.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = Classifier(BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=args.steps,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            logging_steps=max(1, args.steps // 4),
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        optimizer = BalancedAdam(model.named_parameters(), lr=1e-3, process_group=torch.distributed.group.WORLD)
        trainer = AuxiliaryTrainer(
            model,
            arguments,
            train_dataset=CountedWords(4096, seed=0),
            eval_dataset=CountedWords(512, seed=1),
            compute_metrics=accuracy,
            optimizers=(optimizer, None),
        )
        before = trainer.evaluate()["eval_accuracy"]
        trainer.train()
        after = trainer.evaluate()["eval_accuracy"]
    print(f"accuracy: {100 * before:.1f} % before, {100 * after:.1f} % after {trainer.state.global_step} steps")


if __name__ == "__main__":
    main()
