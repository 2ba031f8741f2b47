#!/bin/sh
# The main job, whole: prepares FashionMNIST, trains both stages, tests, and prints the table.
# Called by `make fashion-mnist`, with the interpreter of the virtual environment as argument.
# QUICK=1 runs a reduced version of it (a few minutes; the figures mean nothing).
set -eu
python=$1
if [ "${QUICK:-0}" = 1 ]; then
    data=FashionMNIST-quick
    sizes="--train 1200 --valid 200 --test 400"
    opts="DATA.DATASET $data DATA.NUM_TRIPLETS 640 SOLVER.EPOCHS 1 SAVE_DIR runs/quick"
    runs=runs/quick
else
    data=FashionMNIST
    sizes=""
    opts=""
    runs=runs
fi
cfg="config/FashionMNIST/FashionMNIST.yaml config/FashionMNIST"
# shellcheck disable=SC2086  # lists of words
{
    "$python" -m asenpp.data fashion_mnist --out "data/$data" $sizes
    "$python" main.py --overwrite --cfg $cfg/s1.yaml ${opts:+--opts $opts}
    "$python" main.py --overwrite --cfg $cfg/s2.yaml --resume "$runs/FashionMNIST_s1/model_best.pth.tar" ${opts:+--opts $opts}
    "$python" main.py --cfg $cfg/s2.yaml --resume "$runs/FashionMNIST_s2/model_best.pth.tar" --test TEST ${opts:+--opts $opts}
}
"$python" - "$runs/FashionMNIST_s2/metrics.jsonl" <<'END'
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    test = [event for event in map(json.loads, file) if event["event"] == "test"][-1]
metrics, queries = test["metrics"], test["queries"]
names = list(metrics["total"])
print("\nTEST, scores from 0 to 1")
print(f"{'attribute':12s} {'queries':>8s} " + " ".join(f"{name:>12s}" for name in names))
for attribute, scores in metrics.items():
    count = queries.get(attribute, sum(queries.values()))
    print(f"{attribute:12s} {count:8d} " + " ".join(f"{scores[name]:12.4f}" for name in names))
END
