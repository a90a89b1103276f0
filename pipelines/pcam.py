"""Patch classification: train, test and predict.

One CPU or GPU:
    python pipelines/pcam.py fit --config pipelines/pcam.yaml --data.root DIR
Four GPUs of one machine:
    python pipelines/pcam.py fit --config pipelines/pcam.yaml --data.root DIR --trainer.devices 4
Continue after an interruption, with the same command:
    python pipelines/pcam.py fit --config pipelines/pcam.yaml --data.root DIR --ckpt_path last
Score the test set once; the checkpoint knows its network:
    python pipelines/pcam.py test --ckpt_path runs/pcam/RUN/checkpoints/best.ckpt --data.root DIR
Predict patches without labels:
    python pipelines/pcam.py predict --ckpt_path runs/pcam/RUN/checkpoints/best.ckpt --data.images 'patches/*.png'

DIR holds the files of the manifest: `biocnn data fetch pcam --root DIR` gets them. Every run writes into
runs/pcam/RUN and nowhere else.
"""

import sys

from biocnn.data.patch_module import PatchDataModule
from biocnn.tasks.classification import ClassificationTask
from biocnn.training.classification import calibrate_if_needed, calibrate_run, report_prediction, report_test
from biocnn.training.pipeline import Job, run_pipeline

JOB = Job(
    name="pcam",
    task=ClassificationTask,
    datamodule=PatchDataModule,
    monitors={"val_nll": "min", "val_auroc": "max"},
    after_fit=calibrate_run,
    before_test=calibrate_if_needed,
    after_test=report_test,
    after_predict=report_prediction,
)

if __name__ == "__main__":
    sys.exit(run_pipeline(JOB))
