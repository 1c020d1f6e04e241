#!/usr/bin/env bash
# Predict the digits in a folder of images with the checkpoint of their domain, svhn or usps.
#
#     bash inference.sh TEST_FOLDER OUTPUT_DIR [more flags of inference.py]
#     bash inference.sh digits/svhn/val predictions --probs
#
# The last part of TEST_FOLDER's path that holds `svhn` or `usps` names the domain (digits/svhn/val: svhn), and with
# it the checkpoint: checkpoint/dann_svhn.pt or dann_usps.pt, else the published one that download.sh fetches.
# CHECKPOINT=... names a run folder or a checkpoint file instead, and then the path needs no such name.
# PYTHON=... names the interpreter to use, `python` by default. Writes OUTPUT_DIR/pred.csv.
# Exit code: that of inference.py (0 done, 1 done but images were left out), 2 refused.

set -euo pipefail

usage="usage: bash inference.sh TEST_FOLDER OUTPUT_DIR [more flags of inference.py]"
python=${PYTHON:-python}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

refuse() {
    echo "inference.sh: $1" >&2
    exit 2
}

# Print the domain that the path $1 names in its last part that names one; nothing where no part does.
domain_of() {
    local rest="$1" part
    shopt -s nocasematch
    while [ -n "$rest" ]; do
        part=${rest##*/}
        case $part in
            *svhn*usps* | *usps*svhn*)
                refuse "'$part' in the path $1 names both svhn and usps: rename the folder, or set CHECKPOINT=..." ;;
            *svhn*) echo svhn; return ;;
            *usps*) echo usps; return ;;
        esac
        case $rest in
            */*) rest=${rest%/*} ;;
            *) rest="" ;;
        esac
    done
}

# Print the checkpoint that ships for the domain $1, else the downloaded one.
checkpoint_of() {
    local shipped="$here/checkpoint/dann_$1.pt" downloaded
    case $1 in
        svhn) downloaded="$here/checkpoint/ep260_svhn_acc=0.41745.pt" ;;
        usps) downloaded="$here/checkpoint/ep115_usps_acc=0.82392.pt" ;;
    esac
    if [ -f "$shipped" ]; then
        echo "$shipped"
    elif [ -f "$downloaded" ]; then
        echo "$downloaded"
    else
        refuse "there is neither $shipped nor $downloaded: run 'bash download.sh', or set CHECKPOINT=..."
    fi
}

case ${1:-} in
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
for folder in "${1:-}" "${2:-}"; do
    case $folder in "" | -*) refuse "$usage" ;; esac
done
case ${3--} in -*) ;; *) refuse "$usage" ;; esac       # a path with a space and no quotes arrives as one word more
command -v "$python" >/dev/null ||
    refuse "there is no '$python' to run: set PYTHON to an interpreter, such as PYTHON=.venv/bin/python."

checkpoint=${CHECKPOINT:-}
if [ -z "$checkpoint" ]; then
    place=$(CDPATH='' cd -- "$1" 2>/dev/null && pwd) || place=$1    # `.` has a name too
    domain=$(domain_of "$place")
    if [ -z "$domain" ] && [ ! -e "$1" ]; then refuse "there is no folder $1: give a folder of images."; fi
    if [ -z "$domain" ]; then
        refuse "no part of the path $place holds svhn or usps: name a folder after its domain, or set CHECKPOINT=..."
    fi
    checkpoint=$(checkpoint_of "$domain")
fi

echo "inference.sh: using $checkpoint" >&2
test_folder=$1 output_dir=$2
shift 2
exec "$python" "$here/inference.py" --checkpoint "$checkpoint" --test_loc "$test_folder" --out_path "$output_dir" "$@"
