"""Write cost files of GPUs, computed from published figures:  python experiments/costs/roofline.py [FOLDER]

The roofline model (Williams et al. 2009) gives an ideal cost, so a bound and not a measurement; see
core/costmodel.roofline. The figures:

* NVIDIA A100 80GB SXM (datasheet, 2021): 2,039 GB/s, 312 TFLOP/s dense bfloat16.
* NVIDIA H100 SXM (datasheet, 2023): 3.35 TB/s, 989 TFLOP/s dense bfloat16.
* Llama-2 7B and 13B: the shapes in their published config.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.costmodel import roofline

HERE = Path(__file__).parent
GPUS = {
    "a100_80gb_sxm": ("NVIDIA A100 80GB SXM", 2039e9, 312e12),
    "h100_sxm": ("NVIDIA H100 SXM", 3350e9, 989e12),
}
MODELS = {
    "llama2_7b": {"layers": 32, "hidden": 4096, "intermediate": 11008, "heads": 32, "kv_heads": 32},
    "llama2_13b": {"layers": 40, "hidden": 5120, "intermediate": 13824, "heads": 40, "kv_heads": 40},
}


@one_line_script("roofline")
def main(arguments: list[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE, help="default: the folder of this script")
    folder = parser.parse_args(arguments).folder
    for gpu, (device, bandwidth, flops) in GPUS.items():
        for model, shape in MODELS.items():
            source = (
                f"roofline, not measured: {device} datasheet ({bandwidth / 1e9:,.0f} GB/s, {flops / 1e12:.0f} TFLOP/s "
                "dense bfloat16), 512 tokens of context (experiments/costs/roofline.py)"
            )
            costs = roofline(
                device=device,
                model=model,
                source=source,
                bytes_per_s=bandwidth,
                flops_per_s=flops,
                vocabulary=32000,
                **shape,
            )
            path = folder / f"{model}_{gpu}_roofline.json"
            path.write_text(json.dumps(costs.to_dict(), indent=1) + "\n", encoding="utf-8")
            print(
                f"{path}: a token {1e3 * costs.forward(1):.2f} ms, 64 tokens {costs.forward.relative(64):.2f} of that"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
