#!/usr/bin/env bash
# Fetch the two published checkpoints, MNIST-M -> SVHN and MNIST-M -> USPS, into checkpoint/ beside this script.
#
#     bash download.sh
#
# Two small files (about 257 000 weights each), named by the accuracy they were published with: 0.417 on SVHN and
# 0.824 on USPS. What is already complete is kept, and a file gets its final name only once it is whole.
# Needs gdown (it is in requirements.txt); PYTHON=... names the interpreter to use, `python` by default.
# Exit code: 0 both files are there, 2 something failed (one sentence each), 129, 130 or 143 stopped by a signal.

set -euo pipefail

drive=https://drive.google.com/drive/folders/1kUAP0tcsRnJz4vyVp5khdVVdd2N_yqIG
python=${PYTHON:-python}
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/checkpoint
scratch=""      # this run's own folder inside checkpoint/: same file system, so the last mv is atomic
gdown_pid=""
failures=""

refuse() {
    echo "download.sh: $*" >&2
    exit 2
}

clean_up() {
    if [ -n "$gdown_pid" ]; then
        kill "$gdown_pid" 2>/dev/null || true
        wait "$gdown_pid" 2>/dev/null || true
    fi
    if [ -n "$scratch" ]; then rm -rf -- "$scratch"; fi
}

# Whether $1 is a whole checkpoint: torch.save writes a zip archive, whose table of contents is its last part. A
# cut-off file has none, nor has a web page; testzip() reads every entry against its checksum.
is_whole() {
    [ -f "$1" ] && "$python" -I -c '
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    sys.exit(0 if archive.namelist() and archive.testzip() is None else 1)
' "$1" 2>/dev/null
}

need_gdown() {
    if ! command -v gdown >/dev/null && ! "$python" -c 'import gdown' 2>/dev/null; then
        refuse "gdown is not installed: run '$python -m pip install gdown' and then 'bash download.sh' again, or save" \
            "the files of $drive in $folder by hand."
    fi
}

run_gdown() {   # exec: a signal sent to this job reaches gdown itself
    if command -v gdown >/dev/null; then exec gdown "$@"; else exec "$python" -m gdown "$@"; fi
}

# Bring the file of Drive id $1 to the final name $2, or return 1 with why in the caller's $reason.
fetch() {
    local partial="$scratch/$2" code=0
    echo "download.sh: fetching checkpoint/$2"
    run_gdown "$1" -O "$partial" &      # in the background, so that a signal is acted on at once and not after gdown
    gdown_pid=$!
    wait "$gdown_pid" || code=$?
    gdown_pid=""
    if [ "$code" -ne 0 ]; then
        reason="gdown ended with exit code $code"
    elif ! is_whole "$partial"; then
        reason="what gdown saved is not a whole checkpoint but a cut-off file or a web page, such as a quota notice"
    elif ! mv -f -- "$partial" "$folder/$2"; then
        reason="it could not be moved to its place"
    else
        return 0
    fi
    return 1
}

# Have the file of Drive id $1 under the final name $2, or add one sentence to $failures.
provide() {
    local final="$folder/$2" reason=""
    if [ -d "$final" ]; then
        reason="a folder has its name"
    elif is_whole "$final"; then
        echo "download.sh: checkpoint/$2 is complete, kept"
        return
    else
        need_gdown
        if [ -z "$scratch" ]; then
            mkdir -p -- "$folder" 2>/dev/null || true
            scratch=$(mktemp -d "$folder/.download.XXXXXX" 2>/dev/null) ||
                refuse "cannot write in $folder: make it a folder that you may write in."
        fi
        # A second download.sh may have brought the file meanwhile. What is under the name and not whole is removed.
        if fetch "$1" "$2" || is_whole "$final"; then return; fi
        rm -f -- "$final" || true
    fi
    failures="${failures}download.sh: checkpoint/$2 is missing ($reason):"
    failures="$failures get it by hand from $drive and save it as $final"$'\n'
}

case ${1:-} in
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
if [ $# -gt 0 ]; then refuse "takes no arguments, but got '$1': run 'bash download.sh'."; fi
command -v "$python" >/dev/null ||
    refuse "there is no '$python' to run: set PYTHON to an interpreter, such as PYTHON=.venv/bin/python."

trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

provide 1PSlBhFbQoppQLeE5IIIc9ChiSkzPHZMH ep260_svhn_acc=0.41745.pt
provide 1_vdmGglgkz4B8RlsRFL6UaE9B4G9p50l ep115_usps_acc=0.82392.pt

if [ -n "$failures" ]; then     # last, below whatever gdown had to say
    printf '\n%s' "$failures" >&2
    exit 2
fi
