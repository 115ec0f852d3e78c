# Runs on a terminal that another program has made: tells that it stays the same one, with its modes.
first=$(tty)
stty -echo rows 50 columns 120
for i in $(seq 60); do
    [ "$(tty)" = "$first" ] && echo "$i $(stty size) $(stty -a | grep -o -- '-echo ')"
    sleep 0.03
done
