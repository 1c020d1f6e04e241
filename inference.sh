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
case ${1:-} in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac

refuse() { echo "inference.sh: $1" >&2; exit 2; }

# a path with a space and no quotes arrives as one word more
[[ ${1:--} != -* && ${2:--} != -* && ${3--} == -* ]] ||
    refuse "usage: bash inference.sh TEST_FOLDER OUTPUT_DIR [more flags of inference.py]"
[ -e "$1" ] || refuse "there is no folder $1: give a folder of images."
python=${PYTHON:-python}
command -v "$python" >/dev/null || refuse "there is no '$python' to run: set PYTHON=..., such as .venv/bin/python."
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

checkpoint=${CHECKPOINT:-}
if [ -z "$checkpoint" ]; then
    path=$(CDPATH='' cd -- "$1" 2>/dev/null && pwd) || path=$1      # `.` has a name too
    part=$(printf '%s' "$path" | tr '/[:upper:]' '\n[:lower:]' | grep -E 'svhn|usps' | tail -n 1) || true
    case $part in
        *svhn*usps* | *usps*svhn*) refuse "'$part' in $path names svhn and usps: rename it, or set CHECKPOINT=..." ;;
        *svhn*) domain=svhn published=ep260_svhn_acc=0.41745.pt ;;
        *usps*) domain=usps published=ep115_usps_acc=0.82392.pt ;;
        *) refuse "no part of $path holds svhn or usps: name a folder after its domain, or set CHECKPOINT=..." ;;
    esac
    for checkpoint in "$here/checkpoint/dann_$domain.pt" "$here/checkpoint/$published"; do
        if [ -f "$checkpoint" ]; then break; fi
    done
    [ -f "$checkpoint" ] || refuse "$here/checkpoint has no dann_$domain.pt or $published: run 'bash download.sh'."
fi

echo "inference.sh: using $checkpoint" >&2
exec "$python" "$here/inference.py" --checkpoint "$checkpoint" --test_loc "$1" --out_path "$2" "${@:3}"
