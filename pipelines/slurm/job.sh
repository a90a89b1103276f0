# What the sbatch files of this folder share. Edit the first part for your cluster, once; sourced, never run.

# --- The environment of your cluster -------------------------------------------------------------------------------
set +u # activation scripts use variables that are not set
# One of these, and modules if your cluster has them:
# module load cuda/12.6
# source .venv/bin/activate
# source "$HOME/miniforge3/etc/profile.d/conda.sh" && conda activate biocnn
set -u

# Several nodes that do not find each other often need the name of their network interface (`ip -brief address`):
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# --- What holds on any cluster -------------------------------------------------------------------------------------
# Shared file systems often refuse HDF5 its locks. Data are only read, so none is needed.
export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE}
# The processors work for the loaders, each of which is a process of one thread.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# srun does not take this over from sbatch (since SLURM 22.05): without it, a training has one processor.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Lines of the log appear when they are printed.
export PYTHONUNBUFFERED=1

RUNS=${RUNS:-runs}
# The same after a requeue, so that the job finds its run again.
RUN=${RUN:-slurm_$SLURM_JOB_ID}

# `scancel` and `scontrol requeue` signal this script as well: it waits for the training, which saves and ends.
trap : TERM USR1

# pipeline_of CONFIG: the script that goes with a configuration: PIPELINE, or the one of the same name.
pipeline_of() {
    local script
    case $(basename "$1" .yaml) in
        delineation) script=pipelines/tubularity.py ;;
        marrow) script=pipelines/pcam.py ;;
        *) script=${1%.yaml}.py ;;
    esac
    script=${PIPELINE:-$script}
    if [[ ! -f $1 || ! -f $script ]]; then
        echo "error: $1 and $script have to be there. Submit from the folder of the checkout, and name the script" \
            "of a configuration of your own: PIPELINE=pipelines/tubularity.py sbatch ..." >&2
        return 2
    fi
    echo "$script"
}

# staged DIR: copies a folder to the disk of every node of this job, and prints where it is.
staged() {
    local places
    places=$(srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash pipelines/slurm/stage.sh "$1" | sort -u)
    if [[ $(wc -l <<< "$places") != 1 ]]; then
        echo "error: the nodes keep the copy at different places, or see different files in $1:" $places >&2
        return 2
    fi
    echo "$places"
}

# train CONFIG [OPTIONS...]: begins the run of this job or continues it, on all tasks that the job has.
train() {
    local config=$1 script code=0
    shift
    script=$(pipeline_of "$config")
    local options=(--config "$config" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.num_nodes "$SLURM_NNODES")
    options+=("$@" --trainer.default_root_dir "$RUNS" --run "$RUN" --ckpt_path last)
    if [[ -n ${STAGE:-} ]]; then
        local place
        place=$(staged "$STAGE")
        options+=(--data.root "$place")
    fi
    # When a process has ended, the others have 60 s. Killed at once, they could not say what happened, nor end by 75.
    srun --kill-on-bad-exit=0 --wait=60 python "$script" fit "${options[@]}" || code=$?
    if ((code == 75)); then
        start_again
    fi
    return "$code"
}

# score CONFIG [OPTIONS...]: scores the test set with the best checkpoint of the run of this job.
score() {
    local script
    script=$(pipeline_of "$1")
    local folder=$RUNS/$(basename "$script" .py)/$RUN
    # The first process writes the report alone, so nothing waits for it.
    srun python "$script" test --config "$folder/config.yaml" --ckpt_path "$folder/checkpoints/best.ckpt"
}

# start_again: puts this job back into the queue. The training was stopped in time, its checkpoint is whole (code 75).
start_again() {
    # A job that was cancelled or requeued by somebody, or whose time is over, is COMPLETING: it has nothing to ask for.
    local state
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
    if [[ $state == RUNNING || $state == SIGNALING ]]; then
        echo "Job $SLURM_JOB_ID goes back into the queue and will continue $RUNS/*/$RUN."
        scontrol requeue "$SLURM_JOB_ID"
    fi
}
