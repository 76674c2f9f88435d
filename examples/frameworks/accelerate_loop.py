"""Hugging Face accelerate: the import of AdamW is all that changes in a training loop.

pip install ".[torch]" accelerate
"""

import torch
from accelerate import Accelerator
from task import MAX_NORM, dataset, network, print_table, result

import fused_adamw.torch  # for AdamW; was: import torch.optim

CLASSES = {"torch.optim": torch.optim.AdamW, "fused_adamw": fused_adamw.torch.AdamW}


def train(name, options, *, precision="no", accumulate=1, epochs=3, save=None, resume=None):
    """``save``, ``resume``: folders of checkpoints; ``options``: of the optimizer."""
    accelerator = Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate
    )
    model = network()
    optimizer = CLASSES[name](model.parameters(), lr=1e-2, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=64)
    batches = torch.utils.data.DataLoader(dataset(), batch_size=32)
    model, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)
    if resume is not None:
        accelerator.load_state(resume)
    losses = []
    for _ in range(epochs):
        for inputs, labels in batches:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    if save is not None:
        accelerator.save_state(save)
    return result(losses, optimizer.optimizer)  # the one that accelerate has wrapped


if __name__ == "__main__":
    print_table(train)
