echo "process $$ looks for primes"
count=0
n=1
while [ $count -lt 18 ]; do
    n=$((n + 1))
    d=2
    while [ $((d * d)) -le $n ] && [ $((n % d)) -ne 0 ]; do d=$((d + 1)); done
    if [ $((d * d)) -gt $n ]; then
        count=$((count + 1))
        echo "prime $count is $n"
        sleep 0.3
    fi
done
