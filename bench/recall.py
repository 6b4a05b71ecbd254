"""Which architecture recalls: multi-query associative recall at equal parameters.

python bench/recall.py --out docs
python bench/recall.py --arch gpt mamba2 --backend mlx --pairs 8 16 --length 64 --vocab 64
python bench/recall.py --quick

Every architecture is trained by Muon on texts made on the fly (bench/associations.py), in which the
number of pairs changes from step to step, with the loss of the answers alone; then it answers texts
that it has not seen. Each with the best of some learning rates, over several seeds; a training is a
process of its own. Called again, it goes on where it stopped: OUT/recall.json holds what is done;
beside it the page (.md) and the picture (.png).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.again import RESULTS, again
from bench.associations import Recall
from bench.pages import markdown, on_terminal, write_part
from bench.recall_sheets import draw, found_order, mean_accuracy, sheet
from specs import Spec, UserError, architectures, init_weights, main_exit, spec_type
from specs.backend import Backend, OptimizerSettings, available_backends, load_backend
from specs.machine import chip
from train.files import write_json
from train.results import resumed
from train.schedule import learning_rate
from train.settings import Settings
from train.study.equal import nearest

FULL: dict[str, Any] = {"pairs": [2, 4, 8], "length": 32, "vocab": 32, "parameters": 150_000,
                        "layers": 2, "width": 64, "steps": 400, "batch": 256, "seeds": 3,
                        "rates": [1e-2, 3e-2]}
QUICK: dict[str, Any] = {"pairs": [2, 4], "length": 16, "vocab": 32, "parameters": 60_000,
                         "width": 32, "steps": 30, "batch": 32, "seeds": 1, "rates": [1e-2]}
OPTIMIZER = OptimizerSettings("muon")
HELD_OUT = 256  # texts for each number of pairs, read so many at once:
READ = 64


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--arch", nargs="+", default=architectures(), metavar="NAME",
                      help=f"of {', '.join(architectures())} (all)")
    made.add_argument("--backend", choices=available_backends(), default=available_backends()[-1],
                      help="mlx or torch (torch where it is installed)")
    made.add_argument("--device", help="cpu, gpu (MLX), cuda, mps (PyTorch)")
    made.add_argument("--pairs", type=int, nargs="+", metavar="N",
                      help="of a key and a value in a text (2 4 8)")
    made.add_argument("--rates", type=float, nargs="+", metavar="LR",
                      help="learning rates to choose from with the first seed (1e-2 3e-2)")
    helps = {"length": "tokens of a text", "vocab": "keys and values, half each",
             "parameters": "of each model, within 2 %%", "layers": "near which its depth is chosen",
             "width": "near which its width is chosen", "steps": "of a training",
             "batch": "texts a step", "seeds": "of each training"}
    for name, text in helps.items():
        made.add_argument(f"--{name}", type=int, help=f"{text} ({FULL[name]})")
    made.add_argument("--sparse", action="store_true", help="ask for each key once and never tell "
                      "the answer, as the paper: that takes many more steps to learn")
    made.add_argument("--quick", action="store_true", help="smallest sizes, which learn little")
    made.add_argument("--out", type=Path, default=RESULTS, help=f"folder ({RESULTS})")
    made.add_argument("--run", nargs=3, metavar=("ARCH", "LR", "SEED"), help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    for name, value in {**FULL, **(QUICK if args.quick else {})}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        if (min(value) if isinstance(value := getattr(args, name), list) else value) <= 0:
            raise UserError(f"--{name} must be positive")
    args.pairs = sorted(set(args.pairs))
    task = Recall(args.length, args.vocab, args.sparse)
    for pairs in args.pairs:
        task.require(pairs)
    if args.run:
        arch, lr, seed = args.run
        backend = load_backend(args.backend, args.device)
        json.dump(measure(args, backend, task, model_of(args, arch), float(lr), int(seed)),
                  sys.stdout)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "recall.json"
    about = {**{name: getattr(args, name) for name in (*FULL, "sparse", "backend", "device")},
             "optimizer": OPTIMIZER.optimizer, "chip": chip(),
             "version": importlib.metadata.version(args.backend)}
    document = resumed(file, about, "measured", "--out") or {"about": about, "measured": {}}
    known = document.setdefault("models", {})
    for arch in args.arch:
        spec = model_of(args, arch)
        known.setdefault(arch, {"parameters": spec.param_count(), "spec": spec.to_dict()})
    fill(document, args, file)
    write_json(file, document)
    lines = [f"{args.parameters:,} parameters within 2 %, {args.steps} steps of {args.batch} texts "
             f"of {args.length} tokens, {args.backend} {document['about']['version']}, float32, "
             f"{chip()}. Mean accuracy over {args.seeds} seeds, lowest and highest in brackets.",
             "", *markdown(sheet(document)), found_order(document), "",
             "![Accuracy over the number of pairs](recall.png)"]
    write_part(file.with_suffix(".md"), "Which one recalls", lines)
    draw(document, file.with_suffix(".png"))
    console = Console(highlight=False, markup=False)
    on_terminal([sheet(document)], console)
    console.print(found_order(document))
    print(file, file.with_suffix(".md"), file.with_suffix(".png"), sep=", ")


def model_of(args: argparse.Namespace, arch: str) -> Spec:
    """The spec of this architecture with as many parameters as asked for."""
    common: dict[str, Any] = {"vocab_size": args.vocab, "block_size": args.length, "dropout": 0.0}
    if arch == "gpt":
        common["pos"] = "rope"  # as moe and mla have it
    preset, changed = nearest(arch, args.parameters, args.layers, args.width, common)
    return spec_type(arch).preset(preset, **{**common, **changed})


def fill(document: dict[str, Any], args: argparse.Namespace, file: Path) -> None:
    """Train what is not trained yet, each architecture at all rates and on at the best."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn(),
               TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(args.arch) * (len(args.rates) + args.seeds - 1))

        def train(arch: str, lr: float, seed: int) -> float:
            """Mean accuracy of one training."""
            place = f"{arch} {lr:g} {seed}"
            progress.update(bar, description=place)
            if place not in document["measured"]:
                document["measured"][place] = again(arch, str(lr), str(seed))
                write_json(file, document)
            progress.advance(bar)
            return mean_accuracy(document["measured"][place])

        for arch in args.arch:
            found = {lr: train(arch, lr, 0) for lr in args.rates}
            document["models"][arch]["rate"] = best = max(found, key=lambda lr: found[lr])
            for seed in range(1, args.seeds):
                train(arch, best, seed)


def measure(args: argparse.Namespace, backend: Backend, task: Recall, spec: Spec, lr: float,
            seed: int) -> dict[str, Any]:
    """Train once: accuracy by the number of pairs, the last loss, seconds."""
    trainer = backend.trainer(backend.build(spec, init_weights(spec, seed)), OPTIMIZER)
    settings, loss = Settings(steps=args.steps, lr=lr), float("nan")
    start = time.perf_counter()
    for step in range(args.steps):
        pairs = args.pairs[step % len(args.pairs)]
        trainer.step([task.batch(seed, step, pairs, args.batch)], learning_rate(settings, step))
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            loss = trainer.read().losses[-1]
    seconds = time.perf_counter() - start
    accuracy = {}
    for pairs in args.pairs:
        texts = [task.batch(seed, ("held out", part), pairs, READ)
                 for part in range(HELD_OUT // READ)]
        right = sum(trainer.evaluate(batch.tokens, batch.targets)[1] for batch in texts)
        accuracy[str(pairs)] = right / sum(batch.counted for batch in texts)
    return {"accuracy": accuracy, "loss": loss, "seconds": seconds}


if __name__ == "__main__":
    main_exit(main)
