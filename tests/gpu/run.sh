#!/usr/bin/env bash
# Everything that waits for a GPU: tests, throughput, EEG maps; one JSON and one table. Meant for six minutes on an H100.
#   tests/gpu/run.sh [FOLDER]                      on a machine with a GPU and PyTorch
#   NGD_GPU_DEVICE=cpu tests/gpu/run.sh [FOLDER]   a rehearsal without one: the same commands, short
# NGD_DATA, a folder that holds ferplus/, gives the images; without it faces are drawn.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-gpu-report}
export NGD_GPU_DEVICE=${NGD_GPU_DEVICE:-cuda}
if [ "$NGD_GPU_DEVICE" = cuda ] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "skipped: there is no GPU here that PyTorch can use; NGD_GPU_DEVICE=cpu rehearses without one"
    exit 0
fi
mkdir -p "$out"
python -c 'import ngd_timm, pytest' 2>/dev/null || pip install --quiet -e '.[test]'
python -m pytest -n 0 -m gpu -rs tests/gpu --junitxml "$out/tests.xml" | tee "$out/tests.txt"
how=(--rounds 6 --steps 40 --workers 8)
sizes=(64 112 224)
[ "$NGD_GPU_DEVICE" = cuda ] || { how=(--rounds 1 --steps 1 --batch 8 --threads 1 --workers 0); sizes=(64); }
for size in "${sizes[@]}"; do
    compiled=()
    [ "$NGD_GPU_DEVICE$size" != cuda64 ] || compiled=(--compile)
    python tests/benchmarks/throughput.py --device "$NGD_GPU_DEVICE" --size "$size" --json "$out/$size.json" \
        ${NGD_DATA:+--data "$NGD_DATA/ferplus"} "${how[@]}" "${compiled[@]}"
done
python tests/gpu/report.py "$out"
