"""DeepSpeed ZeRO with its optimizer off-loaded: our AdamW in place of DeepSpeedCPUAdam.

    pip install ".[torch]" deepspeed

DeepSpeed gives the optimizer float32 copies of the parameters in host memory, each rank its part.
"""

import logging
import tempfile

import deepspeed
import torch
from task import MAX_NORM, dataset, network, print_table, result

import fused_adamw.torch  # for AdamW; was: import torch.optim

CLASSES = {"torch.optim": torch.optim.AdamW, "fused_adamw": fused_adamw.torch.AdamW}
deepspeed.utils.logger.setLevel(logging.ERROR)


def config(stage: int, precision: str) -> dict:
    zero = {"stage": stage}
    if stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 32,
        "gradient_clipping": MAX_NORM,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": zero,
        # Both are needed for an optimizer that is not DeepSpeed's.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def train(name, options, *, stage=2, precision="no", steps=24, save=None, resume=None):
    """``save``, ``resume``: folders of checkpoints; ``options``: of the optimizer."""
    if not torch.distributed.is_initialized():
        meeting = f"file://{tempfile.mkdtemp()}/store"
        deepspeed.init_distributed("gloo", init_method=meeting, rank=0, world_size=1)
    model = network()
    optimizer = CLASSES[name](model.parameters(), lr=1e-2, **options)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config(stage, precision)
    )
    if resume is not None:
        engine.load_checkpoint(resume)
    batches = list(torch.utils.data.DataLoader(dataset(), batch_size=32))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    losses = []
    for step in range(engine.global_steps, engine.global_steps + steps):
        inputs, labels = batches[step % len(batches)]
        loss = torch.nn.functional.cross_entropy(engine(inputs.to(dtype)).float(), labels)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    if save is not None:
        engine.save_checkpoint(save)
    return result(losses, optimizer)


if __name__ == "__main__":
    print_table(train)
