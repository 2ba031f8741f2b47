#!/bin/sh
# The main job, whole: prepares FashionMNIST, trains, tests, and prints the table.
# Called by `make fashion-mnist`, with the interpreter of the virtual environment as argument.
# MODE=published trains both stages on triplets, as the published programs do; else config/FashionMNIST/cosine.yaml.
# QUICK=1 runs a reduced version of it (a few minutes; the figures mean nothing).
set -eu
python=$1
mode=${MODE:-cosine}
case $mode in
    published) last=s2; reduced="DATA.NUM_TRIPLETS 640" ;;
    cosine) last=cosine; reduced="DATA.NUM_IMAGES 960 SOLVER.WARMUP_STEPS 5" ;;
    *) echo "fashion-mnist: MODE is $mode: it must be published, or cosine (the default)" >&2; exit 2 ;;
esac
if [ "${QUICK:-0}" = 1 ]; then
    data=FashionMNIST-quick
    sizes="--train 1200 --valid 200 --test 400"
    opts="DATA.DATASET $data $reduced SOLVER.EPOCHS 1 SAVE_DIR runs/quick"
    runs=runs/quick
else
    data=FashionMNIST
    sizes=""
    opts=""
    runs=runs
fi
files=config/FashionMNIST
# shellcheck disable=SC2086  # lists of words
run() {
    stage=$1; shift
    "$python" main.py --cfg $files/FashionMNIST.yaml $files/$stage.yaml "$@" ${opts:+--opts $opts}
}

# shellcheck disable=SC2086
"$python" -m asenpp.data fashion_mnist --out "data/$data" $sizes
begun=$(date +%s)
if [ "$mode" = published ]; then
    run s1 --overwrite
    run s2 --overwrite --resume "$runs/FashionMNIST_s1/model_best.pth.tar"
else
    run cosine --overwrite
fi
seconds=$(($(date +%s) - begun))
run "$last" --resume "$runs/FashionMNIST_$last/model_best.pth.tar" --test TEST
"$python" - "$runs/FashionMNIST_$last/metrics.jsonl" "$mode" "$seconds" <<'END'
import json, sys
path, mode, seconds = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    test = [event for event in map(json.loads, file) if event["event"] == "test"][-1]
metrics, queries = test["metrics"], test["queries"]
names = list(metrics["total"])
print("\nTEST, scores from 0 to 1")
print(f"{'attribute':12s} {'queries':>8s} " + " ".join(f"{name:>12s}" for name in names))
for attribute, scores in metrics.items():
    count = queries.get(attribute, sum(queries.values()))
    print(f"{attribute:12s} {count:8d} " + " ".join(f"{scores[name]:12.4f}" for name in names))
for attribute, report in test.get("heads", {}).items():
    print(f"{attribute}: the head tells {report['accuracy']:.4f} of the values right, macro F1 {report['macro']['f1']:.4f}")
print(f"mode {mode}: trained in {seconds} s, evaluations on VALID included")
END
