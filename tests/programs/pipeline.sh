#!/bin/bash
# A pipeline of five programs. awk tells how far it is, or nothing could be seen until the end.
set -o pipefail
seq 1 1500000 \
    | awk '{ print ($1 * 7919) % 1000003, $1 } NR % 10000 == 0 { print NR > "output.progress"; fflush("output.progress") }' \
    | sort -S 8M -n -k1,1 -k2,2 \
    | gzip -n -c \
    | sha256sum
echo "statuses: ${PIPESTATUS[*]}"
