"""Tubular structures: train, test and predict a U-Net that maps vessels, neurites, membranes or roads.

One CPU or GPU:
    python pipelines/tubularity.py fit --config pipelines/tubularity.yaml --data.root DIR --data.manifest drive
Four GPUs of one machine:
    python pipelines/tubularity.py fit --config pipelines/tubularity.yaml --data.root DIR --trainer.devices 4
Continue after an interruption, with the same command:
    python pipelines/tubularity.py fit --config pipelines/tubularity.yaml --data.root DIR --ckpt_path last
Score the test set once; the checkpoint knows its network:
    python pipelines/tubularity.py test --ckpt_path RUN/checkpoints/best.ckpt --data.root DIR --data.manifest drive
Map images without masks:
    python pipelines/tubularity.py predict --ckpt_path RUN/checkpoints/best.ckpt --data.images 'lab/*.tif'

DIR holds the files of the manifest; `biocnn data init DIR` drafts one for images of your own. The planes of stacks are
taken one by one, as images of two dimensions, so networks of three cannot be trained here. Every run writes into a
folder RUN below runs/tubularity and nowhere else: from `test` and `predict` a table, maps, masks and overlays of all
images.
"""

import sys

from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.training.pipeline import Job, run_pipeline
from biocnn.training.segmentation import (
    choose_threshold_if_needed,
    choose_threshold_of_run,
    fill_channels,
    report_prediction,
    report_test,
    segmentation_writers,
)

JOB = Job(
    name="tubularity",
    task=SegmentationTask,
    datamodule=SegmentationDataModule,
    monitors={"val_dice": "max", "val_cldice": "max", "val_betti0_error": "min", "val_bce": "min"},
    after_fit=choose_threshold_of_run,
    before_test=choose_threshold_if_needed,
    after_test=report_test,
    after_predict=report_prediction,
    complete=fill_channels,
    writers=segmentation_writers,
)

if __name__ == "__main__":
    sys.exit(run_pipeline(JOB))
