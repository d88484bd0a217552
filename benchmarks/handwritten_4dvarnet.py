"""vardax's FourDVarNet beside what an expert would write in plain JAX for the same network.

The `base` configuration of `fourdvarnet_2d.py`: 10 iterations, a bilinear prior of 32 channels on the coarse grid, a
ConvLSTM of 48, batches of 4 windows of 15 times on 64x64 cells, in single precision. The handwritten program is two
jitted functions of weights and arrays, for evaluation and for the gradient of the training loss: fields with their
channels last, a scan over the iterations, all samples at once. It does without what the library adds: observation
operators, errors, a record of costs, refusal of steps that are not finite, a choice of adjoint. One thing it borrows,
`vardax.networks.correlation.correlate`: with JAX's own convolution the loop takes minutes (see there). Claims: vardax
takes at most 1.15 times its run time, with the same output and the same gradient. Both are called in turn in one run.
"""

import harness
import numpy as np
from fourdvarnet_2d import BATCH, GRADIENT_STEP, batch_of, network, programs, relative, weights_of
from peers.torch_4dvarnet import CONFIGURATIONS, fields

SIZES = {"tiny": 16, "base": 64}
ALLOWED_RUN, TOLERANCE = 1.15, 1e-4
AROUND = ((1, 1), (1, 1))


