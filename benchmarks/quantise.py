"""Quantising: weights a second and memory, beside llama.cpp's own tool on the same weights.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python
    python benchmarks/quantise.py                       # 96 M weights, every kind, one and two threads
    python benchmarks/quantise.py --only Q4_K_M Q8_0
    python benchmarks/quantise.py --size large --threads 2 --only Q4_K_M --only-ours    # 1.0 G weights, 2 GB of shards

Ours goes from the folder of float16 shards to the finished file, llama.cpp from the F16 file that we made of that folder;
each measurement is a process of its own, and starts once libraries are loaded. Ours includes waiting until the file is on
disk, llama.cpp's does not. On a machine that does other work too, seconds of CPU compare better than
seconds of the clock; both are shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "vocab_size": 20_480},
    "large": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 18, "vocab_size": 64_000},
}
KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K", "BF16", "F16")
_SHARD = 512 << 20


def save_checkpoint(folder: Path, sizes: dict[str, int]) -> None:
    """A Llama of random float16 weights, in shards of half a gigabyte; made a shard at a time."""
    from safetensors.numpy import save_file
    from tiny_llama import train_tokenizer

    hidden, ffn, vocab = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    for layer in range(sizes["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {at + f"self_attn.{part}_proj": (hidden, hidden) for part in "qo"}
        shapes |= {at + f"self_attn.{part}_proj": (hidden // 4, hidden) for part in "kv"}
        shapes |= {at + f"mlp.{part}_proj": (ffn, hidden) for part in ("gate", "up")}
        shapes |= {at + "mlp.down_proj": (hidden, ffn)}
        shapes |= {at + f"{part}_layernorm": (hidden,) for part in ("input", "post_attention")}
    train_tokenizer().save_pretrained(folder)
    random, shards, held = np.random.default_rng(0), [{}], 0
    for name, shape in shapes.items():
        weights = (0.02 * random.standard_normal(shape, dtype=np.float32)).astype(np.float16)
        if held and held + weights.nbytes > _SHARD:
            shards.append({})
            held = 0
        shards[-1][name + ".weight"] = weights
        held += weights.nbytes
    places = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    heads = hidden // 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config | sizes))


def measure(side: str, source: Path, out: Path, kind: str, threads: int) -> dict[str, float]:
    """Seconds of the clock, seconds of CPU and peak memory of one conversion, in this process."""
    from stillroom.contracts.memory import peak_resident

    if side == "ours":
        from stillroom.gguf import export, predict_size

        predict_size(source, kind)  # libraries are imported when they are first needed, which is not counted
        work = lambda: export(source, out, kind, overwrite=True, threads=threads)  # noqa: E731
    else:
        from make_quant_golden import quantise_by_llama_cpp

        work = lambda: quantise_by_llama_cpp(source, out, kind, threads=threads)  # noqa: E731
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "clock": time.perf_counter() - clock,
        "cpu": time.process_time() - cpu,
        "peak": peak_resident(),
    }


def apart(side: str, source: Path, out: Path, kind: str, threads: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", side, str(source), str(out), kind, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} {kind} does not run: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", nargs="+", default=KINDS, metavar="KIND")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=1, help="the best of so many")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/quantise"), help="where files are kept")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        side, source, out, kind, threads = given.measure
        print(json.dumps(measure(side, Path(source), Path(out), kind, int(threads))))
        return
    folder, f16, out = (given.work / given.size / name for name in ("model", "F16.gguf", "out.gguf"))
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder, SIZES[given.size])
    from stillroom.gguf import export
    from stillroom.gguf.convert import plan_file
    from stillroom.gguf.source import ModelFolder

    if not f16.is_file() and not given.only_ours:
        export(folder, f16, "F16")
    weights = plan_file(ModelFolder(folder), "F16").parameters
    sides = {"ours": folder} | ({} if given.only_ours else {"llama.cpp": f16})
    print(f"{weights / 1e6:.0f} M weights; M weights a second by the clock (by CPU time); peak MiB")
    for kind in given.only:
        for threads in given.threads:
            found: dict[str, dict[str, Any]] = {}
            for _ in range(given.runs):
                for side, source in sides.items():
                    new = apart(side, source, out, kind, threads)
                    old = found.setdefault(side, new)
                    found[side] = {key: min(old[key], new[key]) for key in new}
            cells = [
                f"{side} {weights / 1e6 / one['clock']:7.1f} ({weights / 1e6 / one['cpu']:7.1f}) "
                f"{one['peak'] / 2**20:6,.0f} MiB"
                for side, one in found.items()
            ]
            if len(found) == 2:
                ratios = [found["llama.cpp"][key] / found["ours"][key] for key in ("clock", "cpu")]
                cells.append(f"ours / llama.cpp {ratios[0]:.2f} ({ratios[1]:.2f})")
            print(f"{kind:<7} {threads} threads  " + "   ".join(cells), flush=True)
    out.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
