"""Decode speed on a GPU: sparsecc's executor beside a dense model under torch.compile, of one shape, in one run.

    python tests/benchmarks/gpu_decode.py --shape llama-3-8b --sparsity 0.5 -o OUT.json

Both have random weights and compute in bfloat16. The sparse graphs hold the operators that `sparsecc compile` writes;
their thresholds are quantiles of what a model of two such layers computes, and how sparse the large model then is is
counted. The dense model is plain torch with merged projections under torch.compile with CUDA graphs. The models take
turns, and a step's time is that of 32 in a row, its choice of the next token included.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch
from dense_decoder import DenseDecoder
from random_decoder import EPSILON, RandomDecoder

from sparsecc.runtime_ops.triton.decoding import open_decoder, require_gpu
from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.reference import rms_norm
from sparsecc.synthetic.shapes import SHAPES

PROMPT_TOKENS = 64
STEPS = 32
CAPACITY = 512


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--weights", nargs="+", choices=["bf16", "int4"], default=["bf16", "int4"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.json")
    arguments = parser.parse_args()
    device = require_gpu()
    shape = SHAPES[arguments.shape]
    contestants, facts = {"dense": dense_turn(shape, device)}, {}
    report("compiled the dense model")
    for weights in arguments.weights:
        contestants[weights], facts[weights] = sparse_turn(shape, weights, arguments.sparsity, device)
    times = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, turn in contestants.items():
            times[name].append(turn() * 1e3)
    results = {name: summary(times[name], times["dense"]) | facts.get(name, {}) for name in times}
    arguments.output.write_text(
        json.dumps({"gpu": torch.cuda.get_device_name(), "shape": arguments.shape, "results": results}, indent=1) + "\n"
    )
    for name, result in results.items():
        report(f"{name}: {result}")


def dense_turn(shape, device):
    """A function that decodes ``STEPS`` tokens with the dense model and gives the seconds of one."""
    with torch.device(device):
        model = DenseDecoder(shape, CAPACITY).to(torch.bfloat16)
    token, position = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))

    def decode(token, position):
        return model(token, position).argmax().view(1)

    step = torch.compile(decode, mode="reduce-overhead", fullgraph=True)

    def turn():
        position.fill_(PROMPT_TOKENS)

        def advance():
            token.copy_(step(token, position))
            position.add_(1)

        return seconds_of_a_step(advance)

    with torch.no_grad():
        turn()
    return torch.no_grad()(turn)


def sparse_turn(shape, weights, sparsity, device):
    """The same with the executor, and facts of the model."""
    thresholds = calibrated_thresholds(shape, weights, sparsity, device)
    report(f"{weights}: thresholds {thresholds}")
    decoder_graph = RandomDecoder(shape, weights, thresholds, device)
    cache = {"kv_heads": shape.kv_heads, "head_size": decoder_graph.head_size}
    before = torch.cuda.memory_allocated()
    decoder = open_decoder(decoder_graph.model, CAPACITY, device=device, **cache)
    loaded = torch.cuda.memory_allocated() - before
    report(f"{weights}: {loaded / 1e9:.2f} GB loaded")
    facts = {"sparsity": achieved_sparsity(decoder_graph, decoder.executor), "loaded_gb": loaded / 1e9}
    prompt = torch.randint(shape.vocabulary, (PROMPT_TOKENS,)).tolist()

    def turn():
        decoder.start(prompt)
        return seconds_of_a_step(decoder.step)

    turn()
    return turn, facts


def seconds_of_a_step(step):
    for _ in range(4):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def calibrated_thresholds(shape, weights, sparsity, device):
    """The quantiles of each kind of hidden state in a model of two such layers, later ones under earlier thresholds."""
    shallow = dataclasses.replace(shape, layers=2, vocabulary=8192)
    thresholds = {"norm": 0.0, "attended": 0.0, "gated": 0.0}
    for kind in thresholds:
        torch.manual_seed(0)
        graph = RandomDecoder(shallow, weights, thresholds, device)
        executor = GraphExecutor(graph.model, device, torch.bfloat16)
        found = [
            values.float().abs().flatten()
            for projection, values in hidden_states(graph, executor)
            if projection.inputs[1].name == f"{kind}/T"
        ]
        thresholds[kind] = torch.cat(found).sort().values[int(sparsity * sum(len(part) for part in found))].item()
    return thresholds


def achieved_sparsity(graph, executor):
    """The share of all projections' weights that decoding a token does not read."""
    skipped = stored = 0
    for projection, values in hidden_states(graph, executor):
        channels, columns = projection.inputs[2].shape.numpy()
        threshold = float(projection.inputs[1].const_value.numpy()[0])
        stored += channels * columns
        skipped += channels * columns * (values.float().abs() < threshold).float().mean().item()
    return skipped / stored


def hidden_states(graph, executor):
    """Each projection with the hidden states [STEPS, K] that it reads when random tokens follow a random prompt."""
    projections = [node for node in graph.graph if node.op_type.startswith("SparseLinear")]
    computed = {node.inputs[0].name: before_norm(node.inputs[0]).name for node in projections}
    device = executor.placement.device
    cache_shape = (1, graph.shape.kv_heads, PROMPT_TOKENS + STEPS, graph.head_size)
    inputs = {
        name: torch.zeros(cache_shape, dtype=torch.bfloat16, device=device)
        for name in executor.input_names
        if name.startswith("past")
    }
    seen = {name: [] for name in computed.values()}
    with torch.no_grad():
        for length in range(PROMPT_TOKENS, PROMPT_TOKENS + STEPS + 1):
            new_tokens = PROMPT_TOKENS if length == PROMPT_TOKENS else 1
            inputs["input_ids"] = torch.randint(graph.shape.vocabulary, (1, new_tokens), device=device)
            inputs["attention_mask"] = torch.ones(1, length, dtype=torch.int64, device=device)
            for name, values in executor.run(inputs, list(seen)).items():
                if new_tokens == 1:
                    seen[name].append(values.flatten())
    states = {}
    for name, read in computed.items():
        states[name] = torch.stack(seen[read])
        if read != name:
            states[name] = rms_norm(states[name], torch.ones_like(states[name][0]), EPSILON)
    return [(node, states[node.inputs[0].name]) for node in projections]


def before_norm(hidden):
    """The sum that a hidden state is the norm of, if it is: the decoder computes such norms within projections."""
    norm = hidden.producer()
    return norm.outputs[3] if norm.op_type == "SkipSimplifiedLayerNormalization" else hidden


def summary(milliseconds, dense_milliseconds):
    """The median of the rounds' step times, their range, and the ratio of the dense model's to it."""
    median = statistics.median(milliseconds)
    return {
        "ms": median,
        "ms_range": [min(milliseconds), max(milliseconds)],
        "tokens_per_s": 1e3 / median,
        "ratio": statistics.median(dense_milliseconds) / median,
    }


def report(line):
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
