#!/usr/bin/env bash
# Copies a folder to the disk of this node and prints where it is: bash pipelines/slurm/stage.sh DIR
#
# The copy is there whole or not at all: it gets its name when it is complete. Its name follows from names, sizes and
# times of the files, so that later jobs on this node use it again, and changed data make a new one. Jobs that start
# together wait for the one that copies. The disk is $SLURM_TMPDIR, $TMPDIR or /tmp, the first that is set.

set -euo pipefail

source=$1
key=$(cd "$source" && find -L . -type f -printf '%P %s %T@\n' | LC_ALL=C sort | sha256sum | cut -c 1-16)
folder=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/biocnn_$(id -u)
copy=$folder/$key
mkdir -p "$folder"
exec 9> "$copy.lock"
flock 9
if [[ ! -d $copy ]]; then
    if command -v rsync > /dev/null; then
        rsync --archive --copy-links --delete "$source/" "$copy.part/" # goes on where it was interrupted
    else
        rm -rf "$copy.part"
        cp --recursive --dereference --preserve=timestamps "$source" "$copy.part"
    fi
    mv --no-target-directory "$copy.part" "$copy"
fi
echo "$copy"
