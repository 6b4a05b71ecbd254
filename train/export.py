"""Write a run in the format of transformers and mlx_lm: `python train/export.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from specs import UserError, main_exit
from train.neighbours import TARGETS, neighbour, neighbours
from train.neighbours.folder import write_folder
from train.rundir import RunDir

EXAMPLES = """examples:
  python train/export.py --run first --to hf first-hf
  python train/export.py --run first --step 200 --to mlx-lm first-mlx

then, with nothing of this project:
  transformers.AutoModelForCausalLM.from_pretrained("first-hf"), AutoTokenizer likewise
  mlx_lm.generate --model first-mlx --prompt "The "
  mlx_lm.server --model first-mlx
  mlx_lm.convert --hf-path first-mlx --mlx-path first-4bit -q

The two are the same files wherever mlx_lm runs the model by its own class. Where it has none,
"mlx-lm" carries a model file, and mlx_lm asks for --trust-remote-code.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="train/export.py", epilog=EXAMPLES, allow_abbrev=False,
        description="Write a run as the folder that transformers and mlx_lm read: config.json, "
        "model.safetensors, tokenizer.", formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", metavar="DIR", type=Path, help="new, or empty")
    made.add_argument("--run", required=True, metavar="NAME",
                      help="a folder under runs/, or its path; its architecture is one of: "
                      + ", ".join(neighbours()))
    made.add_argument("--to", required=True, choices=TARGETS, help="who is to read it")
    made.add_argument("--step", type=int, metavar="N",
                      help="the checkpoint of this step (default: the last)")
    return made


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.folder.exists() and not (args.folder.is_dir() and not any(args.folder.iterdir())):
        raise UserError(f"{args.folder} exists and is not empty: choose another folder")
    if args.folder.resolve() == Path.cwd():  # it would be replaced under the feet of the shell
        raise UserError("the folder you are in cannot be written as a whole: name a new one")
    run = RunDir.open(args.run)
    spec, tokenizer = run.spec, run.tokenizer()
    folder = neighbour(spec.arch).to_upstream(spec, run.weights(args.step), args.to)
    write_folder(args.folder, folder, tokenizer.to_json(), run.origin)
    code = " --trust-remote-code" if folder.model_file else ""
    print(f"{args.folder}: {folder.config['model_type']}, {spec.param_count():,} parameters of "
          f"{run.name}" + (f", with {folder.model_file.name}" if folder.model_file else ""),
          file=sys.stderr)
    if args.to == "mlx-lm":
        print(f"generate:  mlx_lm.generate --model {args.folder}{code} --prompt 'The '",
              file=sys.stderr)
    return 0


if __name__ == "__main__":
    main_exit(main)
