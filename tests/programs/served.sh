# A web server, and a client that asks it again and again, each time over a new connection.
mkdir -p pages
for number in $(seq 5); do
    seq $((number * 1000)) >pages/$number.txt
done
port=$((20000 + $$ % 12000))
python3 -m http.server --bind 127.0.0.1 --directory pages $port >/dev/null 2>&1 &
until curl -s -o /dev/null http://127.0.0.1:$port/; do
    sleep 0.05
done
for turn in $(seq 60); do
    curl -s --retry 0 http://127.0.0.1:$port/$((turn % 5 + 1)).txt | md5sum | sed "s/^/$turn /"
    sleep 0.01
done
kill $!
wait
echo done
