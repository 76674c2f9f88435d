"""The command ``fused-adamw explain``."""

from ..tiny import worked_example as worked
from ..tiny.model import TinyTransformer
from .console import (
    effective_rates_table,
    heading,
    make_console,
    paragraph,
    parameters_table,
    worked_update_table,
)


def explain() -> None:
    """Work through one AdamW update by hand, with the kernel and in pure Python."""
    kernel = worked.worked_update(worked.kernel_update)
    reference = worked.worked_update(worked.reference_update)
    model = TinyTransformer()
    shapes = {name: parameter.shape for name, parameter in model.parameters.items()}
    make_console().print(
        heading("One AdamW update"),
        paragraph(
            f"theta {worked.THETA}, gradient g {worked.GRADIENT}, first step: t = 1, m = v = 0\n"
            f"lr {worked.LR}, beta1 {worked.BETA1}, beta2 {worked.BETA2}, eps {worked.EPS:g}, "
            f"weight decay wd {worked.WEIGHT_DECAY}"
        ),
        worked_update_table(kernel, reference),
        heading("The smaller the gradient, the larger its effective learning rate"),
        paragraph("At the first step every parameter moves by about lr, whatever its gradient."),
        effective_rates_table(worked.effective_rates(worked.kernel_update), worked.LR),
        heading("AdamW state of the tiny transformer"),
        paragraph("Two state values, m and v, for each parameter."),
        parameters_table(shapes),
    )
