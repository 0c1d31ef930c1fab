#!/usr/bin/env bash
# Everything that needs a GPU, in one command, in pieces that each end within 8 minutes.
set -u
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: benchmarks/device.sh [--out FOLDER] [--minutes N] [--rehearse] [--again]
                            [--train [RECIPE...]] [PIECE...]

Builds the package with what is installed (nothing is downloaded), tests the kernels on the card,
measures them and writes receipts named <what>-<card>.json into FOLDER (default: $OUT, else
benchmarks/receipts). A piece that is cut off or fails leaves what it has measured; call again with
the same FOLDER and it goes on from there. What was measured with other kernels is measured again.

pieces:
  build     the package into build/device, with the installed compiler and no network
  test      the kernel tests, compiled for this card; not again once they passed
  sanitize  compute-sanitizer memcheck and racecheck on a small case of each kernel
  ceilings  copy bandwidth and matrix rates: the roofline beside each result
  tune-NETWORK-DTYPE       tiles of every stage, for a large batch and for one image
  crossover-NETWORK-DTYPE  the batches at which the kernels beat torch, with the adopted tiles
  adopt     findings of tune and crossover into kernels/measured.json (what backend="auto" goes by)
  forward-NETWORK-DTYPE, inverse-NETWORK-DTYPE, power-NETWORK
  serving-NETWORK-DTYPE    queries/s, p50 and p99 of a worker at batch 1, 8, 64 with torch eager,
            compiled and our kernels, and of a whole server
  on_chip-NETWORK-DTYPE    the kernels of kernels/cuda beside the Triton ones, stage by stage
  bars      the bars against the receipts of cifar, as a table; also FOLDER/bars.md
            NETWORK: cifar mnist-full fashion-mnist-full fashion-mnist
            DTYPE: float32 bfloat16 float16
default: build, test, sanitize, ceilings; cifar in bfloat16 and float32: tune, adopt, inverse,
forward, bars, serving, crossover, adopt; power-cifar; then inverse, forward and power of the other networks
and dtypes

--minutes   begins no piece after N whole minutes, and cuts off the one that is running then
--train     trains the full-size recipes afterwards (classifier, then encoder; resumable)
--rehearse  the same code on a CPU: Triton's interpreter, tiny shapes; its times mean nothing
--again     measures what the receipts already have
TEXT
}

OUT_FOLDER=${OUT:-benchmarks/receipts}
LIMIT=${DEVICE_PIECE_SECONDS:-480} # of one piece
PY=${PYTHON:-python3}
STOP_AT= # of $SECONDS
REHEARSE=() AGAIN=() TRAIN=() PIECES=() train=no
while [ $# -gt 0 ]; do
  case $1 in
    --out) OUT_FOLDER=$2; shift ;;
    --minutes) STOP_AT=$(($2 * 60)); shift ;;
    --rehearse) REHEARSE=(--rehearse) ;;
    --again) AGAIN=(--again) ;;
    --train) train=yes
      while [ $# -gt 1 ] && [[ $2 == fashion-* || $2 == cifar-* || $2 == *.toml ]]; do
        TRAIN+=("$2"); shift
      done ;;
    -h|--help) usage; exit 0 ;;
    -*) echo "device.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    *) PIECES+=("$1") ;;
  esac
  shift
done
mkdir -p "$OUT_FOLDER"
OUT_FOLDER=$(cd "$OUT_FOLDER" && pwd)

