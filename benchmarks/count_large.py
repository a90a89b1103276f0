"""Peak memory and time of counting one large image with a trained model on a CPU, libraries and image included.

    python benchmarks/count_large.py --ckpt_path RUN/checkpoints/best.ckpt --size 4096 > docs/results/count_large.jsonl

The image is noise of the kind that the model was trained on: time and memory do not depend on what is in it. It is
counted as a user would, by `biocnn.load(...).count(image)`, with the views of the checkpoint. Linux only.
"""

import argparse
import json
import resource
import time

import numpy as np

import biocnn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the image")
    arguments = parser.parse_args()
    counter = biocnn.load(arguments.ckpt_path)
    image = np.random.default_rng(0).integers(
        0, 255, (arguments.size, arguments.size, len(counter.channels)), dtype=np.uint8
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    counter.count(image)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "size": arguments.size,
                "channels": len(counter.channels),
                "views": counter.task.views,
                "seconds": round(seconds, 1),
                "peak_gb": round(peak * 1024 / 1e9, 3),
                "with_libraries_and_image_gb": round(before * 1024 / 1e9, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
