#!/usr/bin/env bash
# Run every cell of the README's tables that results/ does not have yet, then rewrite the tables.
#
#     bash reproduce.sh DATA_ROOT [SEEDS [PART ...]]
#
# DATA_ROOT is absolute or relative to the project's folder. SEEDS: "0 1 2" by default. PART: paper, strong, ladder; these
# by default, and adaptation, the runs that only ADAPTATION.md needs (21 of them, about 80 minutes). One run at a time, each
# 1 to 10 minutes on 2 cores; JOBS=2 runs two side by side, each on half of the cores: a quarter faster in all, for the parts
# whose seconds no table shows, ladder and adaptation (bash 4.3 or later). Stop it whenever you like: the next call goes on in
# the run that was cut, and skips those that are done. To measure a cell again, delete its results/*.json.

set -euo pipefail
refuse() { echo "reproduce.sh: $1" >&2; exit 2; }
[ $# -gt 0 ] || refuse "name the folder of the real digits: bash reproduce.sh DATA_ROOT [SEEDS [PART ...]]"
data_root=$1
seeds=${2:-0 1 2}
parts=" ${*:3} "
[ "$parts" = "  " ] && parts=" paper strong ladder "
for part in $parts; do
    case $part in
        paper | strong | ladder | adaptation) ;;
        *) refuse "there is no part $part; the parts are paper, strong, ladder and adaptation." ;;
    esac
done
python=${PYTHON:-python}
cd -- "$(dirname -- "$0")"
for domain in mnistm svhn usps; do
    [ -d "$data_root/$domain" ] || refuse "no $data_root/$domain; python prepare_data.py digits --out $data_root --sample makes it."
done
runs=runs/reproduce
jobs=${JOBS:-1}
if [ "$jobs" -gt 1 ]; then
    OMP_NUM_THREADS=$(( $(nproc) / jobs > 0 ? $(nproc) / jobs : 1 ))
    export OMP_NUM_THREADS
fi

side_by_side() {   # side_by_side FUNCTION ARGUMENT ...: at once where fewer than $jobs runs are under way
    if [ "$jobs" -le 1 ]; then "$@"; return; fi
    if [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; then wait -n; fi
    "$@" &
}

train() {   # train NAME FLAG ...: go on in runs/reproduce/NAME
    "$python" train.py "${@:2}" --save_dir "$runs" --run_name "$1" --resume
}

cell() {   # cell RECIPE ARCH MODE TARGET SEED [PART-LEFT-OUT ...]
    local name="$3_$4_$1_$2" without=()
    if [ $# -gt 5 ]; then
        without=(--without "${@:6}")
        name+="_without_$(IFS=_; echo "${*:6}")"
    fi
    name+="_seed$5"
    if [ -f "results/$name.json" ]; then return; fi
    side_by_side add "$name" --data_root "$data_root" --train_mode "$3" --target_file "$4" --recipe "$1" --arch "$2" \
        --seed "$5" ${without[@]+"${without[@]}"}
}

add() {
    train "$@"
    "$python" report.py --add "$runs/$1"
}

extra() {   # extra NAME FLAG ...: a run behind ADAPTATION.md
    if [ -f "results/adaptation/$1.json" ]; then return; fi
    side_by_side keep "$@"
}

keep() {
    train "$@"
    mkdir -p results/adaptation
    cp "$runs/$1/result.json" "results/adaptation/$1.json.part"
    mv "results/adaptation/$1.json.part" "results/adaptation/$1.json"
}

shifted_shares() {   # runs/shifted: mnistm as it is, and of the usps digits 5 to 9 every tenth
    local home
    home=$(cd "$data_root" && pwd)
    mkdir -p runs/shifted/usps
    ln -sfn "$home/mnistm" runs/shifted/mnistm
    ln -sfn "$home/usps/data" runs/shifted/usps/data
    for split in train val; do
        awk -F, 'FNR == 1 || $2 < 5 || $1 ~ /0\.png$/' "$home/usps/$split.csv" > "runs/shifted/usps/$split.csv"
    done
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
            cell strong small source "$target" "$seed" neighbours
            cell strong small dann "$target" "$seed" teacher
            cell strong small dann "$target" "$seed" adversarial
            cell strong small dann "$target" "$seed" augmentation
        fi
    done
done
if has adaptation; then
    shifted_shares
    for seed in $seeds; do
        for target in usps svhn; do
            for lambda in 0.02 1; do
                extra "dann_${target}_lambda${lambda}_seed$seed" --data_root "$data_root" --train_mode dann \
                    --target_file "$target" --lambda_max "$lambda" --seed "$seed"
            done
        done
        for mode in source dann; do
            extra "${mode}_usps_shifted_seed$seed" --data_root runs/shifted --train_mode "$mode" \
                --target_file usps --seed "$seed"
        done
        extra "strong_usps_shifted_seed$seed" --data_root runs/shifted --train_mode dann --target_file usps \
            --recipe strong --seed "$seed"
    done
fi
while [ -n "$(jobs -rp)" ]; do wait -n; done
if ls results/*_strong_small_*.json >/dev/null 2>&1; then
    "$python" report.py --signs results/figures/signs.png
fi
"$python" report.py --readme README.md
"$python" report.py --readme ADAPTATION.md
