# A copy of ssh-agent, which keeps keys and signs with them; the original takes another group's rights.
rm -f key key.pub hidden
cp "$(command -v ssh-agent)" agent
ssh-keygen -q -t ed25519 -N '' -C test -f key <&-
sockets=$(mktemp -d)
./agent -D -a $sockets/socket >/dev/null &
agent=$!
export SSH_AUTH_SOCK=$sockets/socket
until ssh-add -q key 2>/dev/null; do
    sleep 0.05
done
mv key hidden
for step in $(seq 120); do
    # Such a signature is the same each time. A file for each: what is written after a checkpoint stays.
    echo "text $step" | ssh-keygen -Y sign -n test -f key.pub 2>/dev/null >signature.$step || echo failed
    ssh-keygen -Y check-novalidate -n test -s signature.$step < <(echo "text $step") | sed 's/with.*//'
    echo "$step: $(ssh-add -l | wc -l)"
done
kill $agent
wait $agent
rm -rf $sockets
echo done
