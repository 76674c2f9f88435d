"""Hugging Face Trainer: ``optimizer_cls_and_kwargs`` takes the class and its options.

pip install ".[torch]" transformers accelerate
"""

import tempfile

import torch
import transformers
from task import MAX_NORM, dataset, network, print_table, result

import fused_adamw.torch  # for AdamW; was: import torch.optim

CLASSES = {"torch.optim": torch.optim.AdamW, "fused_adamw": fused_adamw.torch.AdamW}


class Classifier(torch.nn.Module):
    """As the Trainer calls it."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, inputs, labels):
        return {"loss": torch.nn.functional.cross_entropy(self.network(inputs), labels)}


class Quiet(transformers.Trainer):
    def log(self, logs, *_):
        self.state.log_history.append(logs)


def train(name, options, *, precision="no", accumulate=1, steps=24, save=None, resume=None):
    """``save``: a folder of checkpoints, one in the middle; ``resume``: one of these; ``options``:
    of the optimizer."""
    with tempfile.TemporaryDirectory() as temporary:
        arguments = transformers.TrainingArguments(
            save or temporary,
            use_cpu=True,
            bf16=precision == "bf16",
            per_device_train_batch_size=32,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=MAX_NORM,
            max_steps=steps,
            save_strategy="steps" if save else "no",
            save_steps=steps // 2,
            logging_steps=1,
            disable_tqdm=True,
            report_to=[],
        )
        trainer = Quiet(
            Classifier(),
            arguments,
            train_dataset=[{"inputs": x, "labels": y} for x, y in dataset()],
            # The learning rate and betas of TrainingArguments are not used then.
            optimizer_cls_and_kwargs=(CLASSES[name], {"lr": 1e-2, **options}),
        )
        trainer.train(resume_from_checkpoint=resume)
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    optimizer = trainer.optimizer
    return result(losses, getattr(optimizer, "optimizer", optimizer))  # accelerate has wrapped it


if __name__ == "__main__":
    print_table(train)
