#!/usr/bin/env bash
# Run every cell of the README's tables that results/ does not have yet, then rewrite the tables.
#
#     bash reproduce.sh DATA_ROOT [SEEDS [PART ...]]
#
# DATA_ROOT is absolute or relative to the project's folder. SEEDS: "0 1 2" by default. PART: paper, strong, ladder; all
# by default. One run at a time, each 1 to 10 minutes on 2 cores. Stop it whenever you like: the next call goes on in the
# run that was cut, and skips those that are done. To measure a cell again, delete its results/*.json.

set -euo pipefail
usage='usage: bash reproduce.sh DATA_ROOT [SEEDS [paper|strong|ladder ...]]'
data_root=${1:?$usage}
seeds=${2:-0 1 2}
parts=" ${*:3} "
[ "$parts" = "  " ] && parts=" paper strong ladder "
python=${PYTHON:-python}
cd -- "$(dirname -- "$0")"
runs=runs/reproduce

cell() {   # cell RECIPE ARCH MODE TARGET SEED [PART-LEFT-OUT ...]
    local name="$3_$4_$1_$2" without=()
    if [ $# -gt 5 ]; then
        without=(--without "${@:6}")
        name+="_without_$(IFS=_; echo "${*:6}")"
    fi
    name+="_seed$5"
    if [ -f "results/$name.json" ]; then return; fi
    "$python" train.py --data_root "$data_root" --train_mode "$3" --target_file "$4" --recipe "$1" --arch "$2" --seed "$5" \
        --save_dir "$runs" --run_name "$name" --resume ${without[@]+"${without[@]}"}
    "$python" report.py --add "$runs/$name"
}

has() { [[ "$parts" == *" $1 "* ]]; }

for seed in $seeds; do
    for target in usps svhn; do
        if has paper; then
            for mode in dann source target; do cell paper small "$mode" "$target" "$seed"; done
            cell paper published dann "$target" "$seed"
        fi
    done
done
for seed in $seeds; do
    for target in svhn usps; do
        if has strong; then
            cell strong small dann "$target" "$seed"
            cell strong small target "$target" "$seed"
        fi
    done
done
for seed in $seeds; do
    for target in svhn usps; do
        if has ladder; then
            cell strong small source "$target" "$seed"
            cell strong small dann "$target" "$seed" conditional teacher
            cell strong small dann "$target" "$seed" teacher
            cell strong small dann "$target" "$seed" alignment
            cell strong small dann "$target" "$seed" augmentation
        fi
    done
done
if ls results/*_strong_small_*.json >/dev/null 2>&1; then
    "$python" report.py --signs results/figures/signs.png
fi
"$python" report.py --readme README.md
