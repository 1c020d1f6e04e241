#!/usr/bin/env bash
# Run every cell of the README's tables that results/ does not have yet, then rewrite the tables.
#
#     bash reproduce.sh DATA_ROOT [SEEDS]        (SEEDS: "0 1 2" by default)
#
# DATA_ROOT is absolute or relative to the project's folder. One run at a time, each 2 to 5 minutes on 2 cores. Stop it
# whenever you like: the next call goes on in the run that was cut, and skips those that are done. To measure a cell
# again, delete its results/*.json.

set -euo pipefail
data_root=${1:?usage: bash reproduce.sh DATA_ROOT [SEEDS]}
seeds=${2:-0 1 2}
python=${PYTHON:-python}
cd -- "$(dirname -- "$0")"
runs=runs/reproduce

cell() {   # cell ARCH MODE TARGET SEED
    local name="$2_$3_paper_$1_seed$4"
    if [ -f "results/$name.json" ]; then return; fi
    "$python" train.py --data_root "$data_root" --train_mode "$2" --target_file "$3" --arch "$1" --seed "$4" \
        --save_dir "$runs" --run_name "$name" --resume
    "$python" report.py --add "$runs/$name"
}

for seed in $seeds; do
    for target in svhn usps; do
        for mode in dann source target; do cell small "$mode" "$target" "$seed"; done
    done
done
for seed in $seeds; do
    for target in svhn usps; do cell published dann "$target" "$seed"; done
done
"$python" report.py --readme README.md
