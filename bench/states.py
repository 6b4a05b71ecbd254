"""What decoding holds for one sequence, in MB, by the specs' own counts.

python bench/states.py --layers 12 --width 768 --tokens 1024 8192 65536

All architectures at one width and depth, other fields at their defaults, in float32. That a
decoder holds what its spec says is a rung of parity/check.py ("state bytes").
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from specs import UserError, architectures, main_exit, spec_type


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 8192, 65536], metavar="T")
    args = parser.parse_args()
    if min(args.tokens) < 1:
        raise UserError("--tokens must be at least 1")
    table = Table("architecture", "parameters", *(f"{T:,} tokens" for T in args.tokens), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for arch in architectures():
        spec = spec_type(arch)(n_layer=args.layers, n_embd=args.width,
                               block_size=max(args.tokens))
        for kind in spec.decode_kinds:
            held = (f"{spec.decode_state_bytes(T, kind) / 1e6:,.1f}" for T in args.tokens)
            name = arch if len(spec.decode_kinds) == 1 else f"{arch}, {kind}"
            table.add_row(name, f"{spec.param_count():,}", *held)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main_exit(main)
