#!/usr/bin/env bash
# gpu-sanitize.sh FEDCOMM_TESTS [SHARE]
#     runs every C++ test that uses a GPU under compute-sanitizer: memcheck, racecheck and initcheck.
#     Of random cases it takes one in SHARE (100), and names the tests that it leaves out because
#     they are nothing without their many elements. Status 1 if a tool finds something, or a test
#     fails or takes longer than 400 s.
set -euo pipefail
tests=$1
export FEDCOMM_TEST_SHARE=${2:-100}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

check() { # check TOOL TEST
    local log=$logs/$1-$2 status=0
    timeout 400 compute-sanitizer --tool "$1" --error-exitcode 3 "$tests" "$2" &> "$log" || status=$?
    if grep '^skipped' "$log"; then
        return 0
    fi
    if [[ $status != 0 ]]; then
        echo "FAILED $1 $2 (status $status)"
        tail -n 30 "$log"
        return 1
    fi
    echo "$1 $2: $(grep -E '(ERROR|RACECHECK) SUMMARY' "$log" | sed 's/=* //')"
}
export -f check
export tests logs

for tool in memcheck racecheck initcheck; do
    "$tests" --list | grep -E '^(cuda|device)_' | sed "s/^/$tool /"
done | xargs -P "$(($(nproc) / 2 + 1))" -L 1 bash -c 'check "$0" "$1"'
