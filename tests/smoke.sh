#!/usr/bin/env bash
# Runs every block of docs/curl_examples.md, in order, against a running service.
# URL: its address; GOOD and MORE: folders of images of good parts; PART: the image of a bad one. Without them it renders discs.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

if [[ -z "${GOOD:-}" || -z "${MORE:-}" || -z "${PART:-}" ]]; then
    (cd "$root" && "$python" - "$work" <<'RENDER'
import sys
from pathlib import Path

import numpy as np

from backend.tools.scenes import brake_disc
from backend.base.images import encode_png

out, rng = Path(sys.argv[1]), np.random.default_rng(1)
for folder, number in (*(("good", n) for n in range(4)), *(("more", n) for n in range(3))):
    (out / folder).mkdir(exist_ok=True)
    (out / folder / f"{number}.png").write_bytes(encode_png(brake_disc(rng, size=224).image))
(out / "part.png").write_bytes(encode_png(brake_disc(rng, size=224, defect="crack").image))
RENDER
    )
    GOOD="$work/good" MORE="$work/more" PART="$work/part.png"
fi
export GOOD MORE PART URL="${URL:-http://127.0.0.1:8000}"

awk '/^```sh$/ { inside = 1; next } /^```$/ { if (inside) print "echo"; inside = 0 } inside' \
    "$root/docs/curl_examples.md" >"$work/tour.sh"
cd "$work"
bash -euo pipefail "$work/tour.sh"
test -s "$work/heatmap.png"
echo "smoke: every block of docs/curl_examples.md was answered"
