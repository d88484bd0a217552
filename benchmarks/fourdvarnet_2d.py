"""FourDVarNet beside the PyTorch 4DVarNet: the same architecture, the same weights, the same output, in one run.

Batches of 4 windows of 15 times, in single precision, on 64x64 and 128x128 cells, in the two configurations of
CIA-Oceanix/4dvarnet-starter: `base` (10 iterations, 32 channels in the prior and 48 in the LSTM) and `big` (15, 64 and
96). The peer (`peers/torch_4dvarnet.py`) draws weights and fields and writes them; vardax reads them, and for one
sample must give the evaluation to 1e-4, the loss of training to 1e-4 and its gradient to 1e-3 (each relative to the
largest entry). Evaluation and training step of the batch are then called in turn with the peer's.

The peer shares one operation among the cores; vardax shares the batch (`vardax.training.shard_windows`), a device for
each core as far as four windows can be shared, since within one device XLA keeps 1.3 of two cores busy.

Claims: evaluation and training step no slower than the peer's; with `RecursiveCheckpointAdjoint` half of the peer's
memory, with `OneStepAdjoint` less. Memory is the peak of a process, whose first part is what its libraries need and
what compiling takes, and for vardax what XLA allocates for a step beside arguments and results (`temp_mb`).

`PEER_PYTHON` names the Python that has torch and ocean4dvarnet. `--quick` checks without it that a tiny network with
drawn weights runs and trains.
"""

import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from peers.torch_4dvarnet import CONFIGURATIONS, N_TIME, fields

PEER = Path(__file__).parent / "peers" / "torch_4dvarnet.py"
CASES = {f"{name}-{size}": (name, size) for name in ("base", "big") for size in (64, 128)}
ADJOINTS = ("direct", "checkpointed", "one-step")
BATCH, GRADIENT_STEP, LEARNING_RATE, CLIP = 4, 1e3, 1e-3, 0.5
TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


def main() -> None:
    options = harness.arguments(__doc__, case=tuple(CASES), adjoint=ADJOINTS)
    if options.case:
        run(options)
        return
    if options.quick:
        quick()
        return
    rows = []
    for case in CASES:
        for adjoint in ADJOINTS:
            flags = [f"--case={case}", f"--adjoint={adjoint}", f"--repeats={options.repeats}"]
            rows.append(harness.in_fresh_process(__file__, *flags))
            print(rows[-1])
    harness.print_table(rows)
    print(harness.save("fourdvarnet_2d", rows))


