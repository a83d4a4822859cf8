#!/usr/bin/env bash
# Everything that has to be known of a GPU machine, in at most nine minutes: whether the numbers are right there, how fast
# a training step is, how much memory it takes beside what was estimated, how fast audio is encoded.
#
#   benchmarks/gpu.sh [--wheels DIR] [--out DIR] [--dry-run]
#
# --wheels DIR  packages that the machine lacks, as wheels (docs/benchmarks.md names them); nothing is downloaded
# --out DIR     where gpu-NAME.json goes; default: $OUT if it is set, else benchmarks/results
# --dry-run     the same on the processor with the small model, to see that every stage runs
set -uo pipefail
cd "$(dirname "$0")/.."

LIMIT_SEC=540
out="${OUT:-benchmarks/results}"
wheels=""
dry_run=""
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) wheels="$2"; shift 2 ;;
    --out) out="$2"; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    *) echo "unknown argument: $1; see the head of $0" >&2; exit 2 ;;
  esac
done

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$wheels"/*.whl || exit 1
  export PYTHONPATH="$work/site:$PYTHONPATH"
fi

# A stage that fails or runs out of time does not take the others with it; 15 seconds are kept for the summary.
stage() {
  local name="$1" began=$SECONDS left=$((LIMIT_SEC - 15 - SECONDS))
  shift
  if [ "$left" -lt 5 ]; then
    echo "$name: no time left" >>"$work/stages.txt"
    return
  fi
  echo "== $name" >&2
  timeout "$left" "$python" -m "$@" --out "$work"
  local code=$?
  echo "$name: exit code $code after $((SECONDS - began)) s" >>"$work/stages.txt"
}

# 7B first of the steps: it is the longer one, and the one that nobody can measure elsewhere.
if [ -n "$dry_run" ]; then
  stage "checks" benchmarks.check_cuda --device cpu
  stage "step, small" benchmarks.train_step --device cpu --size tiny --steps 2 --rows 2 --clip_sec 3 \
    --recipes lora,full,head-lora,full-recompute,head-lora-4bit-recompute
  stage "latents, small" benchmarks.encode_store --device cpu --size tiny --seconds 20
  stage "attention, small" benchmarks.packed_attention --device cpu --rows 2x20 --repeats 2
else
  stage "checks" benchmarks.check_cuda
  stage "attention" benchmarks.packed_attention --rows 8x110,8x400,32x110,1x2048
  stage "step, 1.5B" benchmarks.train_step --size 1.5b --steps 15 \
    --recipes lora,full,head-lora,full-recompute,full-4bit
  stage "step, 7B" benchmarks.train_step --size 7b --steps 6 \
    --recipes lora,full,head-lora,head-lora-recompute,head-lora-4bit,head-lora-4bit-recompute
  stage "latents" benchmarks.encode_store --seconds 1200
fi
"$python" -m benchmarks.combine "$work" "$out"
! grep -qv "exit code 0" "$work/stages.txt"
