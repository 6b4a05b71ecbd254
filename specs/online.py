"""What the decoding of a long convolution keeps and moves, in rows: the inputs of one token.

`OnlineConv` in {mlx,torch}_models/online.py does it; see there for how.
"""

from __future__ import annotations

BLOCK = 64  # tokens that are looked at one by one; a power of two
KINDS = ("cache", "online")  # the states: all inputs, or these and what they add to later outputs


def held(T: int, size: int, kind: str = "auto", block: int = BLOCK) -> int:
    """Rows that decoding holds after T ≤ `size` tokens.

    "cache": all inputs. "online": of whole blocks as many as the least power of two above their
    number, or `size` rows where these are fewer; and the inputs of the block not yet whole.
    """
    blocks = T // block
    if kind == "cache" or not blocks:
        return T
    return min(size, block << blocks.bit_length()) + T % block


def moved(T: int, size: int, kind: str = "auto") -> float:
    """Rows that one token reads and writes, on average around the T-th.

    "cache": all inputs. "online": half a block; and of each power of two U up to T the inputs
    read, the outputs read and written, once in 2·U tokens.
    """
    if kind == "cache":
        return T
    levels = min(T, size - 1) // BLOCK
    return min(T, BLOCK / 2) + 3 / 2 * levels.bit_length()