class Peer:
    """The PyTorch program in a process of its own, called line by line."""

    def __init__(self, configuration: str, size: int, batch: int, dump: Path):
        command = [os.environ.get("PEER_PYTHON", "python"), str(PEER), f"--configuration={configuration}"]
        command += [f"--size={size}", f"--batch={batch}", f"--dump={dump}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("The peer did not start: let PEER_PYTHON name a Python with torch and ocean4dvarnet.")
        return json.loads(line)

    def __call__(self, what: str) -> dict:
        print(what, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def weights_of(file, configuration: str = "tiny") -> dict[str, np.ndarray]:
    """The weights by the peer's names; without a file drawn here, for a network of this configuration."""
    if file is not None:
        return {name: file[name] for name in file if name.startswith(("prior_cost__", "grad_mod__"))}
    _, h, m = CONFIGURATIONS[configuration]
    rng = np.random.default_rng(0)
    shapes = {"conv_in": (N_TIME, h), "conv_hidden": (h, h), "bilin_1": (h, h), "bilin_21": (h, h), "bilin_22": (h, h)}
    prior = {f"prior_cost__{name}": shape for name, shape in {**shapes, "conv_out": (2 * h, N_TIME)}.items()}
    layers = {**prior, "grad_mod__gates": (N_TIME + m, 4 * m), "grad_mod__conv_out": (m, N_TIME)}
    drawn = {}
    for name, (n_in, n_out) in layers.items():
        bound = (9 * n_in) ** -0.5
        drawn[f"{name}__weight"] = rng.uniform(-bound, bound, (n_out, n_in, 3, 3)).astype(np.float32)
        drawn[f"{name}__bias"] = rng.uniform(-bound, bound, n_out).astype(np.float32)
    return drawn


def network(weights: dict[str, np.ndarray], configuration: str, size: int, adjoint: str):
    """The method of the peer: means for sums, its step rule, zeros where nothing is observed as the first state."""
    import optimistix as optx

    from vardax.adjoints import DirectAdjoint, OneStepAdjoint
    from vardax.grad_mod import ConvLSTMGradMod2D
    from vardax.minimisers.learned import AnnealedStep
    from vardax.models import FourDVarNet, SolverConfig
    from vardax.models.first_states import Observed
    from vardax.obs_operators import MaskedIdentity
    from vardax.priors import BilinAEPrior2D

    of_solver = {"direct": DirectAdjoint, "checkpointed": optx.RecursiveCheckpointAdjoint, "one-step": OneStepAdjoint}
    config = SolverConfig(
        n_steps=CONFIGURATIONS[configuration][0],
        alpha=-1.0,  # the peer subtracts its update
        prior_weight=1 / (N_TIME * size * size),
        obs_weight=2.0,  # the peer has no half
        obs_norm="mean",
        rule=AnnealedStep(GRADIENT_STEP),
    )
    return FourDVarNet(
        BilinAEPrior2D.from_torch(weights, downsampling=2),
        MaskedIdentity(),
        ConvLSTMGradMod2D.from_torch(weights),
        config,
        of_solver[adjoint](),
        start=Observed(),
    )


def programs(model):
    """(evaluation, training step, loss and gradient): functions of the model and a batch, jitted."""
    import equinox as eqx
    import jax
    import optax

    from vardax.training import field_loss, learned, train_step

    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(LEARNING_RATE))
    state = optimizer.init(learned(model))

    @eqx.filter_jit
    def evaluation(model, batch):
        return jax.vmap(model.prior)(model(batch))

    @eqx.filter_jit
    def step(model, batch):
        return train_step(model, batch, optimizer, state, loss_fn=field_loss)

    @eqx.filter_jit
    def loss_and_gradient(model, batch):
        return eqx.filter_value_and_grad(lambda model: field_loss(model, batch))(model)

    return evaluation, step, loss_and_gradient


def batch_of(observations: np.ndarray, truth: np.ndarray):
    import vardax

    return vardax.Batch2D.from_observations(observations, target=truth)


def quick() -> None:
    """A training step lowers the loss of a tiny network."""
    batch = batch_of(*fields(2, 16))
    model = network(weights_of(None), "tiny", 16, "one-step")
    _, step, _ = programs(model)
    changed, _, before = step(model, batch)
    _, _, after = step(changed, batch)
    print(f"tiny network: loss {float(before):.3f}, after a step {float(after):.3f}")
    assert after < before


def relative(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def differences(model, file, evaluation, loss_and_gradient) -> dict[str, float]:
    """How far vardax is from the peer on the first sample."""
    batch = batch_of(file["observations"][:1], file["truth"][:1])
    loss, gradient = loss_and_gradient(model, batch)
    pairs = {"gates": gradient.grad_mod.gates.weight, "conv_out": gradient.grad_mod.readout.weight}
    return {
        "output_difference": relative(evaluation(model, batch), file["evaluation"]),
        "loss_difference": relative(loss, file["loss"]),
        "gradient_difference": max(
            relative(found, file[f"gradient__grad_mod__{name}__weight"]) for name, found in pairs.items()
        ),
    }


def run(options) -> None:
    import jax

    from vardax.training import replicate, shard_windows

    jax.config.update("jax_num_cpu_devices", math.gcd(BATCH, harness.machine()["cores"]))
    configuration, size = CASES[options.case]
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "weights.npz"
        peer = Peer(configuration, size, BATCH, dump)
        file = np.load(dump)
        model = network(weights_of(file), configuration, size, options.adjoint)
        shared, batch = replicate(model), shard_windows(batch_of(file["observations"], file["truth"]))
        evaluation, step, loss_and_gradient = programs(shared)
        row = {"case": options.case, "adjoint": options.adjoint, "devices": jax.device_count()}
        for name, function in {"evaluation": evaluation, "training": step}.items():
            start = time.process_time()
            compiled = function.lower(shared, batch).compile()
            row[f"{name}_compile_cpu_s"] = round(time.process_time() - start, 2)
            on_each = compiled.compiled.memory_analysis().temp_size_in_bytes
            row["temp_mb"] = round(jax.device_count() * on_each / 1e6, 1)
            row[f"{name}_compiled_mb"] = harness.peak_memory_mb()
            call = lambda compiled=compiled: jax.block_until_ready(compiled(shared, batch))  # noqa: E731
            seconds, row["peer_peak_mb"] = in_turn(call, peer, name, options.repeats)
            row |= {f"{name}_{key}": value for key, value in seconds.items()}
        row["peak_mb"] = harness.peak_memory_mb()
        if options.adjoint != "one-step":  # whose gradient is another one
            row |= differences(model, file, evaluation, loss_and_gradient)
            assert row["output_difference"] < TOLERANCE, row
            assert row["loss_difference"] < TOLERANCE, row
            assert row["gradient_difference"] < GRADIENT_TOLERANCE, row
        peer.close()
    print(json.dumps({**row, "load": round(os.getloadavg()[0], 1)}))


def in_turn(function, peer: Peer, name: str, repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of both, called in turn, and the peer's peak memory."""
    function()
    peer(name)
    mine, theirs = [], []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        function()
        mine.append((time.perf_counter() - start, time.process_time() - cpu))
        answer = peer(name)
        theirs.append((answer["wall_s"], answer["cpu_s"]))
    (run_s, cpu_s), (peer_s, peer_cpu_s) = (
        [statistics.median(c) for c in zip(*r, strict=True)] for r in (mine, theirs)
    )
    return {
        "s": round(run_s, 3),
        "peer_s": round(peer_s, 3),
        "ratio": round(run_s / peer_s, 3),
        "cpu_s": round(cpu_s, 3),
        "peer_cpu_s": round(peer_cpu_s, 3),
        "cpu_ratio": round(cpu_s / peer_cpu_s, 3),
    }, answer["peak_mb"]


if __name__ == "__main__":
    main()