default_pieces() {
  local network dtype
  PIECES=(build test sanitize ceilings)
  if [ ${#REHEARSE[@]} -gt 0 ]; then
    PIECES+=(tune-cifar-bfloat16 adopt inverse-cifar-float32 forward-cifar-float32 bars)
    PIECES+=(serving-cifar-float32)
    PIECES+=(crossover-cifar-bfloat16 adopt power-cifar)
    return
  fi
  PIECES+=(tune-cifar-bfloat16 tune-cifar-float32 adopt)
  # Inversions first: torch.compile, at the end of each forward, takes minutes.
  PIECES+=(inverse-cifar-bfloat16 inverse-cifar-float32)
  PIECES+=(forward-cifar-bfloat16 forward-cifar-float32)
  PIECES+=(bars on_chip-cifar-bfloat16 adopt serving-cifar-float32 serving-cifar-bfloat16)
  PIECES+=(crossover-cifar-bfloat16 crossover-cifar-float32 adopt power-cifar)
  PIECES+=(inverse-cifar-float16 forward-cifar-float16)
  for network in mnist-full fashion-mnist-full fashion-mnist; do
    for dtype in bfloat16 float32 float16; do
      PIECES+=("inverse-$network-$dtype" "forward-$network-$dtype")
    done
    PIECES+=("power-$network")
  done
}
[ ${#PIECES[@]} -eq 0 ] && default_pieces

measure() { # COMMAND [option...]
  timeout "$LIMIT" "$PY" -W ignore benchmarks/kernels.py "$@" \
    --out "$OUT_FOLDER" --seconds $((LIMIT * 7 / 8)) "${REHEARSE[@]}" "${AGAIN[@]}"
}

sources() { # a digest of what is built and tested; adopt changes measured.json
  find codedinv kernels csrc tests/kernels tests/nn -type f ! -name measured.json ! -name '*.pyc' \
    -exec sha256sum {} + | sort | sha256sum
}

build() {
  [ ${#REHEARSE[@]} -gt 0 ] && return 0 # a rehearsal uses the package that is installed
  if [ "$(cat build/device/sources 2>/dev/null)" = "$(sources)" ]; then
    cp kernels/measured.json build/device/codedinv/kernels/
    return
  fi
  timeout "$LIMIT" "$PY" -m pip install --quiet --no-index --no-deps --no-build-isolation \
    --upgrade --target build/device . && sources >build/device/sources
}

tests() {
  if [ ${#REHEARSE[@]} -gt 0 ]; then
    timeout "$LIMIT" "$PY" -P -m pytest -q tests/kernels/test_tuning.py
    return
  fi
  local parallel=() passed="$OUT_FOLDER/tests-passed.txt"
  if [ ${#AGAIN[@]} -eq 0 ] && [ "$(cat "$passed" 2>/dev/null)" = "$(sources)" ]; then
    echo "passed before, with the same sources"
    return
  fi
  # Most of the time goes to compiling.
  "$PY" -c 'import xdist' 2>/dev/null && parallel=(-n 8)
  timeout "$LIMIT" "$PY" -P -m pytest -q "${parallel[@]}" -m "not slow" \
    --ignore tests/kernels/test_aot.py --ignore tests/kernels/test_device_script.py \
    tests/kernels tests/nn/test_functional.py && sources >"$passed"
}

run_piece() {
  local what rest
  case $1 in
    build) build ;;
    test) tests ;;
    sanitize|ceilings|adopt|bars) measure "$1" ;;
    power-*) measure power --network "${1#power-}" ;;
    forward-*|inverse-*|tune-*|crossover-*|serving-*|on_chip-*)
      what=${1%%-*} rest=${1#*-}
      measure "$what" --network "${rest%-*}" --dtype "${rest##*-}" ;;
    *) echo "device.sh: unknown piece $1" >&2; return 2 ;;
  esac
}

train_recipe() { # RECIPE; goes on from its checkpoint when called again
  local recipe=$1 folder part
  folder="$OUT_FOLDER/$(basename "${recipe%.toml}")"
  for part in classifier encoder; do
    timeout "$LIMIT" "$PY" -P -m codedinv train "$part" --recipe "$recipe" --out "$folder" \
      --device cuda --resume || return
  done
}

export PYTHONPATH="$PWD/build/device${PYTHONPATH:+:$PYTHONPATH}"
[ ${#REHEARSE[@]} -gt 0 ] && export PYTHONPATH=${PYTHONPATH#"$PWD/build/device"} && export PYTHONPATH=${PYTHONPATH#:}
SUMMARY="$OUT_FOLDER/device-summary.txt"
: >"$SUMMARY"
failed=0
note() { # NAME STATUS SECONDS
  printf '%-36s %-9s %4d s\n' "$1" "$2" "$3" | tee -a "$SUMMARY"
}
has_time() { # shortens LIMIT to what --minutes leaves; false where too little is left to begin
  [ -z "$STOP_AT" ] && return 0
  [ $((STOP_AT - SECONDS)) -lt "$LIMIT" ] && LIMIT=$((STOP_AT - SECONDS))
  [ "$LIMIT" -ge 20 ]
}
for piece in "${PIECES[@]}"; do
  started=$SECONDS
  if ! has_time; then note "$piece" not-begun 0; failed=1; continue; fi
  echo "== $piece"
  run_piece "$piece"
  status=$?
  case $status in
    0) note "$piece" ok $((SECONDS - started)) ;;
    3) note "$piece" skipped $((SECONDS - started)) ;;
    124) note "$piece" cut-off $((SECONDS - started)); failed=1 ;;
    *) note "$piece" "FAILED $status" $((SECONDS - started)); failed=1 ;;
  esac
done
if [ $train = yes ]; then
  [ ${#TRAIN[@]} -eq 0 ] && TRAIN=(fashion-mnist-full fashion-mnist-full-k10)
  for recipe in "${TRAIN[@]}"; do
    started=$SECONDS
    if ! has_time; then note "train $recipe" not-begun 0; failed=1; continue; fi
    echo "== train $recipe"
    if train_recipe "$recipe"; then note "train $recipe" ok $((SECONDS - started))
    else note "train $recipe" unfinished $((SECONDS - started)); failed=1; fi
  done
fi
echo "== summary"
cat "$SUMMARY"
exit $failed
