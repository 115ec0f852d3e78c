#!/bin/bash
# A loop that starts short commands, in the foreground, in substitutions and in the background.
total=0
for step in $(seq 1 400); do
    value=$(expr $step \* 37 % 101)
    total=$((total + value))
    echo "step $step: $value $(printf '%s' "$total" | sha1sum | cut -c1-12)"
    if [ $((step % 20)) = 0 ]; then
        (sleep 0.01; exit 3) &
        wait $!
        echo "background: $?"
    fi
    [ -d "output.directory-$((step % 3))" ] || mkdir "output.directory-$((step % 3))"
done > output.loop
trap 'echo "exit trap" >> output.trap' EXIT
echo "total $total"
