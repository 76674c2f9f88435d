"""Train a multilayer perceptron on scikit-learn's handwritten digits in pure NumPy.

    python examples/digits_numpy.py
    python examples/digits_numpy.py --epochs 5 --seed 1

The forward and backward passes are written by hand. `dX` is the gradient of the loss with respect
to X, and has the shape of X. Comments at the end of lines give shapes:

    N   images in the batch      H   width of the hidden layers
"""

import argparse
from time import perf_counter

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from fused_adamw import AdamW, matrices_only
from fused_adamw.schedules import CosineDecay, LinearWarmup

PIXELS, H, CLASSES = 64, 128, 10
BATCH = 32


def load_data():
    """1,437 training and 360 test images; the split does not depend on --seed."""
    images, labels = load_digits(return_X_y=True)  # (1797, 64) from 0 to 16, (1797,)
    images = (images / 16).astype(np.float32)
    return train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)


def draw_parameters(rng, dtype=np.float32):
    """Weights from N(0, 2 / d_in), which preserves the scale through ReLU (He et al. 2015,
    arXiv:1502.01852), and biases of 0."""
    parameters = {}
    for i, (d_in, d_out) in enumerate([(PIXELS, H), (H, H), (H, CLASSES)], start=1):
        weights = rng.standard_normal((d_in, d_out)) * np.sqrt(2 / d_in)
        parameters[f"W_{i}"] = weights.astype(dtype)  # (d_in, d_out)
        parameters[f"b_{i}"] = np.zeros(d_out, dtype)  # (d_out,)
    return parameters


# ---------------------------------------------------------------------------- layers


def linear_forward(X, W, b):
    return X @ W + b  # (N, d_in), (d_in, d_out), (d_out,) -> (N, d_out)


def linear_backward(dY, X, W):
    dX = dY @ W.T  # (N, d_in)
    dW = X.T @ dY  # (d_in, d_out)
    db = dY.sum(axis=0)  # (d_out,)
    return dX, dW, db


def relu_forward(X):
    return np.maximum(X, 0)  # (N, H)


def relu_backward(dY, Y):
    return dY * (Y > 0)  # (N, H)


def cross_entropy_forward(logits, labels):
    """The mean of -log P(label) over the batch, and log P of every class."""
    shifted = logits - logits.max(axis=1, keepdims=True)  # (N, 10); so that exp cannot overflow
    log_P = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (N, 10)
    return -log_P[np.arange(len(labels)), labels].mean(), log_P


def cross_entropy_backward(log_P, labels):
    dlogits = np.exp(log_P)  # (N, 10)
    dlogits[np.arange(len(labels)), labels] -= 1
    return dlogits / len(labels)  # (N, 10)


# ---------------------------------------------------------------------------- the model


def forward(p, X):
    H_1 = relu_forward(linear_forward(X, p["W_1"], p["b_1"]))  # (N, H)
    H_2 = relu_forward(linear_forward(H_1, p["W_2"], p["b_2"]))  # (N, H)
    logits = linear_forward(H_2, p["W_3"], p["b_3"])  # (N, 10)
    return logits, (X, H_1, H_2)


def backward(p, dlogits, activations):
    X, H_1, H_2 = activations
    dH_2, dW_3, db_3 = linear_backward(dlogits, H_2, p["W_3"])  # (N, H)
    dH_1, dW_2, db_2 = linear_backward(relu_backward(dH_2, H_2), H_1, p["W_2"])  # (N, H)
    _, dW_1, db_1 = linear_backward(relu_backward(dH_1, H_1), X, p["W_1"])
    return {"W_1": dW_1, "b_1": db_1, "W_2": dW_2, "b_2": db_2, "W_3": dW_3, "b_3": db_3}


def loss_and_gradients(p, X, labels):
    logits, activations = forward(p, X)
    loss, log_P = cross_entropy_forward(logits, labels)
    return loss, backward(p, cross_entropy_backward(log_P, labels), activations)


# ---------------------------------------------------------------------------- training


def train(epochs, seed):
    images, test_images, labels, test_labels = load_data()
    rng = np.random.default_rng(seed)
    parameters = draw_parameters(rng)
    batches_per_epoch = -(-len(images) // BATCH)
    steps = epochs * batches_per_epoch
    warmup = steps // 10
    rate = LinearWarmup(3e-3, warmup).then(CosineDecay(3e-3, steps - warmup))
    # Weights decay, biases do not.
    optimizer = AdamW(
        parameters, lr=rate, weight_decay=0.05, max_grad_norm=1.0, decay_mask=matrices_only
    )
    for epoch in range(1, epochs + 1):
        start, losses, step_seconds = perf_counter(), [], 0.0
        for chosen in np.array_split(rng.permutation(len(images)), batches_per_epoch):
            loss, gradients = loss_and_gradients(parameters, images[chosen], labels[chosen])
            before = perf_counter()
            optimizer.step(gradients)  # changes the arrays in parameters
            step_seconds += perf_counter() - before
            losses.append(loss)
        milliseconds = 1e3 * (perf_counter() - start)
        accuracy = (forward(parameters, test_images)[0].argmax(axis=1) == test_labels).mean()
        print(
            f"epoch {epoch:2}   training loss {np.mean(losses):.4f}   "
            f"test accuracy {accuracy:.1%}   {milliseconds:5.1f} ms, "
            f"optimizer.step() {1e3 * step_seconds:.1f} ms of it",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be 1 or more; got {arguments.epochs}")
    if arguments.seed < 0:
        parser.error(f"--seed must be 0 or more; got {arguments.seed}")
    # Matrices this small gain nothing from a second thread, and on a busy machine lose seconds to
    # threads that wait for each other.
    with threadpool_limits(1):
        train(arguments.epochs, arguments.seed)
