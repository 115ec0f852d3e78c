# A PostgreSQL server with a client that has one long transaction open, and another that does not see it.
# Both want to know their user by name, which that of the test does not have.
echo "tester:x:$(id -u):$(id -g):tester:$PWD:/bin/sh" >passwd
echo "tester:x:$(id -g):" >group
export NSS_WRAPPER_PASSWD=$PWD/passwd NSS_WRAPPER_GROUP=$PWD/group LD_PRELOAD=libnss_wrapper.so
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
rm -rf data
initdb -D data -A trust -N --locale=C -E UTF8 >/dev/null || exit 1
# The path of a socket is short.
sockets=$(mktemp -d)
postgres -D data -c listen_addresses= -c unix_socket_directories=$sockets -c fsync=off 2>/dev/null &
server=$!
client="psql -h $sockets -d postgres -qAt"
until $client -c 'create table words (number int, word text)' 2>/dev/null; do
    sleep 0.05
done
steps() {
    echo 'begin;'
    for step in $(seq 250); do
        echo "insert into words values ($step, md5('$step'));"
        echo "select count(*), sum(number), max(word) from words;"
        echo "select pg_sleep(0.006) is null;"
    done
    echo 'commit;'
}
steps | $client >output.steps &
writer=$!
others() {
    for turn in $(seq 100); do
        echo "select $turn, pg_sleep(0.01) is null, count(*) from words;"
    done
}
others | $client >output.others
wait $writer
$client -c 'select count(*), sum(number) from words'
pg_ctl -D data stop -m fast >/dev/null
wait $server
rm -rf $sockets
echo done
