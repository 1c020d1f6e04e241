#!/usr/bin/env bash
# Fetch the two published checkpoints, MNIST-M -> SVHN and MNIST-M -> USPS, into checkpoint/ beside this script.
#
#     bash download.sh
#
# Two small files, named by the accuracy they were published with: 0.417 on SVHN and 0.824 on USPS. One that is there
# and whole is kept. Needs gdown (in requirements.txt); PYTHON=... names the interpreter, `python` by default.
# Exit code: 0 both files are there, 2 one is not.

set -uo pipefail
case ${1:-} in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac

drive=https://drive.google.com/drive/folders/1kUAP0tcsRnJz4vyVp5khdVVdd2N_yqIG
python=${PYTHON:-python}
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/checkpoint
part=$folder/.download.$$      # on the same disk, so that mv is one step
status=0
command -v "$python" >/dev/null || { echo "download.sh: there is no '$python' to run: set PYTHON=..." >&2; exit 2; }
trap 'rm -f -- "$part"*' EXIT
mkdir -p -- "$folder"

whole() {   # torch.save writes a zip archive; a cut-off file or a web page is none, a damaged one has a wrong checksum
    "$python" -I -c 'import sys, zipfile; sys.exit(zipfile.ZipFile(sys.argv[1]).testzip() is not None)' "$1" 2>/dev/null
}

fetch() {   # fetch ID NAME: the file of that id on the drive to its name, once it is whole
    if command -v gdown >/dev/null; then gdown "$1" -O "$part.$2"; else "$python" -m gdown "$1" -O "$part.$2"; fi &&
        whole "$part.$2" && mv -f -- "$part.$2" "$folder/$2"
}

provide() {
    whole "$folder/$2" || fetch "$1" "$2" || { status=2; echo "download.sh: checkpoint/$2 could not be fetched:" \
        "pip install gdown and try again, or save it by hand as $folder/$2 from $drive" >&2; }
}

provide 1PSlBhFbQoppQLeE5IIIc9ChiSkzPHZMH ep260_svhn_acc=0.41745.pt
provide 1_vdmGglgkz4B8RlsRFL6UaE9B4G9p50l ep115_usps_acc=0.82392.pt
exit $status
