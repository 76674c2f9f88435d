"""Lightning: ``configure_optimizers`` returns another AdamW; nothing else changes.

pip install ".[torch]" lightning
"""

import logging
import warnings

import lightning
import torch
from task import MAX_NORM, dataset, network, print_table, result

import fused_adamw.torch  # for AdamW; was: import torch.optim

CLASSES = {"torch.optim": torch.optim.AdamW, "fused_adamw": fused_adamw.torch.AdamW}
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*does not have many workers")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)


class Classifier(lightning.LightningModule):
    def __init__(self, name, options):
        super().__init__()
        self.network, self.name, self.options = network(), name, options
        self.losses = []

    def training_step(self, batch, _):
        inputs, labels = batch
        loss = torch.nn.functional.cross_entropy(self.network(inputs), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = CLASSES[self.name](self.parameters(), lr=1e-2, **self.options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=64)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(name, options, *, precision="32-true", accumulate=1, epochs=3, save=None, resume=None):
    """``save``, ``resume``: files; ``epochs``: of the whole training; ``options``: of the
    optimizer."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        gradient_clip_val=MAX_NORM,
        accumulate_grad_batches=accumulate,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Classifier(name, options)
    batches = torch.utils.data.DataLoader(dataset(), batch_size=32)
    trainer.fit(module, batches, ckpt_path=resume, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return result(module.losses, trainer.optimizers[0])


if __name__ == "__main__":
    print_table(train)
