# A redis server on a unix socket, and clients that work with it, in one job.
redis-server --port 0 --unixsocket "$PWD/redis.socket" --save '' --appendonly no --daemonize no > server.log &
server=$!
ask() { redis-cli -s redis.socket "$@"; }
until [ "$(ask ping 2> /dev/null)" = PONG ]; do :; done
count() {
    for step in $(seq 60); do
        for part in 1 2 3 4 5; do
            echo "incrby $1 $step"
            echo "rpush list-$1 $step-$part"
        done
    done | ask > "output.$1"
}
for round in 1 2 3 4; do
    count "a$round" & one=$!
    count "b$round" & two=$!
    wait $one $two
    ask get "a$round"
    ask lrange "list-b$round" 0 -1
done
ask shutdown nosave
wait $server
echo "the server ended with $?"
