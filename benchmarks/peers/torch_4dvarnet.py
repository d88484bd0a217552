"""The PyTorch 4DVarNet (package `ocean4dvarnet`) as a program that is driven line by line.

The peer of `fourdvarnet_2d.py`, for a Python of its own with torch, ocean4dvarnet and kornia:

    python torch_4dvarnet.py --configuration base --size 64 --batch 4 --dump weights.npz

It writes the weights as they are drawn, the observations (NaN where there are none), the truth, and, for the first
sample alone, what the evaluation gives and the loss of training; one sample, since this program normalises over the
whole batch. Then each line `evaluation` or `training` on its input makes one evaluation or one training step of the
whole batch, answered by a line of JSON: wall and processor seconds, and the peak memory in MB.

Settings are those of CIA-Oceanix/4dvarnet-starter: loss 50 mse + 1000 mse of Sobel gradients + prior cost, Adam with
1e-3, gradients clipped at 0.5. Dropout is left out: it has no counterpart, and would be drawn anew at each step.
"""

import argparse
import collections
import json
import os
import resource
import sys
import time
import warnings

import numpy as np

CONFIGURATIONS = {"tiny": (3, 4, 6), "base": (10, 32, 48), "big": (15, 64, 96)}
"""Iterations, hidden channels of the prior, hidden channels of the LSTM."""
N_TIME, OBSERVED, NOISE = 15, 0.1, 0.05


def fields(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(observations, truth): smooth random fields of unit variance, a tenth of the cells observed with noise."""
    rng = np.random.default_rng(0)
    k = np.hypot(np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None] * size)
    shape = (batch, N_TIME, size, size // 2 + 1)
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / (1 + k**2)
    truth = np.fft.irfft2(spectrum, s=(size, size))
    truth = (truth / truth.std()).astype(np.float32)
    observations = truth + NOISE * rng.standard_normal(truth.shape).astype(np.float32)
    observations[rng.random(truth.shape) > OBSERVED] = np.nan
    return observations, truth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--configuration", choices=CONFIGURATIONS, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dump", required=True)
    options = parser.parse_args()

    os.environ.setdefault("MPLBACKEND", "agg")
    warnings.filterwarnings("ignore")
    import kornia.filters
    import torch
    from ocean4dvarnet.models import BaseObsCost, BilinAEPriorCost, ConvLstmGradModel, GradSolver, Lit4dVarNet

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    n_step, prior_hidden, lstm_hidden = CONFIGURATIONS[options.configuration]
    solver = GradSolver(
        prior_cost=BilinAEPriorCost(N_TIME, prior_hidden, bilin_quad=False, downsamp=2),
        obs_cost=BaseObsCost(),
        grad_mod=ConvLstmGradModel(N_TIME, lstm_hidden, dropout=0.0),
        n_step=n_step,
        lr_grad=1e3,
    )
    Batch = collections.namedtuple("Batch", "input tgt")
    observations, truth = fields(options.batch, options.size)
    everything = Batch(torch.from_numpy(observations), torch.from_numpy(truth))
    first = Batch(*(field[:1] for field in everything))
    weight = torch.ones(N_TIME, options.size, options.size)
    optimizer = torch.optim.Adam(solver.parameters(), lr=1e-3)

    def evaluated(batch):
        solver.eval()
        return solver(batch).detach()

    def loss_of(batch):
        solver.train()
        out = solver(batch)
        error = Lit4dVarNet.weighted_mse(out - batch.tgt, weight)
        gradient = Lit4dVarNet.weighted_mse(kornia.filters.sobel(out) - kornia.filters.sobel(batch.tgt), weight)
        return 50 * error + 1000 * gradient + solver.prior_cost(out)

    def training_step(batch):
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(solver.parameters(), 0.5)
        optimizer.step()

    optimizer.zero_grad()
    loss = loss_of(first)
    loss.backward()
    named = {name.replace(".", "__"): value for name, value in solver.state_dict().items()}
    gradients = {f"gradient__{n.replace('.', '__')}": p.grad for n, p in solver.named_parameters()}
    np.savez(
        options.dump,
        observations=observations,
        truth=truth,
        evaluation=evaluated(first).numpy(),
        loss=loss.item(),
        **{name: value.detach().numpy() for name, value in {**named, **gradients}.items()},
    )
    work = {"evaluation": evaluated, "training": training_step}
    print(
        json.dumps({"torch": torch.__version__, "parameters": sum(p.numel() for p in solver.parameters())}), flush=True
    )
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        work[line.strip()](everything)
        seconds = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({**seconds, "peak_mb": round(peak, 1)}), flush=True)


if __name__ == "__main__":
    main()
