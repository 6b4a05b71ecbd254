"""What a training step of BDH takes: tokens/s, the share of the FLOP bound, peak memory.

python bench/bdh_memory.py --shapes 1x512 4x256
python bench/bdh_memory.py --shapes 32x512 --micro-batch 1 --who mlx torch --steps 0 --rounds 1
python bench/bdh_memory.py --official bdh.py

Each contestant runs in a process of its own, one after the other, several rounds of them:
"mlx" and "torch" with the gradient of a layer by hand (--recompute), "mlx-plain" and
"torch-plain" without, and "official", the code of pathwaycom/bdh in the file given, under
PyTorch's AdamW. Memory is the most that the process ever held. The bound is the rate of a large
matrix product, measured in the same process, over the FLOPs of a step without recomputation.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.again import again
from specs import UserError, init_weights, main_exit, spec_type
from specs.backend import Batch, OptimizerSettings, available_backends, load_backend
from specs.base import Spec
from specs.machine import chip, process_peak
from train.batches import split

OWN = [f"{name}{form}" for name in available_backends() for form in ("", "-plain")]
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--who", nargs="+", choices=OWN, default=OWN, help="default: all")
    parser.add_argument("--official", type=Path, metavar="FILE", help="bdh.py of pathwaycom/bdh")
    parser.add_argument("--preset", default="25m")
    parser.add_argument("--shapes", nargs="+", default=["1x512", "4x256"], metavar="BxT")
    parser.add_argument("--micro-batch", type=int, metavar="ROWS", help="default: all rows")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2,
                        help="timed, after one that is not; 0: that one is")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--run", metavar="WHO", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args)))
        return
    who = [*args.who, *(["official"] if args.official else [])]
    rows = [{"who": name, "shape": shape, **figures(name, shape)}
            for shape in args.shapes for _ in range(args.rounds) for name in who]
    show(rows)
    if args.json:
        args.json.write_text(json.dumps({"chip": chip(), "rows": rows}, indent=1))


def figures(name: str, shape: str) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    found = again(name, "--shapes", shape)
    print(f"{shape} {name}: {found['rate']:.1f} tokens/s, {found['peak'] / 2**20:.0f} MiB",
          file=sys.stderr)
    return found


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Tokens/s, peak bytes and share of the bound of one contestant at one shape."""
    B, T = map(int, args.shapes[0].split("x"))
    spec = spec_type("bdh").preset(args.preset, block_size=T)
    panel = "torch" if args.run == "official" else args.run.removesuffix("-plain")
    backend = load_backend(panel)
    data = np.random.default_rng(0).integers(0, spec.vocab_size, (B, T + 1)).astype(np.int32)
    rows = Batch(data[:, :-1], data[:, 1:], np.arange(B, dtype=np.int32))
    if args.run == "official":
        step = official(args.official, spec, rows)
    else:
        recompute = not args.run.endswith("-plain")
        model = backend.build(spec, init_weights(spec), args.dtype, recompute)
        trainer = backend.trainer(model, OptimizerSettings())
        batches = split(rows, args.micro_batch or B)

        def step() -> object:
            trainer.step(batches, 1e-3)
            return trainer.read()

    seconds = []
    for _ in range(1 + args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    rate, peak = B * T / median(seconds[1:] or seconds), process_peak()
    bound = backend.matmul_rate(args.dtype) / (3 * spec.flops_per_token(T))
    return {"rate": rate, "peak": peak, "share": rate / bound}


def official(path: Path, spec: Spec, rows: Batch) -> Step:
    """One training step of the official model, at the same sizes, by the torch that it imports."""
    source = importlib.util.spec_from_file_location("official_bdh", path)
    if source is None or source.loader is None:
        raise UserError(f"{path} is no Python file")
    module: Any = importlib.util.module_from_spec(source)
    sys.modules["official_bdh"] = module
    source.loader.exec_module(module)
    fields = {name: value for name, value in spec.to_dict().items()
              if name in module.BDHConfig.__dataclass_fields__}
    model = module.BDH(module.BDHConfig(**fields))
    optimizer = module.torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    tokens, targets = (module.torch.tensor(a, dtype=module.torch.long)
                       for a in (rows.tokens, rows.targets))

    def step() -> object:
        _, loss = model(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def show(rows: list[dict[str, Any]]) -> None:
    """Medians over the rounds, their spread, and how each stands to the last contestant."""
    table = Table("tokens", "who", "tokens/s", "lowest … highest", "of the bound", "peak", "speed",
                  "memory", box=None, title=chip())
    for column in table.columns[2:]:
        column.justify = "right"
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["shape"], row["who"]), []).append(row)
    for (shape, name), each in found.items():
        rates, peak = [row["rate"] for row in each], median(row["peak"] for row in each)
        last = found[shape, rows[-1]["who"]]
        speed = median(row["rate"] / other["rate"] for row, other in zip(each, last, strict=True))
        memory = peak / median(row["peak"] for row in last)
        table.add_row(shape, name, f"{median(rates):.1f}", f"{min(rates):.1f} … {max(rates):.1f}",
                      f"{median(row['share'] for row in each):.0%}", f"{peak / 2**20:.0f} MiB",
                      f"{speed:.2f}", f"{memory:.3f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main_exit(main)
