#!/usr/bin/env bash
# Everything that needs a GPU, in one command, in pieces that each end within 8 minutes.
set -u
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: benchmarks/device.sh [--out FOLDER] [--rehearse] [--again] [--train [RECIPE...]] [PIECE...]

Builds the package with what is installed (nothing is downloaded), tests the kernels on the card,
measures them and writes receipts named <what>-<card>.json into FOLDER (default: $OUT, else
benchmarks/receipts). A piece that is cut off or fails leaves what it has measured; call again with
the same FOLDER and it goes on from there.

pieces (default: all but train, in this order):
  build     the package into build/device, with the installed compiler and no network
  test      the kernel tests, compiled for this card
  sanitize  compute-sanitizer memcheck and racecheck on a small case of each kernel
  ceilings  copy bandwidth and matrix rates: the roofline beside each result
  forward-NETWORK-DTYPE, inverse-NETWORK-DTYPE, tune-NETWORK-DTYPE, power-NETWORK
            NETWORK: cifar mnist-full fashion-mnist-full fashion-mnist
            DTYPE: float32 bfloat16 float16; tune is not in the default list
  adopt     tune's findings into kernels/measured.json (what backend="auto" goes by)

--train     trains the full-size recipes afterwards (classifier, then encoder; resumable)
--rehearse  the same code on a CPU: Triton's interpreter, tiny shapes; its times mean nothing
--again     measures what the receipts already have
TEXT
}

OUT_FOLDER=${OUT:-benchmarks/receipts}
REHEARSE=() AGAIN=() TRAIN=() PIECES=() train=no
while [ $# -gt 0 ]; do
  case $1 in
    --out) OUT_FOLDER=$2; shift ;;
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
LIMIT=${DEVICE_PIECE_SECONDS:-480}
PY=${PYTHON:-python3}

if [ ${#PIECES[@]} -eq 0 ]; then
  PIECES=(build test sanitize ceilings)
  if [ ${#REHEARSE[@]} -gt 0 ]; then
    PIECES+=(forward-cifar-float32 inverse-cifar-float32 tune-cifar-bfloat16 power-cifar)
  else
    for network in cifar mnist-full fashion-mnist-full fashion-mnist; do
      for dtype in bfloat16 float32 float16; do
        PIECES+=("inverse-$network-$dtype" "forward-$network-$dtype")
      done
      PIECES+=("power-$network")
    done
  fi
fi

measure() { # COMMAND [option...]
  timeout "$LIMIT" "$PY" -W ignore benchmarks/kernels.py "$@" \
    --out "$OUT_FOLDER" "${REHEARSE[@]}" "${AGAIN[@]}"
}

build() {
  [ ${#REHEARSE[@]} -gt 0 ] && return 0 # a rehearsal uses the package that is installed
  timeout "$LIMIT" "$PY" -m pip install --quiet --no-index --no-deps --no-build-isolation \
    --upgrade --target build/device .
}

tests() {
  if [ ${#REHEARSE[@]} -gt 0 ]; then
    timeout "$LIMIT" "$PY" -P -m pytest -q tests/kernels/test_tuning.py
  else
    timeout "$LIMIT" "$PY" -P -m pytest -q -m "not slow" --ignore tests/kernels/test_aot.py \
      --ignore tests/kernels/test_device_script.py tests/kernels tests/nn/test_functional.py
  fi
}

sanitize() {
  if [ ${#REHEARSE[@]} -gt 0 ]; then measure smoke; return; fi
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not here"; return 3; }
  local tool status=0
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$LIMIT" compute-sanitizer --tool "$tool" \
      --error-exitcode 1 "$PY" -W ignore benchmarks/kernels.py smoke \
      >"$OUT_FOLDER/sanitizer-$tool.log" 2>&1 || status=1
    tail -n 3 "$OUT_FOLDER/sanitizer-$tool.log"
  done
  return $status
}

run_piece() {
  local what rest
  case $1 in
    build) build ;;
    test) tests ;;
    sanitize) sanitize ;;
    ceilings|adopt) measure "$1" ;;
    power-*) measure power --network "${1#power-}" ;;
    forward-*|inverse-*|tune-*)
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
  printf '%-36s %-8s %4d s\n' "$1" "$2" "$3" | tee -a "$SUMMARY"
}
for piece in "${PIECES[@]}"; do
  started=$SECONDS
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
    echo "== train $recipe"
    if train_recipe "$recipe"; then note "train $recipe" ok $((SECONDS - started))
    else note "train $recipe" unfinished $((SECONDS - started)); failed=1; fi
  done
fi
echo "== summary"
cat "$SUMMARY"
exit $failed
