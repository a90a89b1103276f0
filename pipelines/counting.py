"""Cell counting: train, test and predict a network whose density maps add up to the number of cells.

One CPU or GPU:
    python pipelines/counting.py fit --config pipelines/counting.yaml --data.root DIR --data.manifest vgg_cells
Four GPUs of one machine:
    python pipelines/counting.py fit --config pipelines/counting.yaml --data.root DIR --trainer.devices 4
Continue after an interruption, with the same command:
    python pipelines/counting.py fit --config pipelines/counting.yaml --data.root DIR --ckpt_path last
Score the test set once; the checkpoint knows its network, scale and interval:
    python pipelines/counting.py test --ckpt_path RUN/checkpoints/best.ckpt --data.root DIR --data.manifest vgg_cells
Count images without dots, and the regions of a GeoJSON or ImageJ file in each of them:
    python pipelines/counting.py predict --ckpt_path RUN/checkpoints/best.ckpt --data.images 'lab/*.tif' \
        --rois regions.geojson

DIR holds the files of the manifest. Every run writes into a folder RUN below runs/counting and nowhere else: from
`test` and `predict` a table with a count and its interval in each row, density maps, points and overlays of all images.
"""

import sys

from biocnn.data.counting_module import CountingDataModule
from biocnn.tasks.counting import CountingTask
from biocnn.training.counting import (
    counting_writers,
    fill_channels,
    finish_run,
    prepare_test,
    report_prediction,
    report_test,
)
from biocnn.training.pipeline import Job, run_pipeline

JOB = Job(
    name="counting",
    task=CountingTask,
    datamodule=CountingDataModule,
    monitors={"val_mae_scaled": "min", "val_mae": "min", "val_rmse": "min", "val_game2": "min", "val_game3": "min"},
    after_fit=finish_run,
    before_test=prepare_test,
    after_test=report_test,
    after_predict=report_prediction,
    complete=fill_channels,
    writers=counting_writers,
)

if __name__ == "__main__":
    sys.exit(run_pipeline(JOB))