def handwritten(configuration: str, size: int):
    """(evaluation, loss): functions of the weights, the observations with zeros for gaps, the mask and the truth."""
    import jax
    import jax.numpy as jnp

    from vardax.networks.correlation import correlate

    n_steps, n_hidden, n_memory = CONFIGURATIONS[configuration]
    place = np.arange(size) * (size // 2 - 1) / (size - 1)
    left = np.minimum(np.floor(place).astype(int), size // 2 - 2)
    finer = np.zeros((size, size // 2), np.float32)
    finer[np.arange(size), left] = 1 - (place - left)
    finer[np.arange(size), left + 1] += place - left

    def convolved(x, layer):
        weight, bias = layer
        return correlate(x, weight, AROUND) + bias

    def phi(w, x):
        coarse = x.reshape(len(x), size // 2, 2, size // 2, 2, -1).mean((2, 4))
        hidden = convolved(jax.nn.relu(convolved(coarse, w["conv_in"])), w["conv_hidden"])
        a, b, c = jnp.split(convolved(hidden, w["features"]), 3, axis=-1)
        return jnp.einsum("ai,bj,nijc->nabc", finer, finer, convolved(jnp.concatenate([a, b * c], -1), w["readout"]))

    def cost(x, w, y, mask, n_observed):
        misfit = jnp.sum(mask * (x - y) ** 2, (1, 2, 3)) / n_observed
        return jnp.sum(misfit) + jnp.sum((x - phi(w, x)) ** 2) / x[0].size

    def modulated(w, g, h, c):
        i, r, o, new = jnp.split(convolved(jnp.concatenate([g, h], -1), w["gates"]), 4, axis=-1)
        c = jax.nn.sigmoid(r) * c + jax.nn.sigmoid(i) * jnp.tanh(new)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return convolved(h, w["conv_out"]), h, c

    def solved(w, y, mask):
        n_observed = jnp.sum(mask, (1, 2, 3))

        def step(carry, k):
            x, h, c, scale = carry
            g = jax.grad(cost)(x, w, y, mask, n_observed)
            scale = jnp.where(k == 0, jnp.sqrt(jnp.mean(g**2, (1, 2, 3), keepdims=True)), scale)
            u, h, c = modulated(w, g / scale, h, c)
            return (x - u / (k + 1) - GRADIENT_STEP * (k + 1) / n_steps * g, h, c, scale), None

        memory = jnp.zeros((*y.shape[:-1], n_memory))
        start = (y, memory, memory, jnp.ones((len(y), 1, 1, 1)))
        return jax.lax.scan(step, start, jnp.arange(n_steps, dtype=y.dtype))[0][0]

    def magnitude(x):
        wide = jnp.pad(x, ((0, 0), *AROUND, (0, 0)), mode="edge")
        rows = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
        columns = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
        across, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
        return jnp.sqrt((across / 8) ** 2 + (down / 8) ** 2 + 1e-6)

    def loss(w, y, mask, truth):
        x = solved(w, y, mask)
        errors = 50 * jnp.mean((x - truth) ** 2) + 1000 * jnp.mean((magnitude(x) - magnitude(truth)) ** 2)
        return errors + jnp.mean((x - phi(w, x)) ** 2)

    return lambda w, y, mask: phi(w, solved(w, y, mask)), loss


def layers_of(weights: dict[str, np.ndarray]) -> dict[str, tuple]:
    """The kernels (height, width, in, out) and biases by layer; the three that share their input in one."""
    named = {}
    for name, value in weights.items():
        _, layer, part = name.split("__")
        prior = name.startswith("prior_cost")
        layer = "readout" if prior and layer == "conv_out" else layer
        named[layer, part] = value.transpose(2, 3, 1, 0) if part == "weight" else value
    features = ("bilin_1", "bilin_21", "bilin_22")
    joined = tuple(np.concatenate([named[f, part] for f in features], -1) for part in ("weight", "bias"))
    others = {layer for layer, _ in named if layer not in features}
    return {"features": joined, **{layer: (named[layer, "weight"], named[layer, "bias"]) for layer in others}}


def main() -> None:
    options = harness.arguments(__doc__, task=("run",), size=tuple(SIZES))
    if options.task:
        run(options)
        return
    flags = ["--task=run", f"--size={'tiny' if options.quick else 'base'}"]
    row = harness.in_fresh_process(__file__, *flags, f"--repeats={1 if options.quick else options.repeats}")
    harness.print_table([row])
    print(f"claims: run ratios at most {ALLOWED_RUN}")
    if not options.quick:
        print(harness.save("handwritten_4dvarnet", row))


def run(options) -> None:
    import jax

    configuration, size = options.size, SIZES[options.size]
    weights = weights_of(None, configuration)
    observations, truth = fields(BATCH, size)
    batch, model = batch_of(observations, truth), network(weights, configuration, size, "direct")
    evaluation, _, loss_and_gradient = programs(model)
    last = [np.moveaxis(field, 1, -1) for field in (np.nan_to_num(observations), np.isfinite(observations), truth)]
    y, mask, target = (field.astype(np.float32) for field in last)
    w = layers_of(weights)
    by_hand, loss_by_hand = handwritten(configuration, size)
    by_hand, gradient_by_hand = jax.jit(by_hand), jax.jit(jax.value_and_grad(loss_by_hand))
    row = {"configuration": configuration, "size": size}
    pairs = {
        "evaluation": (lambda: evaluation(model, batch), lambda: by_hand(w, y, mask)),
        "gradient": (lambda: loss_and_gradient(model, batch), lambda: gradient_by_hand(w, y, mask, target)),
    }
    for name, (mine, hand) in pairs.items():
        seconds = harness.alternately({"vardax": mine, "handwritten": hand}, options.repeats)
        for key in ("run_s", "cpu_s", "compile_cpu_s"):
            row |= {f"{name}_{program}_{key}": seconds[program][key] for program in seconds}
            row[f"{name}_{key[:-2]}_ratio"] = round(seconds["vardax"][key] / seconds["handwritten"][key], 3)
    x, (loss, gradient) = pairs["evaluation"][0](), pairs["gradient"][0]()
    x_hand, (loss_hand, gradient_hand) = pairs["evaluation"][1](), pairs["gradient"][1]()
    gates = np.asarray(gradient.grad_mod.gates.weight).transpose(2, 3, 1, 0)
    row["output_difference"] = relative(np.moveaxis(np.asarray(x), 1, -1), x_hand)
    row["loss_difference"] = relative(loss, loss_hand)
    row["gradient_difference"] = relative(gates, gradient_hand["gates"][0])
    assert max(row[f"{name}_difference"] for name in ("output", "loss", "gradient")) < TOLERANCE, row
    harness.report(row)


if __name__ == "__main__":
    main()
