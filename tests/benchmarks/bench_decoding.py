"""What decoding takes, by format: python tests/benchmarks/bench_decoding.py [--width 4000] [--height 3000] [NAME …].

Memory is what decoding asks for beside the file, the picture that is returned included; the last column divides it by
the pixels as the file has them or as they are returned, whichever are more. Time is the processor's. Linux only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.formats import FORMS, peaks


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--width", type=int, default=4000)
    options.add_argument("--height", type=int, default=3000)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"all of them by default: {', '.join(FORMS)}")
    given = options.parse_args()
    print(f"{'form':36} {'file':>6} {'pixels':>7} {'peak':>7}  MiB {'ratio':>6} {'seconds':>8}")
    for name in given.names or FORMS:
        size = given.height, given.width
        taken = peaks([name], *size)[name]
        seconds = peaks([name], *size, by_itself=False)[name].seconds
        sizes = (taken.file / 2**20, taken.pixels / 2**20, taken.peak / 2**20)
        print(
            f"{name:36} {sizes[0]:6.1f} {sizes[1]:7.1f} {sizes[2]:7.1f}      {sizes[2] / sizes[1]:6.2f} {seconds:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
