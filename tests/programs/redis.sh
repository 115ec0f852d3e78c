# A redis server that writes nothing to disk, and clients that talk to it over TCP: one that counts, and a
# crowd that keeps it busy meanwhile.
port=$((20000 + $$ % 12000))
redis-server --bind 127.0.0.1 --port $port --save '' --appendonly no --daemonize no --logfile /dev/null &
server=$!
until [ "$(redis-cli -p $port ping 2>/dev/null)" = PONG ]; do
    sleep 0.05
done
while redis-benchmark -p $port -q -c 10 -n 2000 -r 100 set other:__rand_int__ value >/dev/null 2>&1; do
    [ -e stop ] && break
done &
crowd=$!
for turn in $(seq 120); do
    echo "turn $turn: $(redis-cli -p $port incr counter) $(redis-cli -p $port append text $turn,)"
    sleep 0.01
done
: >stop
wait $crowd
redis-cli -p $port get text
redis-cli -p $port shutdown nosave
wait $server
echo done
